"""
The computing part of a worker: facts, version 0, updates and metrics, from files and into files.

``Resident.handle`` answers a request. It knows no Redis: it reads only files of the state folder that the request
names, and the site's data. A client's state is written first, then the response into the outbox; only then it
answers. Imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fl_queue.analyses.base import STATE, TOTAL
from fl_queue.client import (
    client_state,
    evaluation,
    local_update,
    outbox,
    state_writing,
    sums,
    update_message,
)
from fl_queue.client.asking import Report
from fl_queue.client.client_state import ClientStateFolder
from fl_queue.client.kept import Kept
from fl_queue.client.ledger import Ledger
from fl_queue.client.local_update import ClientStrategy, ClientTrainer
from fl_queue.client.site import WorkerSettings
from fl_queue.client.site_task import context_of
from fl_queue.client.version_zero import version_zero
from fl_queue.common import failpoints
from fl_queue.common.files import Mapped
from fl_queue.common.paths import below
from fl_queue.config.client_layouts import layouts_of
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import LASTING, CheckpointError, DataError, TrainingLost
from fl_queue.models.initial import initial_arrays
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.base_part import missing
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import INPUTS, METRICS, TRAINER_JOB
from fl_queue.protocol.trainer_messages import Answer, Call, ModelFile, Progress, Request
from fl_queue.store.jobs.rq_types import TimedOut
from fl_queue.strategies import get_strategy
from fl_queue.strategies.base import State
from fl_queue.strategies.layouts import RESIDUAL, state_manifest
from fl_queue.tasks import calls
from fl_queue.tasks.base import Task, code_digest
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.error_disclosure import failure_of
from fl_queue.tasks.logged_metrics import TrainingLog
from fl_queue.tasks.site_facts import facts_of
from fl_queue.tasks.task_code import CodeChanged
from fl_queue.training import data_loading, stopping
from fl_queue.training.compiled import COMPILED
from fl_queue.training.determinism import Compute
from fl_queue.training.optimizers import implementation
from fl_queue.training.ranks import Ranks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """
    One request, as it is computed.

    Args:
        request: It.
        config: The run's.
        report: Takes its progress.
    """

    request: Request
    config: RunConfig
    report: Report

    def header(self, kind: str) -> Header:
        """A header of the round, under the request's token."""
        request = self.request
        return Header(
            kind=kind,
            run=request.run,
            round=request.round,
            client=request.client,
            base_version=request.base_version,
            base_digest=request.base_digest,
            token=request.token,
        )


class _NeedsBase(Exception):
    """The task has built other frozen tensors than the run's, and the request names no file of those."""


class _Model:
    """
    The version that a request names, mapped from this host's files.

    Args:
        state_dir: The files are relative to it.
        file: As the request has it.

    Raises:
        TrainingLost: A file is not there any more, or of another size.
    """

    def __init__(self, state_dir: Path, file: ModelFile) -> None:
        self.file, self._state_dir = file, state_dir
        self.manifest = Manifest.from_json(file.manifest)
        nbytes = codec.encoded_nbytes(file.codec, self.manifest)
        self.body = _mapped(state_dir, file.place, nbytes)
        layout = state_manifest(self.manifest)
        self.server: State = {
            name: tensor_layout.views(layout, _mapped(state_dir, place, layout.nbytes).view)
            for name, place in file.server_state.items()
        }

    def arrays(self) -> Mapping[str, Any]:
        """Tensor name -> array: float32 or int64, decoded when asked for."""
        return codec.LazyDecodedTensors(self.file.codec, self.manifest, self.body.view)

    def fetch_base_part(self) -> memoryview:
        """
        The body of the run's base part, its digest checked.

        A private map: a CPU model uses it in place, so that the processes of a host share its pages.

        Raises:
            DataError: It is not at this site, and not published.
            _NeedsBase: The worker has to fetch it; the file may be there, and damaged.
        """
        base = self.manifest.base
        if base is not None and not base.is_published:
            raise missing(base)
        if base is None or self.file.base is None:
            raise _NeedsBase
        try:
            found = _mapped(self._state_dir, self.file.base, base.nbytes, private=True)
        except TrainingLost as exc:
            log.warning("the base part is fetched again: %s", exc)
            raise _NeedsBase from exc
        if not base.is_of(found.view):
            log.warning("%s is damaged: the base part is fetched again", self.file.base)
            raise _NeedsBase
        return found.view


class Resident:
    """
    Computes what workers ask for, in this process.

    Args:
        site: Folders, own code that may be loaded, device and limits; nothing of it comes with a request.
        ranks: The processes that train together; the first one alone writes files.
    """

    def __init__(self, site: WorkerSettings, ranks: Ranks | None = None) -> None:
        self._site, self._ranks = site, ranks
        self._model: _Model | None = None
        self._kept = Kept(site)
        self._table = sums.KeptTable()
        self._jobs = 0

    def changed(self) -> list[str]:
        """What the last job has changed, as of ``tidy``; nothing is dropped."""
        return self._kept.marks.changed()

    def tidy(self) -> list[str]:
        """
        After an answer: drop what a later job must not find.

        Returns:
            What the job has changed that one could see, in words; a process of its own is to end then.
        """
        changed = self._kept.tidy()
        for what in changed:
            log.info("%s changed in training: nothing is kept for the next round", what)
        return changed

    def handle(self, request: Request, report: Report) -> Answer:
        """
        Compute one thing, and answer when its files are written.

        Args:
            report: Takes a training's progress.

        Raises:
            TimedOut: RQ's timeout of a job in this process.
        """
        stopping.begin()
        self._jobs += 1
        config = RunConfig.from_dict(request.config)
        job = _Job(request, config, report)
        calls_: Mapping[Call, Callable[[_Job], Answer]] = {
            Call.facts: self._facts,
            Call.initialise: self._initialise,
            Call.train: self._train,
            Call.evaluate: self._evaluate,
            Call.sums: self._sums,
            Call.score: self._score,
        }
        is_done = False
        try:
            answer = calls_[request.call](job)
            is_done = True
            return answer
        except TimedOut:
            raise
        except stopping.NotWanted:
            return Answer(outcome="ended")
        except CodeChanged as exc:
            log.warning("run=%s %s; a fresh process imports it", request.run, exc)
            return Answer(outcome="stale")
        except _NeedsBase:
            return Answer(outcome="needs_base")
        # The task is its owner's code and may raise anything. Another attempt would meet the same error, so it
        # is the answer instead of being left to the deadline.
        except Exception as exc:
            log.exception(
                "run=%s round=%s client=%s failed", request.run, request.round, request.client
            )
            is_lost = isinstance(exc, TrainingLost) or data_loading.is_dataloader_crash(exc)
            failure = failure_of(exc, config, lasts=isinstance(exc, LASTING))
            return Answer(outcome="lost" if is_lost else "failed", failure=failure)
        finally:
            if not is_done:
                self._drop()

    def _drop(self) -> None:
        self._kept.drop()
        self._table.drop()

    # What may be asked for

    def _facts(self, job: _Job) -> Answer:
        if job.config.analysis is not None:
            self._table.read(self._site, job.config)
            return Answer(outcome="done")
        context, can_train = None, False
        try:
            context = context_of(self._site, job.config, job.request, self._ranks)
            task = self._kept.task(job.request, job.config)
            if job.config.run.purpose == "evaluate":
                data = self._kept.client_data(task, context)
                evaluation.check(self._site, job.config, data)
                can_train = True
                return Answer(outcome="done", facts=facts_of(task, data, task.check_data(data)))
            calls.check_devices(task, context)
            data = calls.training_data(task, context, self._kept.client_data(task, context))
            counts = task.check_data(data)
            can_train = True  # What follows is for the comparison of sites only.
            return Answer(outcome="done", facts=facts_of(task, data, counts))
        except (TimedOut, CodeChanged):
            raise
        except Exception as exc:
            log.exception(
                "run=%s client=%s cannot report its facts", job.request.name, job.request.client
            )
            self._kept.drop()
            failure = failure_of(exc, job.config, lasts=not can_train)
            return Answer(outcome="failed", failure=failure)

    def _initialise(self, job: _Job) -> Answer:
        failpoints.failpoint("client.started")
        request = job.request
        if (analysis := job.config.analysis) is not None:
            sums.check_allowed(self._site, job.config)
            header = update_message.initial_header(job.header("model"), analysis.manifest, {})
            first = analysis.version(analysis.initial())
            return self._keep(header, [tensor_layout.little_endian(first)])
        task = self._kept.task(job.request, job.config)
        initial = request.initial

        def filled(manifest: Manifest, built: Mapping[str, Any]) -> dict[str, Any]:
            assert initial is not None
            body = _mapped(self._site.state_dir, initial.place).view
            return initial_arrays(body, request.run, initial.record, manifest, built)

        made = version_zero(task, job.config.run.seed, filled if initial is not None else None)
        compute = Compute(self._site.device, self._site.threads)
        environment: dict[str, Any] = {**compute.environment(code_digest(task))}
        if names := calls.metric_names(task):
            environment[METRICS] = names
        header = update_message.initial_header(job.header("model"), made.manifest, environment)
        return self._keep(header, made.pieces())

    def _train(self, job: _Job) -> Answer:
        failpoints.failpoint("client.started")
        self._table.drop()
        config, logged = job.config, TrainingLog()
        task = self._kept.task(job.request, config)
        context = context_of(self._site, config, job.request, self._ranks)
        base = self._base(job)
        plan = self._plan(job, base)
        data = calls.training_data(task, context, self._kept.client_data(task, context))
        job.report(Progress(epoch=0, epochs=context.epochs))
        logging_context = replace(context, logged=logged)
        trainer = ClientTrainer(
            task, base.manifest, base.arrays(), logging_context, plan, base.fetch_base_part
        )
        result = trainer.train(
            lambda epoch, epochs, finished: job.report(
                Progress.of_epoch(epoch, epochs, finished, logged.means())
            ),
            base.body.unload,
            data,
        )
        if not self._is_first:
            return Answer(outcome="done")
        folder = ClientStateFolder(self._site.client_states, job.request.run, job.request.client)
        state_writing.write_state(folder, config, plan, result, context)
        encoding = codec.encoding(config.update)
        environment = self._environment(task, context, job.request)
        if result.is_by_optimizer and (name := config.train.optimizer) != "sgd":
            environment["optimizer"] = implementation(name, context.device)
        header = update_message.build_header(
            job.header("update"), result, encoding, environment, context
        )
        residual = plan.kept.get(RESIDUAL, {})
        suffix = outbox.TRAINED if job.request.is_masked else outbox.SUFFIX
        body = update_message.iter_body(result, encoding, context, residual)
        return self._keep(header, body, suffix)

    def _evaluate(self, job: _Job) -> Answer:
        failpoints.failpoint("client.started")
        task = self._kept.task(job.request, job.config)
        context = context_of(self._site, job.config, job.request, self._ranks)
        base = self._base(job)
        noted: Mapping[str, str | int] = {}
        data = self._kept.client_data(task, context)
        if job.config.run.purpose == "evaluate":
            model = (base.manifest, base.arrays(), base.fetch_base_part)
            found, noted = evaluation.answer(self._site, task, model, data, context)
        else:
            plan = self._plan(job, base)
            trainer = ClientTrainer(
                task, base.manifest, base.arrays(), context, plan, base.fetch_base_part
            )
            found = trainer.evaluate(calls.given_data(task, context, data))
        if not self._is_first:
            return Answer(outcome="done")
        environment = {**self._environment(task, context, job.request), **noted}
        return self._keep(replace(job.header("evaluation"), metrics=found, environment=environment))

    def _sums(self, job: _Job) -> Answer:
        failpoints.failpoint("client.started")
        base = {name: np.array(words, np.int64) for name, words in self._base(job).arrays().items()}
        # What another process of this site answers meanwhile would be compared with nothing.
        with Ledger(self._site.state_dir).asking():
            found = self._table.read(self._site, job.config)
            state = found.analysis.state_of(base[STATE])
            words = sums.answer(self._site, job.request, found, state, base.get(TOTAL))
        header = update_message.words_header(
            job.header("sums"), found.analysis.layout(state).manifest, found.policy.digest
        )
        return self._keep(header, [tensor_layout.little_endian(words)])

    def _score(self, job: _Job) -> Answer:
        context = context_of(self._site, job.config, job.request, self._ranks)
        task = self._kept.task(job.request, job.config)
        data = self._kept.test_data(task, context)
        if data is None:
            raise DataError(
                "test data",
                "the task has none; override Task.test_data, or stop the evaluator",
                public=True,
            )
        base = self._base(job)
        sums = local_update.evaluate_version(
            task, base.manifest, base.arrays(), data, context, base.fetch_base_part
        )
        return Answer(outcome="done", metrics=sums)

    @property
    def _is_first(self) -> bool:
        """Whether this process writes the files."""
        return self._ranks is None or not self._ranks.rank

    def _environment(
        self, task: Task, context: ClientContext, request: Request
    ) -> dict[str, str | int]:
        """
        What decides the bits of a training besides its config, and how the client's state was found.

        The number of the job in this process shows where one that stays has been replaced.
        """
        found = context.compute.environment(code_digest(task)) | {TRAINER_JOB: self._jobs}
        if context.ranks is not None:
            found |= context.ranks.environment()
        if context.compiled:
            found[COMPILED] = 1
        if request.inputs:
            found[INPUTS] = request.inputs
        note = request.state.note
        return found | ({"client_state": note} if note else {})

    # Files

    def _base(self, job: _Job) -> _Model:
        """The version that a request names; mapped once for all requests of it."""
        file = job.request.model
        if file is None:
            raise TrainingLost("the request names no version", public=True)
        if self._model is None or self._model.file != file:
            self._model = None
            self._model = _Model(self._site.state_dir, file)
        return self._model

    def _plan(self, job: _Job, base: _Model) -> ClientStrategy:
        """The strategy's part, with what the client has kept."""
        config, state = job.config, job.request.state
        strategy = get_strategy(config.aggregation.strategy, config.strategy)
        kept: State = {}
        if state.place is not None:
            layouts = layouts_of(config, strategy, base.manifest)
            place = below(self._site.state_dir, *state.place.split("/"))
            try:
                found = client_state.read(place, client_state.layout(layouts))
            except CheckpointError as exc:  # The worker has just read it.
                raise TrainingLost(f"the client's state is lost: {exc}") from exc
            kept = {name: found[name] for name in state.states}
        return ClientStrategy(strategy, base.server, kept, state.is_lost, job.request.exponent)

    def _keep(self, header: Header, pieces: Any = (), suffix: str = outbox.SUFFIX) -> Answer:
        """Write a response into the outbox, and answer."""
        failpoints.failpoint("client.trained")
        try:
            outbox.write(self._site.outbox, header, pieces, suffix)
        except DataError as exc:  # A full disk; it is tried again when there is room.
            raise TrainingLost(str(exc), public=exc.public) from exc
        failpoints.failpoint("outbox.written")
        return Answer(outcome="done", num_examples=header.num_examples)


def _mapped(
    state_dir: Path, place: str, nbytes: int | None = None, *, private: bool = False
) -> Mapped:
    """
    A file that a request names. Args: ``private``: as of ``Mapped``.

    Raises:
        TrainingLost: It is not there any more, or has another size.
        DataError: It is outside the state folder.
    """
    path = below(state_dir, *place.split("/"))
    try:
        found = Mapped(path, private=private)
    except OSError as exc:
        raise TrainingLost(f"{path} cannot be read: {exc}") from exc
    if nbytes is not None and len(found.view) != nbytes:
        raise TrainingLost(f"{path} has {len(found.view)} bytes, not {nbytes}")
    return found
