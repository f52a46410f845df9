"""
Train one local round of a config on this machine, without Redis: its time, memory and update size.

The code is that of a client's worker (load the task, describe its data, build the model, train, write and
pack an update) and that of the aggregator (read the message, check and merge it). Nothing is stored, and
nothing is sent. Imports torch.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fl_queue import metrics
from fl_queue.aggregation.merge import UpdateMerger
from fl_queue.client import disclosure, local_update, outbox, update_message
from fl_queue.client.version_zero import Fill, VersionZero, version_zero
from fl_queue.config import metric_choice
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.aggregator.authentication import LARGEST_MODEL_BYTES
from fl_queue.errors import DataError, MessageError
from fl_queue.experiments import twice
from fl_queue.models import initial
from fl_queue.protocol import message, virtual_clients
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest
from fl_queue.strategies import get_strategy
from fl_queue.tasks import calls
from fl_queue.tasks.base import ClientData, Task, code_digest
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task
from fl_queue.tasks.site_facts import facts_of
from fl_queue.training import compiled as compiling

CLIENT = "site-1"
RUN = "try-task"


@dataclass(frozen=True)
class Trial:
    """
    Result of one client's part in one round.

    Args:
        client: Whose data was used.
        parameters: Numbers in the model, buffers included.
        frozen: How many of them are not trained; they are not sent.
        model_bytes: The model: what is trained as float32, what is frozen as it is.
        update_bytes: The update's body, as ``update.codec`` has it.
        num_examples, num_validation: Samples.
        unused: Files and texts of the data folder that are not used, or not as they are: kind -> number.
        base: Finished validation metrics before the training; empty without validation data.
        trained: The same after it.
        logged: Means that the training logged or reported, other than the loss.
        data_s: Seconds of loading the task, the model and the data, until the training began.
        train_s: Seconds of the training itself.
        compile_s: Seconds in which ``torch.compile`` was at work, of all the above; 0 without it.
        peak_bytes: Peak memory of this process, torch included.
        largest: Largest magnitude in the update's parameters.
        limit: What ``aggregation.limit`` allows.
        problem: Why the aggregator would reject the update, or the run would end after its first round;
            empty if there is none.
        leaves: Everything that a site would send, see ``disclosure``; empty unless it is wanted.
    """

    client: str
    parameters: int
    frozen: int
    model_bytes: int
    update_bytes: int
    num_examples: int
    num_validation: int
    unused: Mapping[str, int]
    base: Mapping[str, float]
    trained: Mapping[str, float]
    logged: Mapping[str, float]
    data_s: float
    train_s: float
    peak_bytes: int
    largest: float
    limit: float
    problem: str
    leaves: Mapping[str, Any]
    compile_s: float = 0.0


def run_trial(
    config: RunConfig,
    data_dir: str = "",
    device: str = "cpu",
    threads: int = 1,
    on_epoch: Callable[[int, int, Mapping[str, float]], None] = lambda number, count, found: None,
    max_examples: int = 0,
    show: bool = False,
    compiled: bool = False,
) -> Trial:
    """
    Train round 1 as the first client would. It is public as ``fl_queue.try_task``.

    Args:
        config: Config of a run; its task is imported.
        data_dir: This machine's data; wins over ``data.dir``.
        device, threads: As for ``fl-queue worker client``.
        on_epoch: Called after each epoch with its number, the number of epochs, validation metrics.
        max_examples: As for ``fl-queue worker client``.
        show: Whether to list everything that a site would send.
        compiled: Whether to train with ``torch.compile``, as ``worker client --compile`` does.

    Raises:
        ConfigError, DataError, ModelMismatch: As a client would answer; or no run accepts such a model.
    """
    data_dir = data_dir or config.data.dir
    task = load_task(config.run.task, config, config.allowed_code(), data_dir)
    place = _context(config, data_dir, device, threads)
    context = replace(place, max_examples=max_examples, compiled=compiled)
    started = time.monotonic()
    data, made, base = _prepare(config, task, context)
    last: dict[str, float] = {}

    def report(number: int, count: int, found: Mapping[str, float]) -> None:
        last.clear()
        last.update(found)
        on_epoch(number, count, found)

    plan = local_update.ClientStrategy(get_strategy(config.aggregation.strategy, config.strategy))
    # Without a file, a build with another base part each time is to be an error, as at a site.
    fetch = made.base_body if config.model.initial else None
    trainer = local_update.ClientTrainer(task, made.manifest, base, context, plan, fetch)
    done = trainer.train(report, data=data)
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    measured = _Measured(time.monotonic() - started, peak_bytes, last, dict(data.unused))
    sent = _sent(config, task, context, done, show)
    return _trial(config, context, done, measured, *sent)


def check_twice(
    config: RunConfig,
    data_dir: str = "",
    device: str = "cpu",
    threads: int = 1,
    max_examples: int = 0,
) -> str:
    """
    Train two rounds in fresh processes, and again in one that stays.

    Args:
        config, data_dir, device, threads, max_examples: As for ``run_trial``.

    Returns:
        What was found out, where nothing is wrong.

    Raises:
        DataError: Something differs, or the task has changed what a later round could see; names it.
    """
    data_dir = data_dir or config.data.dir
    if not load_task(config.run.task, config, config.allowed_code(), data_dir).keep:
        return "the task's keep is False: each round has a fresh process"
    context = _context(config, data_dir, device, threads)
    if found := twice.differences(config, replace(context, max_examples=max_examples)):
        raise DataError(
            "task",
            f"a process that stays is not the same as a fresh one. {'. '.join(found)}. Keep nothing on self or in "
            "globals while training, and write into no sample; or set keep = False on the task's class",
        )
    return "two rounds in fresh processes and in one that stays: the same bits"


@dataclass(frozen=True)
class _Measured:
    """Measurements of the training: seconds, memory, last metrics, unread files."""

    seconds: float
    peak_bytes: int
    trained: Mapping[str, float]
    unused: Mapping[str, int]


def _prepare(
    config: RunConfig, task: Task, context: ClientContext
) -> tuple[ClientData, VersionZero, dict[str, np.ndarray[Any, Any]]]:
    """Load the data and version 0, with ``model.initial``. Raises ConfigError, DataError, ModelMismatch."""
    with context.compute.reproducible(context.seed_for("train")):
        data = calls.training_data(task, context)
    data = replace(data, unused={**data.unused, **task.check_data(data)})
    facts_of(task, data)
    made = version_zero(task, config.run.seed, _filling(config))
    # Building the next model may overwrite the arrays.
    base = {name: array.copy() for name, array in made.arrays.items()}
    _check_initial(config, task, context, made.manifest)
    return data, made, base


def _filling(config: RunConfig) -> Fill | None:
    """Gives the arrays of ``model.initial``; None: the model begins as the task builds it."""
    if not config.model.initial:
        return None
    return lambda manifest, built: initial.from_file(config.model, manifest, built)


def _trial(
    config: RunConfig,
    context: ClientContext,
    done: local_update.TrainingResult,
    measured: _Measured,
    leaves: Mapping[str, Any],
    refusal: str,
) -> Trial:
    manifest, largest = done.manifest, _largest(done.tensors)
    base = manifest.base
    frozen = sum(one.size for one in base.tensors) if base is not None else 0
    limit = float(config.aggregation.limit)
    logged = metrics.finish(done.train_metrics)
    return Trial(
        client=context.client,
        parameters=sum(spec.size for spec in manifest.tensors) + frozen,
        frozen=frozen,
        model_bytes=manifest.nbytes + (base.nbytes if base is not None else 0),
        update_bytes=codec.encoded_nbytes(codec.encoding(config.update), done.sent),
        num_examples=done.num_examples,
        num_validation=int(done.metrics.get("num_examples", 0)),
        unused=measured.unused,
        base=metrics.finish(done.metrics),
        trained=measured.trained,
        logged={name: mean for name, mean in logged.items() if name != "loss"},
        data_s=measured.seconds - done.train_s,
        train_s=done.train_s,
        peak_bytes=measured.peak_bytes,
        largest=largest,
        limit=limit,
        problem=_problem(largest, limit, refusal) or _not_reported(config, done),
        leaves=leaves,
        compile_s=compiling.seconds() if context.compiled else 0.0,
    )


def _check_initial(
    config: RunConfig, task: Task, context: ClientContext, manifest: Manifest
) -> None:
    """Pack and read this model as version 0. Raises DataError if no run accepts it."""
    environment = context.compute.environment(code_digest(task))
    header = update_message.initial_header(_blank("model", context), manifest, environment)
    try:
        element = message.pack(replace(header, chunk_bytes=config.redis.chunk_bytes), None)
        header, _ = message.unpack(element, max_body_bytes=LARGEST_MODEL_BYTES)
        message.initial_manifest(header, config.model.max_bytes)
    except MessageError as exc:
        raise DataError("model", f"no run accepts it as version 0: {exc.reason}") from exc


def _sent(
    config: RunConfig,
    task: Task,
    context: ClientContext,
    made: local_update.TrainingResult,
    show: bool,
) -> tuple[dict[str, Any], str]:
    """
    Write and pack an update as a worker does; read, check and merge it as the aggregator does.

    Returns:
        Everything that would be sent, if it is wanted; and why a run would reject it, or empty.
    """
    encoding = codec.encoding(config.update)
    environment = context.compute.environment(code_digest(task))
    header = update_message.build_header(
        _blank("update", context), made, encoding, environment, context
    )
    leaves: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fl-queue-") as name:
        folder = Path(name)
        try:
            path = outbox.write(
                folder, header, update_message.iter_body(made, encoding, context, {})
            )
            kept = outbox.read(path)
            assert kept is not None
            leaves = disclosure.describe_update(*kept) if show else {}
            _judge(config, made.manifest, kept, folder)
        except MessageError as exc:
            return leaves, exc.reason
    return leaves, ""


def _judge(
    config: RunConfig, manifest: Manifest, kept: tuple[Header, memoryview], folder: Path
) -> None:
    """Merge an update as an aggregator does. Raises MessageError if it would be rejected."""
    header, body = kept
    redis, format_ = config.redis, config.format_of_sum()
    element = outbox.element(header, body, redis.inline_bytes, redis.chunk_bytes)
    arrived, inline = message.unpack(element, max_body_bytes=LARGEST_MODEL_BYTES)
    discount = format_.discount.to_dict() if format_.discount else None
    merge = UpdateMerger.of_round(manifest, config, format_.scales, format_.w_max, folder, discount)
    merge.take(arrived, body if arrived.chunk_bytes else inline)


def _blank(kind: str, context: ClientContext) -> Header:
    return Header(kind=kind, run=RUN, round=context.round, client=context.client, token="0" * 16)


def _context(config: RunConfig, data_dir: str, device: str, threads: int) -> ClientContext:
    cohort = config.round.cohort
    if config.is_simulation:
        shares = config.clients.count
        client = virtual_clients.client(1, shares)
    else:
        # A fraction refers to the clients that will be alive, and their number is not known here.
        client, shares = CLIENT, cohort if isinstance(cohort, int) else 1
    return ClientContext.of(
        config,
        client=client,
        run=RUN,
        round_number=1,
        share=0,
        shares=config.data.shares or shares,
        data_dir=data_dir,
        device=device,
        threads=threads,
    )


def _largest(changes: local_update.UpdateTensors) -> float:
    """Find the largest magnitude of the parameters; NaN if one is not finite."""
    most = 0.0
    for spec, _, block in changes.pieces():
        if spec.kind != "parameter" or not block.size:
            continue
        if not np.isfinite(block).all():
            return float("nan")
        most = max(most, float(np.abs(block).max()))
    return most


def _not_reported(config: RunConfig, made: local_update.TrainingResult) -> str:
    """Find out what a run would leave out, and why it would end after round 1: run.select may be missing."""
    for sums in (made.metrics, made.train_metrics):
        if left_out := metrics.sound(sums)[1]:
            return f"a run would leave out {'; '.join(dict.fromkeys(left_out.values()))}"
    validated = metrics.merge_clients({CLIENT: made.metrics})
    return metric_choice.problem(config, metric_choice.of_validations([validated]))


def _problem(largest: float, limit: float, refusal: str) -> str:
    """Explain a rejection. Args: ``refusal``: the aggregator's reason; empty: none."""
    if not refusal:
        return ""
    if np.isnan(largest):
        what = "the update is not finite; lower train.learning_rate, or look at the data"
    elif largest > limit:
        what = (
            f"the update has {largest:.3g}, more than aggregation.limit = {limit:g}; raise it, or lower "
            "train.learning_rate"
        )
    else:
        what = "the update would not be merged"
    return f"{what}: {refusal}"
