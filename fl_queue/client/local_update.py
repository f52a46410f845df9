"""
Train or evaluate a task: model arrays in, an update or metrics out.

Between the model of a task (torch) and the arrays that travel (numpy). Imports torch, so only
clients and the evaluator import this. No Redis here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fl_queue.client.personalization import Personalization, check_private
from fl_queue.client.strategy_terms import check_seen, kept_optimizer, local_rule
from fl_queue.client.version_zero import initial_model as initial_model
from fl_queue.config.client_layouts import layouts_of
from fl_queue.errors import DataError
from fl_queue.metrics import LOSS_ITEMS
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.records import LOST, Sums
from fl_queue.protocol.tensor_layout import little_endian
from fl_queue.strategies.base import ClientContribution, ClientTrainingState, State, Strategy
from fl_queue.strategies.layouts import (
    OPTIMIZER,
    PERSONAL,
    PRIVATE,
    state_manifest,
    update_manifest,
)
from fl_queue.tasks import calls, phases
from fl_queue.tasks.base import ClientData, OnEpoch, Task
from fl_queue.tasks.building import built
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.logged_metrics import TrainingLog
from fl_queue.training import compiled
from fl_queue.training.base_part import Fetch, Untouched
from fl_queue.training.kept_optimizer import KeptOptimizer
from fl_queue.training.local_rule import LocalRule
from fl_queue.training.model_tensors import (
    Arrays,
    as_loaded,
    check_frozen,
    check_unchanged,
    small_dtypes,
    state_of,
    views_of,
)
from fl_queue.training.sgd import Samples, size_of

#: Elements copied or subtracted at a time: a large model is never in memory once more for that.
_BLOCK = 1 << 20


class UpdateTensors(Mapping[str, NDArray[Any]]):
    """
    Tensor name -> ``local - base`` (float32), or the local value of an integer buffer (int64).

    Computed when asked for, so that a trained model and its update are not in memory together. The base of
    a tensor of a smaller dtype is the one that was loaded, rounded: what the rounding lost is not sent.

    Args:
        manifest: The run's model.
        model: The trained model.
        base: Arrays of the base version.

    Raises:
        ModelMismatch: The model has other tensors than the manifest; names one.
    """

    def __init__(
        self, manifest: Manifest, model: nn.Module, base: Mapping[str, NDArray[Any]]
    ) -> None:
        self._specs = {spec.name: spec for spec in manifest.shared().tensors}
        self._local = views_of(model, manifest)
        self._base = base
        self._rounded = small_dtypes(model, manifest)

    def __getitem__(self, name: str) -> NDArray[Any]:
        spec = self._specs[name]
        whole = np.concatenate([np.empty(0, spec.dtype), *self.blocks(spec)])
        return whole.reshape(spec.shape)

    def local(self, name: str) -> NDArray[Any]:
        """A tensor of the trained model itself, whether it is shared or not."""
        return self._local[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def pieces(self) -> Iterator[tuple[TensorSpec, int, NDArray[Any]]]:
        """The update in the manifest's order: tensor, index of the first element, flat block of 2**20."""
        for spec in self._specs.values():
            for index, block in enumerate(self.blocks(spec)):
                yield spec, index * _BLOCK, block

    def blocks(self, spec: TensorSpec) -> Iterator[NDArray[Any]]:
        """One tensor's elements in order, flat, in blocks of 2**20."""
        local = self._local[spec.name].reshape(-1)
        base = self._base[spec.name].reshape(-1)
        for start in range(0, spec.size, _BLOCK):
            block = local[start : start + _BLOCK]
            if spec.kind != "integer_buffer":
                loaded = base[start : start + _BLOCK]
                if spec.name in self._rounded:
                    loaded = as_loaded(loaded, self._rounded[spec.name])
                block = _difference(block, loaded)
            yield little_endian(block)


def _difference(local: NDArray[Any], base: NDArray[Any]) -> NDArray[Any]:
    """``local - base``; 0 where both are the same infinity, as in the buffer of an attention mask."""
    with np.errstate(invalid="ignore"):
        changed: NDArray[Any] = local - base
    if not np.isfinite(changed).all():
        changed[local == base] = 0
    return changed


@dataclass(frozen=True)
class TrainingResult:
    """
    Result of training one client from one base version.

    Args:
        tensors: Its differences to the base.
        num_examples: Training samples, counted once whatever the epochs.
        metrics: Sums of the base version on the client's validation data, and of what is its own.
        train_metrics: Sums of the training.
        train_s: Seconds of training, without evaluation of the base and without reading the data.
        sent: The tensors of its update: the shared ones, and what the strategy wants besides.
        answer: What the strategy makes of the training.
        manifest: The run's model.
        own: The personal model, where the strategy has one.
        files: Numbers of files that were not used, or not as they are, by their kind.
        is_by_optimizer: Whether ``local_sgd`` trained, by the optimizer of the config; a task may train in another way.
        optimizer: State of the optimizer, where the client keeps it.
    """

    tensors: UpdateTensors
    num_examples: int
    metrics: Sums
    train_metrics: Sums
    train_s: float
    sent: Manifest
    answer: ClientContribution
    manifest: Manifest
    own: Arrays = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    is_by_optimizer: bool = True
    optimizer: KeptOptimizer | None = None

    def kept(self, which: str, name: str) -> NDArray[Any]:
        """A tensor of what the client keeps once its update is accepted, by ``client_layouts``."""
        if which == PRIVATE:
            return self.tensors.local(name)
        if which == PERSONAL:
            return self.own[name]
        if which == OPTIMIZER:
            assert self.optimizer is not None
            return self.optimizer.array(name)
        assert self.answer.keep is not None
        return self.answer.keep(which, name)

    def pieces(self) -> Iterator[tuple[TensorSpec, int, NDArray[Any]]]:
        """The update in the order of ``sent``: tensor, index of the first element, flat block of 2**20."""
        for spec in self.sent.tensors:
            for index, block in enumerate(self._blocks(spec)):
                yield spec, index * _BLOCK, block

    def _blocks(self, spec: TensorSpec) -> Iterator[NDArray[Any]]:
        if spec.kind == "extra":
            assert self.answer.extra is not None
            whole = self.answer.extra(spec.quantity, spec.name.partition("/")[2]).reshape(-1)
            for start in range(0, spec.size, _BLOCK):
                yield little_endian(whole[start : start + _BLOCK])
            return
        for block in self.tensors.blocks(spec):
            if spec.kind == "parameter" and self.answer.factor != 1.0:
                yield (block.astype(np.float64) * self.answer.factor).astype("<f4")
            else:
                yield block


@dataclass(frozen=True)
class ClientStrategy:
    """
    A strategy's part in one client's round.

    Args:
        strategy: As the config names it.
        server: What clients fetch of its state: name -> tensor name -> array.
        kept: What the client keeps, of the newest round that accepted its update.
        has_lost: Whether it has lost that, and has to report it.
        exponent: Of the round.
    """

    strategy: Strategy = field(default_factory=Strategy)
    server: State = field(default_factory=dict)
    kept: State = field(default_factory=dict)
    has_lost: bool = False
    exponent: int = 0

    def known(self, task: Task, manifest: Manifest, context: ClientContext) -> ClientTrainingState:
        """State of the client that the strategy gets before training."""
        return ClientTrainingState(
            learning_rate=context.learning_rate,
            momentum=task.config.train.momentum,
            server=self.server,
            kept=self.kept,
            parameters=[spec.name for spec in state_manifest(manifest).tensors],
            exponent=self.exponent,
        )


@dataclass(frozen=True)
class ClientTrainer:
    """
    One client's part in one round, from a base version.

    A personal model's training, and fine-tuning, come after the update, so that the update has the bits it
    has without them. Each begins with the seed of the round's training: the same order of samples.
    Equal arguments give equal bytes, on the same machine with the same software.

    Args:
        task: Its data, model and training.
        manifest: The run's model.
        base: Arrays of the base version; not modified.
        context: The client, the round and the site; its ``logged``, if any, is what the training logs.
        plan: The strategy's part; FedAvg has none.
        fetch_base_part: Brings the run's base part, where the task's build has another one.
    """

    task: Task
    manifest: Manifest
    base: Mapping[str, NDArray[Any]]
    context: ClientContext
    plan: ClientStrategy = field(default_factory=ClientStrategy)
    fetch_base_part: Fetch | None = None

    def train(
        self,
        on_epoch: OnEpoch = lambda epoch, epochs, metrics: None,
        on_loaded: Callable[[], None] = lambda: None,
        data: ClientData | None = None,
    ) -> TrainingResult:
        """
        Evaluate the base version, train from it, take the difference; then personalize.

        Args:
            on_epoch: Called after each epoch with its number, their number, and finished validation
                metrics.
            on_loaded: Called when ``base`` is not read again until the update is computed.
            data: The client's, if they have been read already.

        Raises:
            ModelMismatch: The task builds another model than the run's.
            DataError: No training data, or unreadable data.
            ConfigError: The data cannot be split as configured, or the strategy cannot correct this training.
        """
        logged, strategy = self.context.logged or TrainingLog(), self.plan.strategy
        context = replace(self.context, logged=None)
        with _reproducible(context):
            data = data or calls.training_data(self.task, context)
            model = self._built_for("train")
            untouched = Untouched(state_of(model), self.manifest.base)
            known = self.plan.known(self.task, self.manifest, context)
            rule = self._rule(known, model)
            on_loaded()
            own = self._personalization(data, context)
            metrics = {**self._evaluated(model, data, context), **own.make_own(model)}
            if strategy.needs_base_loss:
                known = replace(known, base_loss=_loss(self.task, model, data, context))
            started = time.monotonic()
            training = replace(context, rule=rule, logged=logged)
            train_sums = calls.trained(self.task, model, data, training, on_epoch)
            train_s = time.monotonic() - started
            # Not earlier: a Flower client reports its number of examples by training.
            num_examples = size_of(data.train)
            train_metrics = logged.joined(train_sums, num_examples)
        check_seen(strategy, rule, model, known.parameters, self.base)
        self._check_frozen(model, untouched)
        model.zero_grad()  # Gradients are as large as the model.
        own_metrics, own_model = _personalize(own, context)
        changes = UpdateTensors(self.manifest, model, self.base)
        found = self._contribution(known, rule, changes)
        sent, metrics = update_manifest(strategy, self.manifest), {**metrics, **own_metrics}
        return TrainingResult(
            changes, num_examples, metrics, train_metrics, train_s, sent, found, self.manifest, own_model, calls.file_counts(data.counts), rule.is_used, rule.optimizer
        )  # fmt: skip

    def evaluate(self, data: ClientData | None = None) -> Sums:
        """
        The client's validation of the base version, and of its personal model, as sums; nothing is kept.

        Args:
            data: The client's, if they have been read already.

        Raises:
            ModelMismatch: The task builds another model than the run's.
            DataError: Unreadable data.
        """
        context = self.context
        with _reproducible(context):
            data = data or calls.given_data(self.task, context)
            model = self._built_for("evaluate")
            own = self._personalization(data, context)
            sums = {**self._evaluated(model, data, context), **own.make_own(model)}
            sums |= own.validate_personal(own.personal_model())
            return {**sums, **own.finetune(model)}

    def _built_for(self, purpose: str) -> nn.Module:
        """A model as ``_build`` makes it, in a phase of its own; the one of ``purpose`` begins then."""
        phases.begin_building(self.context)
        model = self._build()
        phases.begin(self.context, purpose)
        return model

    def _build(self) -> nn.Module:
        """
        A model with the base version's tensors.

        Raises:
            ModelMismatch: A freshly built one shares or trains other tensors than the run's.
        """
        model = built(
            self.task, self.manifest, self.base, self.context.device, self.fetch_base_part
        )
        check_private(model, self.manifest, self.task.config.model.private)
        check_frozen(model, self.manifest)
        if self.context.compiled:
            compiled.prepare(model)
        return model

    def _rule(self, known: ClientTrainingState, model: nn.Module) -> LocalRule:
        """The strategy's terms, the site's floor, and the state of the optimizer as the client has kept it."""
        plan = self.plan
        rule = local_rule(plan.strategy, known, model, self.context.min_batch)
        layout = layouts_of(self.task.config, plan.strategy, self.manifest).get(OPTIMIZER)
        if layout is not None:
            rule.optimizer = kept_optimizer(model, layout, plan.kept.get(OPTIMIZER, {}))
        return rule

    def _personalization(self, data: ClientData, context: ClientContext) -> Personalization:
        plan = self.plan
        return Personalization(
            self.task,
            context,
            self.manifest,
            self.base,
            data,
            plan.strategy,
            plan.kept,
            self.fetch_base_part,
        )

    def _evaluated(self, model: nn.Module, data: ClientData, context: ClientContext) -> Sums:
        return calls.evaluated(self.task, model, data.validation, context)

    def _check_frozen(self, model: nn.Module, untouched: Untouched) -> None:
        """Refuse a training that has changed what is frozen."""
        check_unchanged(model, self.manifest, self.base)
        untouched.check(state_of(model))

    def _contribution(
        self, known: ClientTrainingState, rule: LocalRule, changes: UpdateTensors
    ) -> ClientContribution:
        """The strategy's part of the update. Args: ``known``: what it knew before the training; ``rule``: of the training."""
        counted, change = rule.gradient_sum.total, changes.__getitem__
        known = replace(known, steps=rule.steps, gradient_sum=counted, change=change)
        found = self.plan.strategy.answer(known)
        if self.plan.has_lost:
            found = replace(found, scalars={**found.scalars, LOST: 1.0})
        return found


def train_update(
    task: Task,
    manifest: Manifest,
    base: Mapping[str, NDArray[Any]],
    context: ClientContext,
    on_epoch: OnEpoch = lambda epoch, epochs, metrics: None,
    on_loaded: Callable[[], None] = lambda: None,
    plan: ClientStrategy | None = None,
    data: ClientData | None = None,
) -> TrainingResult:
    """One client's update; arguments and errors as of ``ClientTrainer`` and its ``train``."""
    trainer = ClientTrainer(task, manifest, base, context, plan or ClientStrategy())
    return trainer.train(on_epoch, on_loaded, data)


def evaluate_client(
    task: Task,
    manifest: Manifest,
    base: Mapping[str, NDArray[Any]],
    context: ClientContext,
    plan: ClientStrategy | None = None,
) -> Sums:
    """One client's validation of a version; arguments and errors as of ``ClientTrainer.evaluate``."""
    return ClientTrainer(task, manifest, base, context, plan or ClientStrategy()).evaluate()


def _personalize(own: Personalization, context: ClientContext) -> tuple[Sums, Arrays]:
    """Metrics of the personal model and of fine-tuning, and the personal model's arrays."""
    with context.compute.reproducible(context.seed_for("personal")):
        personal = own.personal_model()
        sums = own.validate_personal(personal)
        arrays = own.train_personal(personal)
        return {**sums, **own.finetune()}, arrays


@contextmanager
def _reproducible(context: ClientContext) -> Iterator[None]:
    """A job whose bits follow from its seeds. Raises ConfigError: torch cannot compile the model."""
    with (
        context.compute.reproducible(phases.data_seed(context)),
        compiled.naming(context.compiled),
    ):
        yield


def _loss(task: Task, model: nn.Module, data: ClientData, context: ClientContext) -> float:
    """Mean loss of a model on the training data, as the training minimises it: over tokens where its loss is."""
    sums = calls.training_losses(task, model, data, context)
    if not sums.get("num_examples") or "loss_sum" not in sums:
        raise DataError(
            "training data", "the loss of the round's model on it is not finite", public=True
        )
    return float(sums["loss_sum"] / (sums.get(LOSS_ITEMS) or sums["num_examples"]))


def evaluate_version(
    task: Task,
    manifest: Manifest,
    arrays: Mapping[str, NDArray[Any]],
    dataset: Samples,
    context: ClientContext,
    fetch_base_part: Fetch | None = None,
) -> Sums:
    """
    Metrics of one version on a data set (the evaluator's test data), as sums.

    Args:
        fetch_base_part: Brings the run's base part, where the task's build has another one.

    Raises:
        ModelMismatch: The task builds another model than the run's.
        DataError: The base part is not here, and cannot be fetched.
    """
    with context.compute.reproducible(context.seed_for("evaluate")):
        model = built(task, manifest, arrays, context.device, fetch_base_part)
        return calls.evaluated(task, model, dataset, context)
