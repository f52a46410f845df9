"""
Two rounds of a config's first client, each in a process of its own, and both in one process that stays.

A training process that serves several rounds keeps the task and its data; that changes no bit if the task follows
the rules for it. This finds out. Nothing is sent. Imports torch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

from fl_queue.client import outbox
from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.common import files
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import DataError
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.tensor_layout import Bytes
from fl_queue.protocol.trainer_messages import Answer, Call, ModelFile, Request
from fl_queue.strategies import get_strategy
from fl_queue.strategies.layouts import state_manifest, update_manifest
from fl_queue.tasks.context import ClientContext

_ROUNDS = (1, 2)
#: Tensors that are named in a difference; more are counted.
_NAMED = 3
_MODEL, _SERVER_STATE = "model.bin", "server-state.bin"

Update = tuple[Header, Bytes]


def differences(config: RunConfig, context: ClientContext) -> list[str]:
    """
    What differs, in words; empty: nothing does.

    Both rounds begin with version 0, and without a client state.

    Args:
        config: Of a run.
        context: Of its round 1, as for a trial.

    Raises:
        DataError: A round fails.
    """
    with tempfile.TemporaryDirectory(prefix="fl-queue-") as name:
        site = WorkerSettings(
            state_dir=Path(name) / "fresh",
            client=context.client,
            data_dir=context.data_dir,
            allow=config.allowed_code(),
            device=str(context.device),
            threads=context.compute.threads,
            max_examples=context.max_examples,
        )
        other = replace(site, state_dir=Path(name) / "resident")
        manifest, requests = _begin(site, config, context)
        files.folder(other.state_dir)
        for file in (_MODEL, _SERVER_STATE):
            (other.state_dir / file).hardlink_to(site.state_dir / file)
        for request in requests:
            _in_a_process(site, [request])
        found = [
            f"round {request.round}: {what} changed in training; nothing would be kept for the next one"
            for request, changes in zip(requests, _in_a_process(other, requests), strict=True)
            for what in changes
        ]
        sent = update_manifest(get_strategy(config.aggregation.strategy, config.strategy), manifest)
        for request in requests:
            both = (_update(site, request), _update(other, request))
            found += [f"round {request.round}: {what}" for what in compare(sent, *both)]
        return found


def compare(sent: Manifest, fresh: Update, resident: Update) -> Iterator[str]:
    """
    Name the differences of two updates.

    Args:
        sent: Layout of their bodies.
    """
    tensors = [
        codec.LazyDecodedTensors(header.codec, sent, memoryview(body))
        for header, body in (fresh, resident)
    ]
    names = [
        name for name in tensors[0] if tensors[0][name].tobytes() != tensors[1][name].tobytes()
    ]
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"the update differs in {', '.join(names[:_NAMED])}{more}"
    for kind in ("metrics", "train_metrics"):
        one, two = getattr(fresh[0], kind), getattr(resident[0], kind)
        for name in sorted(one.keys() | two.keys()):
            if repr(one.get(name)) != repr(two.get(name)):  # A NaN is the same as another.
                yield f"{kind} {name} differs: {one.get(name)} fresh, {two.get(name)} in the process that stays"
    if fresh[0].num_examples != resident[0].num_examples:
        yield f"{fresh[0].num_examples} examples fresh, {resident[0].num_examples} in the process that stays"


def _begin(
    site: WorkerSettings, config: RunConfig, context: ClientContext
) -> tuple[Manifest, list[Request]]:
    """Write version 0 into the state folder. Returns its manifest, and a request for each round."""
    first = Request(
        call=Call.initialise,
        run=context.run,
        name=context.run,
        config=config.to_dict(),
        client=context.client,
        token="0" * 16,
        share=context.share,
        shares=context.shares,
    )
    # Here: version 0 depends on the seed alone.
    _done([first], _answered(site, [first]))
    header, body = _update(site, first)
    manifest = Manifest.from_json(header.manifest)
    zeros = bytes(state_manifest(manifest).nbytes)
    for name, content in ((_MODEL, body), (_SERVER_STATE, zeros)):
        with files.write_atomically(site.state_dir / name) as file:
            file.write(content)
    strategy = get_strategy(config.aggregation.strategy, config.strategy)
    model = ModelFile(
        manifest=header.manifest,
        place=_MODEL,
        server_state=dict.fromkeys(strategy.fetched, _SERVER_STATE),
    )
    digest = tensor_layout.body_digest(body)
    asked = replace(first, call=Call.train, model=model, base_digest=digest)
    return manifest, [replace(asked, round=number) for number in _ROUNDS]


def _update(site: WorkerSettings, request: Request) -> Update:
    found = outbox.read(outbox.path_of(site.outbox, request.run, request.round, request.client))
    if found is None:
        raise DataError("update", "was removed from the temporary folder; try again")
    return found


def _in_a_process(site: WorkerSettings, requests: Sequence[Request]) -> list[list[str]]:
    """Have requests answered by a new process, one after the other. Returns what each has changed."""
    # Not forked from this process, which may have threads, and a CUDA device: from one that has imported torch and run
    # nothing, as a worker's trainers are.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    try:
        with ProcessPoolExecutor(1, server, _end_with_parent) as pool:
            found = pool.submit(_answered, site, tuple(requests)).result()
    except BrokenProcessPool as exc:
        raise DataError("task", "ended the process that trains; see its last lines above") from exc
    return _done(requests, found)


def _end_with_parent() -> None:
    """
    Have this process end with the one that has asked for it, however that ends.

    The kernel's signal would come at the end of the fork server, which lives as long as a process that it has
    forked; and a pool's process that trains, or waits for its next task, does not notice.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _done(
    requests: Sequence[Request], found: tuple[list[Answer], list[list[str]]]
) -> list[list[str]]:
    """What each has changed. Raises DataError if one has failed."""
    answers, changed = found
    for request, answer in zip(requests, answers, strict=True):
        if answer.outcome != "done":
            kind = answer.failure.kind if answer.failure else answer.outcome
            raise DataError("task", f"round {request.round} failed with {kind}; see the log above")
    return changed


def _answered(
    site: WorkerSettings, requests: Sequence[Request]
) -> tuple[list[Answer], list[list[str]]]:
    """In the new process. What a job has changed stays, so that its effect is seen."""
    resident = Resident(site)
    answers: list[Answer] = []
    changed: list[list[str]] = []
    for request in requests:
        answers.append(resident.handle(request, lambda progress: None))
        changed.append(resident.changed())
    return answers, changed
