"""``fl-queue worker``. It is started again after every crash, so it imports as little as it can."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import click

from fl_queue.cli.groups import Group
from fl_queue.cli.options import (
    Command,
    Deployment,
    check_tasks,
    collect,
    connection_options,
    data_folder,
    device_option,
    file_option,
    signing_option,
    strategy_option,
    threads_option,
)
from fl_queue.cli.output import warn
from fl_queue.client import quiet_hours as hours
from fl_queue.client.site import MIN_COHORT, MIN_EXAMPLES, WorkerSettings
from fl_queue.common.own_modules import python_command
from fl_queue.errors import ConfigError
from fl_queue.protocol import identifiers, parties
from fl_queue.store import credentials

_DIGEST = re.compile(r"[0-9a-f]{64}")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class TrainingOptions:
    """Data, tasks and hardware of a worker that trains or evaluates."""

    data: str
    data_from_config: bool
    task_allow: tuple[str, ...]
    device: str
    threads: int

    def apply(self, settings: WorkerSettings) -> WorkerSettings:
        """Check these options and add them to a worker's settings. Raises ConfigError, DataError."""
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError("--device", f"{self.device!r} is not cpu, cuda or cuda:N")
        folder = data_folder(self.data)
        check_tasks("--task-allow", self.task_allow)
        return replace(
            settings,
            data_dir=folder,
            data_from_config=self.data_from_config,
            allow=self.task_allow,
            device=self.device,
            threads=self.threads,
        )


@dataclass(frozen=True)
class TrainerOptions:
    """Training processes of a worker, and when they end."""

    trainers: int
    trainer_jobs: int
    trainer_bytes: int
    devices: str

    def apply(self, settings: WorkerSettings) -> WorkerSettings:
        """Check these options and add them to a worker's settings. Raises ConfigError."""
        devices = _several(self.devices)
        if devices and settings.device != "cpu":
            raise ConfigError("--devices", "names what --device does; give one of the two")
        return replace(
            settings,
            device=devices[0] if devices else settings.device,
            devices=devices if len(devices) > 1 else (),
            trainers=self.trainers,
            trainer_jobs=self.trainer_jobs,
            trainer_bytes=self.trainer_bytes,
        )


def _several(given: str) -> tuple[str, ...]:
    """
    The devices that an option lists.

    Raises:
        ConfigError: One is no device, or they cannot train one model together.
    """
    devices = tuple(one.strip() for one in given.split(",")) if given else ()
    for one in devices:
        if not re.fullmatch(r"cpu|cuda:\d+", one):
            raise ConfigError("--devices", f"{one!r} is not cpu or cuda:N, as in cuda:0,cuda:1")
    kinds = {one.partition(":")[0] for one in devices}
    if len(kinds) > 1:
        raise ConfigError("--devices", f"{given} has devices of two kinds; name those of one")
    if kinds == {"cuda"} and len(set(devices)) < len(devices):
        raise ConfigError("--devices", f"{given} has one twice; name each once")
    return devices


@dataclass(frozen=True)
class SiteRules:
    """Rules of a site: limits of examples, hours, approval, configs."""

    max_examples: int
    min_examples: int
    min_batch: int | None
    quiet_hours: tuple[str, ...]
    approve: bool
    pins: tuple[str, ...]
    policy: Path | None
    peers: Path | None
    require_secure: bool
    min_cohort: int

    def apply(self, settings: WorkerSettings) -> WorkerSettings:
        """Check these options and add them to a worker's settings. Raises ConfigError."""
        if 0 < self.max_examples < self.min_examples:
            raise ConfigError(
                "--max-examples",
                f"{self.max_examples} is fewer than --min-examples = {self.min_examples}, so nothing would be "
                "trained; raise the one, or lower the other",
            )
        if self.min_batch is not None and self.min_batch > self.min_examples:
            raise ConfigError(
                "--min-batch",
                f"{self.min_batch} is more than --min-examples = {self.min_examples}, so a client with fewer "
                "examples could make no step; raise the one, or lower the other",
            )
        return replace(
            settings,
            max_examples=self.max_examples,
            min_examples=self.min_examples,
            min_batch=self.min_batch or 0,
            approve=self.approve,
            policy=_policy_file(self.policy),
            peers=_peers_file(self.peers),
            require_secure=self.require_secure,
            min_cohort=self.min_cohort,
            pins=tuple(map(_config_digest, self.pins)),
            quiet_hours=tuple(str(hours.parse(span)) for span in self.quiet_hours),
        )


@click.group(cls=Group)
def worker() -> None:
    """
    Run a worker: client, aggregator, evaluator or pool.

    A supervisor restarts the worker process when it dies. The first Ctrl-C (or SIGTERM) stops it when
    its job is done, the second at once.
    """


training_options = collect(
    "training",
    TrainingOptions,
    click.option(
        "--data",
        default="",
        metavar="FOLDER",
        help="Data folder of this machine. A task reads files inside it only; a link that leads out is refused.",
    ),
    click.option(
        "--data-from-config",
        is_flag=True,
        help="Without --data: let data.dir of a run's config name any folder of this machine.",
    ),
    click.option(
        "--task-allow",
        multiple=True,
        metavar="TASK",
        help="Load this task and no other: MODULE:NAME (a class or function), MODULE:* (all that the "
        "module defines), or a built-in one (csv, image-folder, mnist); may be repeated. Default: all "
        "built-in ones.",
    ),
    device_option,
    threads_option,
)

trainer_options = collect(
    "processes",
    TrainerOptions,
    click.option(
        "--trainers",
        default=2,
        show_default=True,
        type=click.IntRange(min=1, max=64),
        help="Keep this many training processes, one for each run; the least recently used one ends first.",
    ),
    click.option(
        "--trainer-jobs",
        default=0,
        show_default=True,
        type=click.IntRange(min=0),
        help="End a training process after this many jobs; 1: a fresh one for each; 0: when it is not needed any "
        "more. One that stays keeps its task and data from round to round, until files that it has read change "
        "or a job has changed what the next one could see.",
    ),
    click.option(
        "--trainer-bytes",
        default=0,
        type=click.IntRange(min=0),
        metavar="BYTES",
        help="End training processes between two jobs when they keep more memory than this. Default: half of "
        "what this machine, or its cgroup, has.",
    ),
    click.option(
        "--devices",
        default="",
        metavar="DEVICE,DEVICE",
        help="Share each batch over these devices (cuda:0,cuda:1), each in a process of its own with --threads "
        "threads; for tasks that train by the default loop. Default: --device alone.",
    ),
)

site_rules = collect(
    "rules",
    SiteRules,
    click.option(
        "--max-examples",
        default=0,
        type=click.IntRange(min=0),
        help="Train with at most this many examples, the same ones in each round of a run. Default: all.",
    ),
    click.option(
        "--min-examples",
        default=MIN_EXAMPLES,
        show_default=True,
        type=click.IntRange(min=1),
        help="Do not train with fewer examples, and report no metrics of fewer, whatever the config.",
    ),
    click.option(
        "--min-batch",
        type=click.IntRange(min=1),
        help="Make no training step, and no update, from fewer examples, whatever the config's batch size "
        f"and learning rate; 1: any. Default: --min-examples, and at most {MIN_EXAMPLES}.",
    ),
    click.option(
        "--quiet-hours",
        multiple=True,
        metavar="HH:MM-HH:MM",
        help="Do not train during these hours, local time; may be repeated, and pass midnight.",
    ),
    click.option(
        "--approve",
        is_flag=True,
        help="Hold updates and evaluations back until `fl-queue approve` is run at this site.",
    ),
    click.option(
        "--pin-config",
        "pins",
        multiple=True,
        metavar="DIGEST|FILE",
        help="Serve runs of this config alone: its digest (`fl-queue config show --digest`), or its file; "
        "may be repeated.",
    ),
    file_option(
        "--policy",
        help="File of the rules for questions about tables (`fl-queue policy show`); an edit holds from the next "
        "job on.",
    ),
    file_option(
        "--peers",
        help="Share a secure round with these clients only: a file of `fl-queue parties`, whose fingerprints the "
        "site has compared.",
    ),
    click.option(
        "--require-secure",
        is_flag=True,
        help="Answer no round in clear: nothing of this site's data leaves it but in secure rounds (secure.enabled).",
    ),
    click.option(
        "--min-cohort",
        default=MIN_COHORT,
        type=click.IntRange(min=MIN_COHORT),
        help="Share a secure round with no fewer clients, this one among them.",
    ),
)


def _peers_file(file: Path | None) -> str:
    """Check the file of the site's peers. Raises ConfigError."""
    if file is None:
        return ""
    parties.read(file)
    return str(file.absolute())


def _policy_file(file: Path | None) -> str:
    from fl_queue.client import policy

    if policy.read(path := policy.checked_file(file)).trees == "clear":
        warn(policy.TREES_IN_CLEAR)
    return path


def _loader_option(command: Command) -> Command:
    # Not for a pool: it has one process for each core already, and they do not fork.
    return click.option(
        "--loader-workers",
        default=0,
        type=click.IntRange(min=0, max=64),
        help="Extra processes that read and decode samples, for image files. Default: none.",
    )(command)


_compile_option = click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Train with torch.compile, for tasks whose batches have one shape. It needs a C++ compiler, takes a minute "
    "and more before the first round, and pays for large models on GPUs; `fl-queue try-task --compile` measures it.",
)
_credentials_option = file_option(
    "--credentials", "file", help="File of `fl-queue enroll`, with the URLs and secrets of Redis."
)


@dataclass(frozen=True)
class _Identity:
    """The client that a worker serves, and the files with its secrets."""

    client: str
    file: Path | None
    key_file: Path | None

    def apply(self, settings: WorkerSettings) -> WorkerSettings:
        """Check these options and add them to a worker's settings. Raises ConfigError."""
        client = _checked_client(_enrolled_as(self.file, self.client))
        if self.key_file is not None and self.file is None:
            raise ConfigError(
                "--key", "needs --credentials, the file of `fl-queue enroll --public-key`"
            )
        key = str(self.key_file.absolute()) if self.key_file is not None else ""
        settings = replace(settings, client=client, key=key)
        settings.signing_key  # noqa: B018 - refused here if it cannot be used
        return settings


@worker.command("client")
@collect(
    "who",
    _Identity,
    click.option(
        "--client",
        default="",
        metavar="ID",
        help="This data owner's id: letters, digits, dashes. Not needed with --credentials.",
    ),
    _credentials_option,
    file_option(
        "--key",
        "key_file",
        help="This site's signing key, made by `fl-queue keygen`, of a client that was enrolled with --public-key.",
    ),
)
@training_options
@_loader_option
@_compile_option
@trainer_options
@site_rules
@connection_options
def worker_client(
    deployment: Deployment,
    who: _Identity,
    training: TrainingOptions,
    loader_workers: int,
    compiled: bool,
    processes: TrainerOptions,
    rules: SiteRules,
) -> None:
    """
    Train for one data owner, on its own data.

    These options decide what the site shares; nothing in Redis or in a run's config can change them.
    `fl-queue pause` stops the training for a while.
    """
    settings = who.apply(_settings(deployment, who.file))
    settings = replace(settings, loader_workers=loader_workers, compiled=compiled)
    settings = rules.apply(processes.apply(training.apply(settings)))
    if settings.compiled and settings.devices:
        raise ConfigError("--compile", "is for one device; leave it or --devices out")
    _warn_of_idle_hardware(f"client {settings.client}", settings)
    _become_worker("client", settings)


@worker.command("evaluator")
@_credentials_option
@training_options
@_loader_option
@trainer_options
@connection_options
def worker_evaluator(
    deployment: Deployment,
    file: Path | None,
    training: TrainingOptions,
    loader_workers: int,
    processes: TrainerOptions,
) -> None:
    """Test every model version on the task's test set."""
    if file is not None:
        _enrolled_as(file, identifiers.EVALUATOR)
    settings = replace(_settings(deployment, file), loader_workers=loader_workers)
    settings = processes.apply(training.apply(settings))
    _warn_of_idle_hardware("the evaluator", settings)
    _become_worker("evaluator", settings)


@worker.command("pool")
@click.option(
    "--min-examples",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Train no virtual client with fewer examples, and report no metrics of fewer.",
)
@click.option(
    "--processes",
    default=0,
    type=click.IntRange(min=0),
    help="Number of processes; each trains with --threads threads. Default: one for each core.",
)
@training_options
@connection_options
def worker_pool(
    deployment: Deployment, processes: int, min_examples: int, training: TrainingOptions
) -> None:
    """Train the virtual clients of simulations."""
    count = processes or len(os.sched_getaffinity(0))
    settings = replace(deployment.site(), min_examples=min_examples)
    _become_worker("pool", training.apply(settings), count)


@worker.command("aggregator")
@strategy_option
@connection_options
@signing_option
def worker_aggregator(deployment: Deployment, strategy_allow: tuple[str, ...]) -> None:
    """Merge updates into model versions, and repair failed jobs."""
    _become_worker("aggregator", replace(deployment.site(), strategy_allow=strategy_allow))


def _settings(deployment: Deployment, file: Path | None) -> WorkerSettings:
    named = str(file.absolute()) if file is not None else ""
    return replace(deployment.site(), credentials=named)


def _config_digest(given: str) -> str:
    """
    Find the digest of a config that this site serves.

    Raises:
        ConfigError: It is neither a digest nor a config.
    """
    if _DIGEST.fullmatch(given):
        return given
    from fl_queue.config import loading

    # The operator's machine has other variables, so those of this one are left out.
    return loading.load(given, (), {}).digest


def _enrolled_as(file: Path | None, client: str) -> str:
    """Read the client of a credentials file; ``client`` without a file. Raises ConfigError."""
    if file is None:
        return client
    found = credentials.read(file).client
    if client and found != client:
        raise ConfigError("--credentials", f"{file} is of {found}, not of {client}")
    return found


def _checked_client(client: str) -> str:
    if not client:
        raise ConfigError("--client", "is missing; name the client, or give --credentials FILE")
    if not identifiers.is_name(client) or client in identifiers.RESERVED:
        reserved = ", ".join(identifiers.RESERVED)
        raise ConfigError(
            "--client",
            f"{client!r} is not a client id; use letters, digits and dashes, at most 63, and none of {reserved}",
        )
    return client


def idle_parts(device: str, threads: int, cores: int, has_gpu: bool) -> str:
    """Describe hardware that a training leaves unused, and the options for it; empty if there is none."""
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


def _warn_of_idle_hardware(name: str, settings: WorkerSettings) -> None:
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*"))
    cores = len(os.sched_getaffinity(0))
    if line := idle_parts(settings.device, settings.threads, cores, has_gpu):
        warn(f"{name} {line}")


def _become_worker(role: str, settings: WorkerSettings, processes: int = 1) -> None:
    # The supervisor replaces this process, so that it keeps the pid that the caller knows.
    command = python_command("-m", "workers.supervisor", role, "--processes", str(processes))
    os.execve(sys.executable, command, {**os.environ, **settings.to_environ()})
