"""
Runs from Python, for notebooks and scripts: ``from fl_queue import Run``.

A run is the same as one of the commands: it can be started here and watched there, and the other way
round.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fl_queue.client.site import WorkerSettings
from fl_queue.common import state_folder
from fl_queue.config import loading
from fl_queue.coordinator.operations import controls, tagging
from fl_queue.coordinator.rounds import runs
from fl_queue.experiments import launching
from fl_queue.models import selection
from fl_queue.reporting import (
    analysis_result,
    exporters,
    model_export,
    progress,
    rich_console,
    rounds_table,
    run_status,
)
from fl_queue.reporting.model_export import ExportRequest
from fl_queue.reporting.rich_console import Console
from fl_queue.store import INTERACTIVE, RunState, Store, keyspace
from fl_queue.store.embedded import server_pair

if TYPE_CHECKING:
    from torch import Tensor


class Run:
    """
    A run, made by ``Run.start`` or ``Run.attach``; a context manager.

    A simulation needs nothing running, so this is complete::

        from fl_queue import Run

        simulation = {"clients.kind": "simulation", "clients.count": 20, "round.cohort": 5}
        with Run.start("mnist-2nn", settings=simulation) as run:
            run.wait()
            run.plot("curve.png")
            weights = run.model()
    """

    def __init__(self, store: Store, run_id: str, state_dir: Path, ours: ExitStack) -> None:
        self.store, self.run_id, self._state_dir, self._ours = store, run_id, state_dir, ours
        self._since = ""

    @classmethod
    def start(  # noqa: PLR0913 - options of a command
        cls,
        source: str | Path,
        *,
        name: str = "",
        rounds: int | None = None,
        from_version: int | str | None = None,
        settings: Mapping[str, Any] | None = None,
        redis_url: str = "",
        blob_url: str = "",
        state_dir: str | Path | None = None,
        quiet: bool = False,
    ) -> Run:
        """
        Start a run, or continue the one of that name.

        A simulation's missing servers and workers are started as child processes, until ``close``.

        Args:
            source: A TOML file or a preset (``demo``, ``mnist-2nn``, ...).
            name: Name of the run; default: that of the config.
            rounds: Rounds of training from here on; default: ``run.rounds``.
            from_version: An older version to go on from, by its number or tag.
            settings: Fields of the config to override, such as ``{"train.epochs": 2}``.
            redis_url, blob_url: Default: those of the config and the environment, else private servers.
            state_dir: Default: that of this account, as for the commands.
            quiet: Print nothing on standard error.

        Raises:
            ConfigError: A field that cannot be used, by name, with the fix.
            RunStateError: The run is training already; ``attach`` to it.
            StoreUnavailable: Redis is not reachable.
        """
        loaded = loading.load(str(source), _overrides(settings or {}))
        urls = redis_url or loaded.redis.url, blob_url or loaded.redis.blob_url
        site = WorkerSettings(*urls, _folder(state_dir))
        with ExitStack() as undo:
            begun = launching.launch(
                undo,
                site,
                name or launching.default_run_name(str(source)),
                loaded,
                rounds,
                stays=True,
                console=_console(quiet),
                from_version=from_version,
            )
            made = cls(begun.store, begun.run, site.state_dir, undo.pop_all())
        made._since = begun.since
        return made

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        redis_url: str = "",
        blob_url: str = "",
        state_dir: str | Path | None = None,
    ) -> Run:
        """
        Attach to a run that was started before, here or elsewhere.

        Args:
            name: Its name or run id.
            redis_url, blob_url, state_dir: As for ``start``.

        Raises:
            UnknownRun: There is no run of that name; the message lists the names.
            StoreUnavailable: Redis is not reachable.
        """
        url = redis_url or os.environ.get("FLQ_REDIS_URL", "")
        blobs = blob_url or os.environ.get("FLQ_REDIS_BLOB_URL", "")
        site = WorkerSettings(url, blobs, _folder(state_dir))
        with ExitStack() as undo:
            store = undo.enter_context(site.store(INTERACTIVE, needs_data=False))
            return cls(store, runs.find_run(store, name).run_id, site.state_dir, undo.pop_all())

    @property
    def state(self) -> RunState:
        """
        The run's state, read now: ``.state``, ``.version``, ``.round``, ``.reason``, ...

        Raises:
            UnknownRun: It was deleted meanwhile.
        """
        return runs.find_run(self.store, self.run_id)

    def wait(self, timeout_s: float | None = None, *, quiet: bool = False) -> Self:
        """
        Wait until the run is completed and its versions are tested, with live progress.

        Waiting also counts the round's time, as ``fl-queue watch`` does. Outages of Redis are
        waited out.

        Args:
            timeout_s: Raise TimeoutError after this time, to a second; the run goes on.
            quiet: Print nothing.

        Raises:
            RunFailed: It failed, or was cancelled; the reason is in the message.
            TimeoutError: It was still training.
            UnknownRun: It was deleted meanwhile.
        """
        console = _console(quiet)
        progress.follow(self.store, self.run_id, console, since=self._since, timeout_s=timeout_s)
        state = self.state
        if state.active:
            doing = runs.describe_state(self.store, state)
            raise TimeoutError(f"after {timeout_s:g} s run {state.name} {doing}")
        progress.await_evaluations(self.store, self.run_id, console)
        runs.raise_unless_completed(state)
        return self

    def history(self) -> list[dict[str, Any]]:
        """
        List the training rounds, as ``fl-queue history --json``; ``pandas.DataFrame`` accepts it.

        Keys: round, outcome, accepted, late, rejected, version, loss, accuracy, source, seconds,
        reason, digest, training, ...; see ``rounds_table.RoundRow``.
        """
        return rounds_table.to_json(rounds_table.rounds_of(self.store, self.run_id))

    def curves(self) -> list[dict[str, Any]]:
        """
        List every number as ``{"curve", "step", "value", "at"}``; see ``fl_queue.reporting.curves`` for the names.

        ``pandas.DataFrame(run.curves()).pivot(index="step", columns="curve", values="value")``.
        """
        return [asdict(point) for point in exporters.numbers_of(self.store, self.run_id).points]

    def events(self) -> list[dict[str, Any]]:
        """List the events, oldest first, as ``fl-queue events --json``; ``at`` is Unix time, seconds."""
        found = self.store.control.events.read({keyspace.events(self.run_id): "0-0"}, None)
        return [run_status.event_record(entry, event) for _, entry, event in found]

    def model(self, version: int | str | None = None, *, best: bool = False) -> dict[str, Tensor]:
        """
        Load a version as a state dict, for ``load_state_dict``; the newest by default.

        Imports torch. The tensors are copies, on the CPU.

        Args:
            version: Its number, or its tag.
            best: Load the version that ``run.select`` names.

        Raises:
            ConfigError: Both are given.
            RunStateError: There is none yet, or the run is an analysis; see ``result``.
            UnknownVersion: No such version, or its content cannot be read from here.
        """
        runs.check_is_model(self.store, self.state)
        from fl_queue.tasks import export  # torch

        models = model_export.models_of(self.store, self.run_id, self._state_dir)
        chosen = model_export.version_of(self.store, self.state, version, best)
        manifest, body = models.load_version(chosen)
        base = models.open_base(manifest.base).view if manifest.base is not None else None
        return export.state_dict(manifest, body, base)

    def result(self) -> dict[str, Any]:
        """
        Read the result of an analysis of tables, as ``fl-queue result --json``.

        Raises:
            RunStateError: The run trains a model, or has no result yet.
            UnknownVersion: Its content cannot be read from here.
        """
        return analysis_result.read(self.store, self.state)

    def export(
        self,
        path: str | Path,
        version: int | str | None = None,
        *,
        best: bool = False,
        kind: str = "",
        allow: Sequence[str] = (),
    ) -> str:
        """
        Write a version as ``fl-queue export`` does; other arguments and errors as for ``model``.

        Args:
            kind: ``safetensors``, ``torch`` or ``onnx``; default: by the suffix.
            allow: An own task (``module:name``), whose code is imported for onnx.

        Returns:
            Its digest.
        """
        request = ExportRequest(Path(path), version, best, kind, allow)
        done = model_export.export_version(self.store, self.state, self._state_dir, request)
        return done.digest

    def tag(self, version: int | str, name: str) -> int:
        """
        Name a version, which is kept from then on, as ``fl-queue tag``; ``state.tags`` has the names.

        Args:
            version: Its number, a tag, ``newest`` or ``best``.

        Returns:
            The number of the version.

        Raises:
            ConfigError: The name cannot be a tag.
            RunStateError, UnknownVersion: There is no such version, or it has been pruned.
        """
        return tagging.tag(self.store, self.run_id, str(version), name)

    def untag(self, name: str) -> int:
        """Remove a tag; returns the version that had it. Raises RunStateError: there is no such tag."""
        return tagging.untag(self.store, self.run_id, name)

    def plot(self, path: str | Path) -> None:
        """
        Draw accuracy and loss by version; the suffix is the format.

        Raises:
            ConfigError: matplotlib is not installed, or does not know the format.
            DataError: There is nothing to plot, or the file cannot be written.
            RunStateError: The run is an analysis; see ``result``.
        """
        runs.check_is_model(self.store, self.state)
        tested = selection.test_metrics(self.store, self.run_id)
        rounds_table.plot(Path(path), self.store.control.history.records(self.run_id), tested)

    def write_metrics(self, kind: str, folder: str | Path) -> int:
        """
        Write the run's numbers for another tool, as ``fl-queue metrics``; existing ones stay.

        Args:
            kind: ``tensorboard``, ``mlflow``, ``csv`` or ``jsonl``.

        Returns:
            How many numbers were new.

        Raises:
            ConfigError: No such kind, or its package is not installed.
            DataError: It cannot be written.
            RunStateError: The run is an analysis; see ``result``.
        """
        runs.check_is_model(self.store, self.state)
        sink = exporters.open_sink(kind, Path(folder), self.run_id)
        return exporters.export(self.store, self.state, sink)

    def cancel(self) -> None:
        """
        Stop the run; its model and history stay.

        Raises:
            RunStateError: It is not training.
        """
        controls.cancel(self.store, self.run_id)

    def resume(self) -> None:
        """Continue the run after a failure or a cancel, towards the rounds it was started with."""
        controls.resume(self.store, self.run_id, self._state_dir)

    def close(self) -> None:
        """Close connections, and stop the processes of ``start``; a run on other workers goes on."""
        self._ours.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Run {self.run_id}>"


def _overrides(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Format settings for ``--set``, in TOML: JSON is TOML for numbers, text, booleans and lists."""
    return tuple(f"{field}={json.dumps(value)}" for field, value in settings.items())


def _folder(state_dir: str | Path | None) -> Path:
    return state_folder.check(
        Path(state_dir).absolute() if state_dir else server_pair.default_state_dir()
    )


def _console(quiet: bool) -> Console:
    return rich_console.console(stderr=True, quiet=quiet, force_terminal=False if quiet else None)
