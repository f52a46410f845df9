"""
The commands that start something: ``demo``, ``start-round``, ``redis``.
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from fl_queue.cli.completion import config_argument
from fl_queue.cli.options import (
    Where,
    complain,
    connection_options,
    say,
    set_option,
    signing_option,
)
from fl_queue.common import outages
from fl_queue.config import run_config as configs
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ServerStartError
from fl_queue.experiments import demo as demos
from fl_queue.experiments import launching
from fl_queue.reporting import progress, rich_console
from fl_queue.store import RunState
from fl_queue.store.embedded import redis_server, server_pair


@click.command("redis")
@click.option("--tcp", is_flag=True, help="Listen on free loopback ports too, behind a password.")
@connection_options
def redis_command(where: Where, tcp: bool) -> None:
    """Run the private redis-servers in the foreground, and say how to redis-cli into them."""

    interrupt_on_sigterm()
    with server_pair.start(where.state_dir, tcp=tcp) as servers:
        say(f"control: {servers.url}")
        say(f"         {cli_line(servers.url)}")
        say(f"data:    {servers.blob_url}")
        say(f"         {cli_line(servers.blob_url)}")
        say("Other fl-queue commands of this user find them by themselves. Ctrl-C stops them.")
        sys.stdout.flush()
        while True:
            time.sleep(1.0)
            for role, url in (("control", servers.url), ("data", servers.blob_url)):
                # A second, longer question: one that is busy is not dead.
                if not (redis_server.answers(url) or redis_server.answers(url, timeout_s=10.0)):
                    log = where.state_dir / role / "redis.log"
                    reason = f"the private {role} server ended; see {log}"
                    raise ServerStartError(str(where.state_dir), reason)


def interrupt_on_sigterm() -> None:
    """Have SIGTERM end this process as Ctrl-C does, so that what it started is stopped."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def cli_line(url: str) -> str:
    """The redis-cli command into a server."""
    if url.startswith("unix://"):
        return f"redis-cli -s {url.removeprefix('unix://').split('?')[0]}"
    parts = urlsplit(url)
    # Not `-u`: every user of the machine may read the arguments of a process.
    return f"REDISCLI_AUTH={parts.password or ''} redis-cli -h {parts.hostname} -p {parts.port}"


@click.command("start-round")
@config_argument(metavar="CONFIG")
@click.option(
    "--run",
    "name",
    default="",
    metavar="NAME",
    help="Name of the run. Default: that of the config. A run that exists is continued.",
)
@click.option(
    "--rounds",
    "count",
    type=click.IntRange(min=1),
    help="Rounds to commit. Default: run.rounds of the config.",
)
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Show progress until the run has ended.",
)
@set_option()
@connection_options
@signing_option
def start_round(
    where: Where, config: str, name: str, count: int | None, wait: bool, overrides: tuple[str, ...]
) -> None:
    """
    Start a run, or continue it from its newest version.

    CONFIG is a TOML file, or the name of a shipped one (demo, mnist-2nn, ...). The run needs no
    coordinator: it goes on when this command ends. A simulation needs nothing at all: what it lacks
    (Redis, aggregator, pool, evaluator) is started, and ends with this command.
    """
    loaded = configs.load(config, overrides)
    where = where_of_run(where, loaded)
    name = name or launching.default_run_name(config)
    if loaded.is_simulation:
        interrupt_on_sigterm()
    with ExitStack() as ours:
        site = where.site()
        begun = launching.launch(
            ours, site, name, loaded, count, stays=wait, console=rich_console.console(stderr=True)
        )
        if begun.store.control.enrolments.pins.key is not None:
            complain(f"Signed config {loaded.digest}")
        if wait:
            follow_to_end(where, begun.run, begun.since, goes_on=not begun.is_alone)
        else:
            say(begun.run)
            say(f"Started; watch it with `fl-queue watch {name}`.", err=True)


def where_of_run(where: Where, loaded: RunConfig) -> Where:
    """The servers the command line names, else those of the config, which has the environment in it."""
    context = click.get_current_context()

    def chosen(option: str, given: str, configured: str) -> str:
        on_command_line = context.get_parameter_source(option) is ParameterSource.COMMANDLINE
        return given if on_command_line else configured

    return replace(
        where,
        url=chosen("redis_url", where.url, loaded.redis["url"]),
        blob_url=chosen("blob_url", where.blob_url, loaded.redis["blob_url"]),
    )


def follow_to_end(where: Where, run: str, since: str = "", goes_on: bool = True) -> None:
    """
    Show progress after the event ``since`` until the run has ended, then its table.

    Args:
        goes_on: Whether the run does when this command is interrupted.

    Raises:
        RunFailed: It failed, or was cancelled.
    """
    store = where.open_control()
    name = runs.find_run(store, run).name
    try:
        progress.follow(store, run, rich_console.console(stderr=True), since=since)
    except KeyboardInterrupt:
        how = f"goes on; watch it with `fl-queue watch {name}`"
        stops = "has stopped; the same command goes on with it"
        say("", err=True)
        say(f"Run {name} {how if goes_on else stops}.", err=True)
        raise

    def conclude() -> RunState:
        progress.await_evaluations(store, run, rich_console.console(stderr=True))
        progress.print_table(store, run)
        return runs.find_run(store, run)

    # Whoever has waited for the run waits for its table, too.
    ended = outages.ride_out(conclude, complain)
    runs.raise_unless_completed(ended)


@click.command("demo")
@click.option(
    "--clients", default=4, show_default=True, type=click.IntRange(1, 64), help="Client workers."
)
@click.option(
    "--rounds",
    "count",
    default=5,
    show_default=True,
    type=click.IntRange(min=1),
    help="Rounds to commit.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("fl-queue-demo"),
    show_default=True,
    help="Folder for the model, the plot and the logs.",
)
@set_option("Override a field of config/demo.toml.")
def demo(clients: int, count: int, output: Path, overrides: tuple[str, ...]) -> None:
    """
    Everything on this machine: private Redis, workers, rounds on real MNIST, a model and a plot.

    All processes it starts end with it.
    """
    interrupt_on_sigterm()
    demos.run(clients, count, output, overrides, cli_line)
