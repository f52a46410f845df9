"""
Train without federation: each client alone, or one model on the data of all. Imports torch.

Task, shares of the data, version 0, local SGD and evaluation are those of a run of the same config;
nothing is exchanged. The result is a function of the config, on the same machine with the same software.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from fl_queue import metrics
from fl_queue.client.version_zero import version_zero
from fl_queue.common import seeding
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, DataError
from fl_queue.models import initial
from fl_queue.protocol import tensor_layout, virtual_clients
from fl_queue.protocol.manifest import Manifest
from fl_queue.reporting.baselines import CENTRALISED, LOCAL, Baseline, BaselineModel
from fl_queue.tasks import calls
from fl_queue.tasks.base import ClientData, Task, code_digest
from fl_queue.tasks.building import built
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task
from fl_queue.training import determinism, sgd
from fl_queue.training.model_tensors import views_of

#: Called after each round of a model: its index, the number of models, its client, the round, and finished
#: metrics on the test set, empty if it was not tested.
OnRound = Callable[[int, int, str, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class BaselineMachine:
    """
    Data and hardware of this machine.

    Args:
        folders: Data folders; with ``data.partition = "site"`` one for each client, which has the name of
            its folder. Empty: ``data.dir``.
        test: Folder of the test data; empty: the first of the others.
        device, threads: As for ``fl-queue worker client``.
    """

    folders: Sequence[str] = ()
    test: str = ""
    device: str = "cpu"
    threads: int = 1


def train(
    config: RunConfig,
    kind: str,
    name: str = "",
    *,
    clients: int = 0,
    place: BaselineMachine | None = None,
    on_round: OnRound = lambda index, count, client, round_number, found: None,
    tell: OnRound | None = None,  # codespell:ignore tell
) -> Baseline:
    """
    Train a baseline: each model for ``run.rounds`` times ``train.epochs`` passes over its data.

    Args:
        config: Config of a run; its task is imported.
        kind: ``local`` or ``centralised``.
        name: Name of the config, for tables.
        clients: Number of clients that are used, drawn by the seed; 0: all.
        place: Data, device, threads.
        on_round: Called after each round of a model.
        tell: The old name of ``on_round``.  # codespell:ignore tell

    Raises:
        ConfigError: The number of clients is not known, or as a client would answer.
        DataError, ModelMismatch: As a client, or the evaluator, would answer.
    """
    if tell is not None:  # codespell:ignore tell
        warnings.warn("the argument is called on_round now", DeprecationWarning, stacklevel=2)
        on_round = tell  # codespell:ignore tell
    started = time.monotonic()
    work = _BaselineTrainer(config, place or BaselineMachine(), kind)
    chosen = work.chosen(clients)
    models = work.models(chosen, on_round)
    return Baseline(
        kind="local" if kind == LOCAL else "centralised",
        name=name,
        config=config.record(),
        rounds=config.run.rounds,
        clients=len(chosen),
        seconds=round(time.monotonic() - started, 3),
        environment=dict(
            determinism.environment(work.place.device, code_digest(work.task), work.place.threads)
        ),
        models=models,
    )


class _BaselineTrainer:
    """Task, version 0 and test data that all models of a baseline share."""

    def __init__(self, config: RunConfig, place: BaselineMachine, kind: str) -> None:
        self.config, self.place, self.kind = config, place, kind
        self.clients = _clients(config, place)
        first = place.folders[0] if place.folders else ""
        self.task = self._load(first)
        fill = self._filled if config.model.initial else None
        made = version_zero(self.task, config.run.seed, fill)
        self.manifest, self.base_part = made.manifest, made.base_body()
        # Building the next model may overwrite what these are views of.
        self.base = {tensor: array.copy() for tensor, array in made.arrays.items()}
        self.test = None
        if config.run.evaluate_every:
            self.test = self._test_data(place.test or first)

    def _filled(self, manifest: Manifest, built: Mapping[str, Any]) -> dict[str, Any]:
        return initial.from_file(self.config.model, manifest, built)

    def _load(self, folder: str) -> Task:
        name = self.config.run.task
        folder = folder or self.config.data.dir
        return load_task(name, self.config, self.config.allowed_code(), folder)

    def _test_data(self, folder: str) -> sgd.Samples | None:
        try:
            return self._load(folder).test_data(folder or self.config.data.dir)
        except DataError as exc:
            raise DataError(
                exc.path,
                f"{exc.reason}; these are the test data: name their folder with --test-data, or set "
                "run.evaluate_every to 0 for what clients hold out",
            ) from exc

    def chosen(self, count: int) -> list[str]:
        """Choose the clients whose data are used, in the order of their shares."""
        if not count or count >= len(self.clients):
            return list(self.clients)
        return seeding.select_cohort(self.config.run.seed, 0, list(self.clients), count)

    def data(self, client: str) -> ClientData:
        """Load a client's data, as in a run; the training part may be empty. Raises DataError."""
        folder = self.clients[client]
        task = self._load(folder) if folder else self.task
        context = self.context(client, 1)
        with context.compute.reproducible(context.seed_for("data")):
            return calls.given_data(task, replace(context, data_dir=folder or context.data_dir))

    def models(self, chosen: Sequence[str], on_round: OnRound) -> list[BaselineModel]:
        """Train a model for each client, or one on their data together."""
        # As in a run, a client without training samples keeps none of the others from training.
        if self.kind == LOCAL:
            alone = (
                self.model(index, len(chosen), client, data, on_round)
                for index, client in enumerate(chosen)
                if sgd.size_of((data := self.data(client)).train)
            )
            return list(alone) or self._without_samples()
        every = [self.data(client) for client in chosen]
        trained = [data.train for data in every if sgd.size_of(data.train)]
        whole = ClientData(
            sgd.joined(trained or self._without_samples()),
            sgd.joined([data.validation for data in every]),
        )
        return [self.model(0, 1, CENTRALISED, whole, on_round)]

    def _without_samples(self) -> NoReturn:
        raise DataError(
            self.config.data.dir or "training data",
            "no client has training samples; check data.dir and data.partition",
        )

    def context(self, client: str, round_number: int) -> ClientContext:
        """Make the context of a client in one round."""
        names = list(self.clients)
        return ClientContext.of(
            self.config,
            client=client,
            run=f"baseline-{self.kind}",
            round_number=round_number,
            share=names.index(client) if client in names else 0,
            shares=self.config.data.shares or len(names),
            data_dir=(self.place.folders or [self.config.data.dir])[0],
            device=self.place.device,
            threads=self.place.threads,
        )

    def model(
        self, index: int, count: int, client: str, data: ClientData, on_round: OnRound
    ) -> BaselineModel:
        """Train one model from version 0, and test it."""
        rounds, every = self.config.run.rounds, self.config.run.evaluate_every
        curve: dict[str, dict[str, float]] = {}
        for number, model in self._trained(client, data, rounds):
            tested: dict[str, float] = {}
            # Between rounds the one model alone is tested: testing each client's costs more than training.
            if number == rounds or (self.kind == CENTRALISED and every and number % every == 0):
                tested = self._judge(model, client, self.test)
            if tested:
                curve[str(number)] = tested
            on_round(index, count, client, number, tested)
        arrays = views_of(model, self.manifest)
        return BaselineModel(
            client=client,
            num_examples=sgd.size_of(data.train),
            digest=tensor_layout.pieces_digest(arrays[spec.name] for spec in self.manifest.tensors),
            test=curve.get(str(rounds), {}),
            validation=self._judge(model, client, data.validation),
            curve=curve if self.kind == CENTRALISED else {},
        )

    def _trained(
        self, client: str, data: ClientData, rounds: int
    ) -> Iterator[tuple[int, nn.Module]]:
        """Yield the model after each round; it is the same object each time."""
        context = self.context(client, 1)
        with context.compute.reproducible(context.seed_for("build")):
            model = built(
                self.task, self.manifest, self.base, context.device, lambda: self.base_part
            )
        for number in range(1, rounds + 1):
            context = self.context(client, number)
            with context.compute.reproducible(context.seed_for("train")):
                calls.trained(self.task, model, data, context, lambda epoch, epochs, found: None)
            yield number, model

    def _judge(
        self, model: nn.Module, client: str, dataset: sgd.Samples | None
    ) -> dict[str, float]:
        if dataset is None or not sgd.size_of(dataset):
            return {}
        context = self.context(client, self.config.run.rounds)
        with context.compute.reproducible(context.seed_for("evaluate")):
            return metrics.finish(calls.evaluated(self.task, model, dataset, context))


def _clients(config: RunConfig, place: BaselineMachine) -> dict[str, str]:
    """Map each client to its data folder, in the order of shares; empty: the common one."""
    if config.data.partition == "site":
        folders = place.folders or [config.data.dir]
        named = {Path(folder).resolve().name: folder for folder in folders}
        if len(named) < len(folders):
            raise ConfigError(
                "--data", "two of the folders have the same name, and clients too then"
            )
        return named
    if len(place.folders) > 1:
        raise ConfigError(
            "--data",
            f"one folder is split by data.partition = {config.data.partition}; give one, or set "
            "data.partition to site for a folder of each client",
        )
    cohort = config.round.cohort
    if config.is_simulation:
        return dict.fromkeys(virtual_clients.clients(config.clients.count), "")
    count = config.data.shares or (cohort if isinstance(cohort, int) else 0)
    if not count:
        raise ConfigError(
            "data.shares", "is 0, and the clients are not known yet; set it to their number"
        )
    return {f"site-{number}": "" for number in range(1, count + 1)}
