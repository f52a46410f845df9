"""
The command ``worker``, which is started again after every kill: it imports as little as it can.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import click

from fl_queue.cli.groups import Group
from fl_queue.cli.options import (
    Command,
    Where,
    check_tasks,
    connection_options,
    data_folder,
    say,
    signing_option,
    strategy_option,
)
from fl_queue.client import quiet_hours as hours
from fl_queue.client.site import MIN_EXAMPLES, WorkerSettings
from fl_queue.common.own_modules import python_command
from fl_queue.errors import ConfigError
from fl_queue.protocol import identifiers
from fl_queue.store import credentials

_DIGEST = re.compile(r"[0-9a-f]{64}")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@click.group(cls=Group)
def worker() -> None:
    """
    Run a worker: a supervisor that keeps one RQ worker process going.

    The first Ctrl-C (or SIGTERM) stops it when the job at work is done, the second at once.
    """


def _task_options(command: Command) -> Command:
    for option in (
        click.option(
            "--data",
            default="",
            help="Folder of this site's data. A task reads what lies in it, links followed.",
        ),
        click.option(
            "--data-from-config",
            is_flag=True,
            help="Without --data: let data.dir of the config choose any folder of this machine.",
        ),
        click.option(
            "--task-allow",
            multiple=True,
            metavar="TASK",
            help="Train this task and no other: MODULE:NAME (a class or a function), MODULE:* (all that "
            "are defined there), or a built-in one (csv, image-folder, mnist); may be repeated. "
            "Default: all built-in ones.",
        ),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
        click.option(
            "--threads", default=1, show_default=True, help="CPU threads of a training job."
        ),
    ):
        command = option(command)
    return command


def _loader_option(command: Command) -> Command:
    # Not of a pool, whose processes fork nothing: it has one for each core already.
    return click.option(
        "--loader-workers",
        default=0,
        type=click.IntRange(min=0, max=64),
        help="Processes that read and decode samples beside the training, for images in files. Default: none.",
    )(command)


def _credentials_option(command: Command) -> Command:
    return click.option(
        "--credentials",
        "file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="File of `fl-queue enroll`: names Redis, and holds the secrets for it.",
    )(command)


@worker.command("client")
@click.option(
    "--client",
    default="",
    metavar="ID",
    help="This data owner's id: letters, digits, dashes. Not needed with --credentials.",
)
@_credentials_option
@_task_options
@_loader_option
@click.option(
    "--max-examples",
    default=0,
    type=click.IntRange(min=0),
    help="Train with at most so many of this site's examples, the same in each round of a run. Default: all.",
)
@click.option(
    "--min-examples",
    default=MIN_EXAMPLES,
    show_default=True,
    type=click.IntRange(min=1),
    help="Train with no fewer of this site's examples, and tell metrics of no fewer, whatever a config wants.",
)
@click.option(
    "--min-batch",
    type=click.IntRange(min=1),
    help="Make no step of the training, and no update, of fewer examples, whatever batch size and learning rate a config "
    f"wants; 1: any. Default: as --min-examples, and at most {MIN_EXAMPLES}.",
)
@click.option(
    "--quiet-hours",
    multiple=True,
    metavar="HH:MM-HH:MM",
    help="Train for nobody in these hours of this machine's clock; may be repeated, and go over midnight.",
)
@click.option(
    "--approve",
    is_flag=True,
    help="Updates and evaluations wait in the outbox until somebody here says `fl-queue approve`.",
)
@click.option(
    "--pin-config",
    "pins",
    multiple=True,
    metavar="DIGEST|FILE",
    help="Serve only runs of this config, by its digest (`fl-queue config show --digest`) or as a file; may be repeated.",
)
@connection_options
def worker_client(
    where: Where,
    client: str,
    file: Path | None,
    data: str,
    data_from_config: bool,
    task_allow: tuple[str, ...],
    device: str,
    threads: int,
    loader_workers: int,
    max_examples: int,
    min_examples: int,
    min_batch: int | None,
    quiet_hours: tuple[str, ...],
    approve: bool,
    pins: tuple[str, ...],
) -> None:
    """
    Train for one data owner, on its own machine, with its own data.

    What this site gives is decided here, and nothing on Redis changes it. `fl-queue pause` stops the
    training for a while.
    """
    if 0 < max_examples < min_examples:
        raise ConfigError(
            "--max-examples",
            f"{max_examples} is fewer than --min-examples = {min_examples}: nothing would be trained; "
            "raise the one, or lower the other",
        )
    if min_batch is not None and min_batch > min_examples:
        raise ConfigError(
            "--min-batch",
            f"{min_batch} is more than --min-examples = {min_examples}: who has fewer could make no step; "
            "raise the one, or lower the other",
        )
    client = _enrolled_as(file, client)
    if not client:
        raise ConfigError("--client", "is missing; name the client, or give --credentials FILE")
    if not identifiers.is_name(client) or client in identifiers.RESERVED:
        reserved = ", ".join(identifiers.RESERVED)
        raise ConfigError(
            "--client",
            f"{client!r} is not a client id; use letters, digits and dashes, at most 63, and none of {reserved}",
        )
    site = replace(
        _site(where, data, task_allow, device, threads, client, file),
        data_from_config=data_from_config,
        max_examples=max_examples,
        min_examples=min_examples,
        min_batch=min_batch or 0,
        approve=approve,
        pins=tuple(map(_pinned, pins)),
        loader_workers=loader_workers,
        quiet_hours=tuple(str(hours.parse(span)) for span in quiet_hours),
    )
    _say_idle(f"client {site.client}", site)
    _become_worker("client", site)


@worker.command("evaluator")
@_credentials_option
@_task_options
@_loader_option
@connection_options
def worker_evaluator(
    where: Where,
    file: Path | None,
    data: str,
    data_from_config: bool,
    task_allow: tuple[str, ...],
    device: str,
    threads: int,
    loader_workers: int,
) -> None:
    """Score every version on the task's test set, beside the rounds."""
    if file is not None:
        _enrolled_as(file, identifiers.EVALUATOR)
    site = replace(
        _site(where, data, task_allow, device, threads, file=file),
        data_from_config=data_from_config,
        loader_workers=loader_workers,
    )
    _say_idle("the evaluator", site)
    _become_worker("evaluator", site)


@worker.command("pool")
@click.option(
    "--min-examples",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Train no virtual client with fewer examples, and tell metrics of no fewer.",
)
@click.option(
    "--processes",
    default=0,
    type=click.IntRange(min=0),
    help="Processes, of one thread each. Default: as many as cores.",
)
@_task_options
@connection_options
def worker_pool(
    where: Where,
    processes: int,
    min_examples: int,
    data: str,
    data_from_config: bool,
    task_allow: tuple[str, ...],
    device: str,
    threads: int,
) -> None:
    """Train the virtual clients of simulations; on one machine or several."""
    count = processes or len(os.sched_getaffinity(0))
    site = _site(where, data, task_allow, device, threads)
    _become_worker(
        "pool", replace(site, data_from_config=data_from_config, min_examples=min_examples), count
    )


@worker.command("aggregator")
@strategy_option
@connection_options
@signing_option
def worker_aggregator(where: Where, strategy_allow: tuple[str, ...]) -> None:
    """Merge updates into versions, write checkpoints, and heal what dies."""
    site = replace(_site(where, "", (), "cpu", 1), strategy_allow=strategy_allow)
    _become_worker("aggregator", site)


def _pinned(given: str) -> str:
    """
    Digest of a config that this site consents to.

    Raises:
        ConfigError: It is no digest, and no config either.
    """
    if _DIGEST.fullmatch(given):
        return given
    from fl_queue.config import run_config as configs

    # Overrides and the environment of this machine are not the operator's: the file alone counts.
    return configs.load(given, (), {}).digest


def _enrolled_as(file: Path | None, client: str) -> str:
    """The client that credentials are of; the one that was named, if there are none."""
    if file is None:
        return client
    found = credentials.read(file).client
    if client and found != client:
        raise ConfigError("--credentials", f"{file} is of {found}, not of {client}")
    return found


def _site(
    where: Where,
    data: str,
    allow: tuple[str, ...],
    device: str,
    threads: int,
    client: str = "",
    file: Path | None = None,
) -> WorkerSettings:
    if not _DEVICE.fullmatch(device):
        raise ConfigError("--device", f"{device!r} is not cpu, cuda or cuda:N")
    if threads < 1:
        raise ConfigError("--threads", f"{threads} is too few; use 1 or more")
    folder = data_folder(data)
    check_tasks("--task-allow", allow)
    return replace(
        where.site(),
        client=client,
        data_dir=folder,
        allow=allow,
        device=device,
        threads=threads,
        credentials=str(file.absolute()) if file is not None else "",
    )


def idle_parts(device: str, threads: int, cores: int, has_gpu: bool) -> str:
    """What a training leaves idle of its machine, and the options that use it, as a line; empty: nothing."""
    if device != "cpu":
        return ""
    found = []
    if has_gpu:
        found.append("an NVIDIA GPU, for --device cuda")
    if cores > threads:
        found.append(f"{cores} cores, for --threads")
    return (
        f"trains on the CPU with --threads {threads}; here are {' and '.join(found)}"
        if found
        else ""
    )


def _say_idle(who: str, site: WorkerSettings) -> None:
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*"))
    line = idle_parts(site.device, site.threads, len(os.sched_getaffinity(0)), has_gpu)
    if line:
        say(f"{who} {line}", err=True)


def _become_worker(role: str, site: WorkerSettings, processes: int = 1) -> None:
    # The supervisor takes this process's place, so that its pid is the one that was started.
    command = python_command("-m", "workers.supervisor", role, "--processes", str(processes))
    os.execve(sys.executable, command, {**os.environ, **site.to_environ()})
