"""
The ``fl-queue`` command. Library code raises; here an error becomes one line and an exit code.

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import cast

import click

from fl_queue._version import __version__
from fl_queue.cli.groups import Group
from fl_queue.common import escaping, logs
from fl_queue.errors import FLQueueError, StoreUnavailable

log = logging.getLogger(__name__)

EXIT_UNEXPECTED = 1
EXIT_INTERRUPTED = 130
#: Command -> module and name of the object, and its line in `fl-queue --help`: what the first line of
#: its own help says, here so that nothing has to be imported for it.
COMMANDS = {
    "demo": (
        "start:demo",
        "Everything on this machine: private Redis, workers, rounds on real MNIST, a model and a plot.",
    ),
    "start-round": ("start:start_round", "Start a run, or continue it from its newest version."),
    "new": (
        "new:new",
        "Write a small task of your own that runs at once: code, config, test, README.",
    ),
    "redis": (
        "start:redis_command",
        "Run the private redis-servers in the foreground, and say how to redis-cli into them.",
    ),
    "worker": (
        "worker:worker",
        "Run a worker: a supervisor that keeps one RQ worker process going.",
    ),
    "enroll": ("enrolment:enroll", "Create what CLIENT needs to take part, in one file."),
    "revoke": ("enrolment:revoke", "End the part of CLIENT."),
    "approve": (
        "site:approve",
        "At a site: show the updates that wait to leave it, or let UPDATE leave.",
    ),
    "pause": ("site:pause", "At a site: let CLIENT take no new work, until `fl-queue unpause`."),
    "unpause": ("site:unpause", "At a site: let CLIENT take part again, from the next round on."),
    "web": (
        "web:web",
        "Serve the page that shows and steers runs, and the JSON API.",
    ),
    "resume": ("lifecycle:resume", "Have RUN go on after a failure or a cancel."),
    "cancel": ("lifecycle:cancel", "Stop RUN; its model and history stay."),
    "redrive": ("lifecycle:redrive", "Show why jobs of RUN failed; try them again."),
    "delete": ("lifecycle:delete", "Delete RUN whole."),
    "verify": ("lifecycle:verify_command", "Recompute rounds of RUN; compare digests."),
    "status": (
        "inspect:status",
        "What all runs are doing, or RUN in detail: what an open round waits for.",
    ),
    "watch": ("inspect:watch", "Show the live progress of RUN until it has ended."),
    "history": (
        "inspect:history",
        "The rounds of RUN as a table; with --json also the full records.",
    ),
    "clients": (
        "inspect:clients",
        "Every client ever heard of: alive or not, examples, where it runs, what it did last.",
    ),
    "events": (
        "inspect:events",
        "The events of RUN, oldest first; with --json one document a line.",
    ),
    "compare": (
        "compare:compare_command",
        "Runs side by side: how good, how long, and the config fields in which they differ.",
    ),
    "sweep": (
        "experiment:sweep",
        "Train CONFIG with several seeds, one run after the other; mean and spread.",
    ),
    "baseline": (
        "experiment:baseline",
        "Train CONFIG without a federation: each client alone, or one model on all data.",
    ),
    "try-task": (
        "compare:try_task",
        "Train one local round of CONFIG here, without Redis: its time, memory and update size.",
    ),
    "metrics": (
        "export:metrics",
        "Write the numbers of RUN where TensorBoard, MLflow or a spreadsheet reads them.",
    ),
    "prometheus": (
        "export:prometheus",
        "Answer Prometheus at /metrics: rounds, updates, queues, clients, the healer.",
    ),
    "plot": ("inspect:plot", "Draw accuracy and loss of RUN by version."),
    "export": (
        "export:export",
        "Write a model version of RUN as safetensors, torch state dict or ONNX, and a model card.",
    ),
    "inspect": (
        "inspect:inspect",
        "What became of the update of CLIENT in a round of RUN: its receipt.",
    ),
    "completion": (
        "completion:completion",
        "Print the script that completes commands, options, RUNs and CONFIGs in your shell.",
    ),
    "config": ("inspect:config_group", "Look at configs."),
    "partition": (
        "partition:partition_command",
        "Show what data.partition of CONFIG gives to each client: examples, labels, skew.",
    ),
    "doctor": (
        "inspect:doctor_command",
        "Check both Redis roles, clocks, workers and data, and say what to do.",
    ),
    "backup": (
        "backup:backup",
        "Write RUN whole to one file: config, history, newest and best model.",
    ),
    "acl": (
        "acl:acl_command",
        "Print the Redis users of CLIENTs, or of the operator's side, and their rules.",
    ),
    "restore": (
        "backup:restore",
        "Make a run from FILE, which `fl-queue backup` wrote, on a Redis that has none of that name.",
    ),
}


class _Lazy(Group):
    """A command's module is imported when the command is asked for: a restarted worker is in a hurry."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        return cast(click.Command, getattr(importlib.import_module(f"fl_queue.cli.{module}"), name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fl-queue")
@click.option(
    "--log-format",
    envvar=logs.VARIABLE,
    type=click.Choice(logs.FORMATS),
    default=logs.TEXT,
    help="How logs on standard error are written, by this command and what it starts.",
)
def cli(log_format: str) -> None:
    """
    Federated learning as a message-queue pipeline over Redis.

    Start with `fl-queue demo`. A federation needs a Redis, `fl-queue worker aggregator`, one
    `fl-queue worker client --client ID` for each data owner, and `fl-queue start-round CONFIG`.

    Exit codes: 0 ok, 1 unexpected, 2 usage or config, 3 bad blob or data, 4 round abandoned or
    run failed, 5 Redis unreachable, 130 interrupted.
    """
    if log_format != os.environ.get(logs.VARIABLE, logs.TEXT):
        os.environ[logs.VARIABLE] = log_format
    logs.set_up(logging.WARNING, "%(levelname)s %(name)s: %(message)s")


def main() -> None:
    """Run the command line; the console script ``fl-queue``."""
    sys.exit(_run())


def _run() -> int:
    try:
        cli(standalone_mode=False)
    except FLQueueError as exc:
        return _fail(str(exc), exc.exit_code)
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has enough; nothing more can be written, not even at exit.
        sys.stdout = None
    except Exception as exc:
        from fl_queue.store.error_translation import in_words, is_redis

        if not is_redis(exc):
            raise
        # Nothing of a Redis server is a fault of the program: one line, as of any other error of it.
        return _fail(f"Redis: {' '.join(in_words(exc).split())}", StoreUnavailable.exit_code)
    return 0


def _fail(line: str, exit_code: int) -> int:
    if logs.is_json():
        log.error("%s", line, extra={"exit_code": exit_code})
    else:
        click.echo(f"Error: {escaping.line(line)}", err=True)
    return exit_code
