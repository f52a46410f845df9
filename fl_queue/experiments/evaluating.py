"""Evaluate a given model at the sites, without training it: the model's file, and the config of the run."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError, DataError, RunStateError
from fl_queue.experiments import launching
from fl_queue.models import site_models as own_models
from fl_queue.reporting import model_export
from fl_queue.reporting.model_export import ExportRequest
from fl_queue.store import Store

#: Fields that a run without training has no use for.
_UNUSED = {
    "run": ("rounds", "stop_when", "patience", "restore_best", "select", "evaluate_every"),
    "round": ("mode", "cohort", "quorum", "buffer", "concurrency", "staleness", "staleness_exponent", "max_staleness"),
    "aggregation": ("strategy", "weighting", "clip_norm"),
    "update": ("codec", "error_feedback"),
    "model": ("initial", "initial_mode", "initial_fresh", "initial_map", "keep_updates"),
    "strategy": (),
}  # fmt: skip
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class GivenModel:
    """
    A model that is to be evaluated.

    Args:
        path: Its file.
        name: Of the run, or of the file.
        tables: Config of the run that trained it; empty: a file.
    """

    path: Path
    name: str
    tables: Mapping[str, Any]


@dataclass(frozen=True)
class SiteModels:
    """
    The models of single sites in a round, and the one that was made of them.

    Args:
        run: Name of the run.
        number: Of the round.
        models: Client -> its model; an empty name: the merged one.
    """

    run: str
    number: int
    models: Mapping[str, GivenModel]


def site_models(store: Store, state_dir: Path, text: str, folder: Path) -> SiteModels:
    """
    The models of single sites, which the base version and kept updates of a round make.

    Args:
        state_dir: The aggregator's folder, with the kept updates.
        text: ``RUN``: of its newest round; ``RUN@VERSION``: of the round that made this version.
        folder: For the files.

    Raises:
        UnknownRun, UnknownVersion: There is no such run or version.
        RunStateError: The run is an analysis, keeps no updates, or has no round with accepted ones.
        DataError: An update is not there, or damaged.
    """
    name, _, version = text.partition("@")
    state = runs.find_run(store, name)
    runs.check_is_model(store, state)
    number = model_export.version_of(store, state, version or None, best=False)
    records = store.control.history.records(state.run_id)
    made = [one for one in records if one.version == number and one.accepted]
    manifest = store.control.versions.manifest(state.run_id)
    if not made or manifest is None:
        raise RunStateError(
            state.name, f"no round of updates made version {number}; name another, as RUN@VERSION"
        )
    record = made[-1]
    config = runs.current_config(store, state.run_id, record.config_segment)
    own_models.check(state.name, config, manifest)
    tables, stored = config.to_dict(), model_export.models_of(store, state.run_id, state_dir)
    found = {}
    for client in sorted(record.accepted):
        path = folder / f"{state.name}-round-{record.round}-{client}.safetensors"
        own_models.write(stored, config, record, client, path)
        found[client] = GivenModel(path, f"{state.name}-{client}", tables)
    merged = given_model(store, state_dir, f"{name}@{number}", folder)
    return SiteModels(state.name, record.round, {**found, "": replace(merged, tables=tables)})


def given_model(store: Store, state_dir: Path, text: str, folder: Path) -> GivenModel:
    """
    The model that a user names: a file, or ``RUN``, ``RUN@3``, ``RUN@best``, ``RUN@tag``.

    Args:
        state_dir: This machine's folder, which may have the checkpoints.
        folder: For the file of a run's version.

    Raises:
        DataError: There is no such file.
        ConfigError: The file's format is none of a model of a task.
        UnknownRun, UnknownVersion: There is no such run or version.
        RunStateError: The run is an analysis, or has no such version yet.
    """
    path = Path(text)
    if path.is_file():
        if path.suffix.lower() not in _SUFFIXES:
            known = ", ".join(_SUFFIXES)
            raise ConfigError("MODEL", f"{text}: the suffix is none of {known}")
        return GivenModel(path, path.stem, {})
    if path.suffix.lower() in (*_SUFFIXES, ".json") or "/" in text:
        raise DataError(text, "no such file; give a model's file, or RUN or RUN@VERSION")
    name, _, version = text.partition("@")
    state = runs.find_run(store, name)
    runs.check_is_model(store, state)
    tables = runs.current_config(store, state.run_id).to_dict()
    made = folder / "model.safetensors"
    request = ExportRequest(made, version or None)
    found = model_export.export_version(store, state, state_dir, request)
    named = folder / f"{state.name}-version-{found.version}.safetensors"
    made.rename(named)
    return GivenModel(named, state.name, tables)


def config_of(
    tables: Mapping[str, Any], given: Mapping[str, Any], path: Path, rows: str
) -> RunConfig:
    """
    The config of an evaluation.

    Args:
        tables: Of the config that is named, or of the model's run.
        given: Fields set on the command line, by section; they win.
        path: The model's file.
        rows: As ``run.rows``.

    Raises:
        ConfigError: A field cannot be used.
    """
    made: dict[str, Any] = deepcopy({name: dict(table) for name, table in tables.items()})
    for section, keys in _UNUSED.items():
        for key in keys or list(made.get(section, {})):
            if key not in given.get(section, {}):
                made.get(section, {}).pop(key, None)
    # Samples are evaluated as they are, and not as a training changes them.
    made.get("task", {}).pop("augment", None)
    if made.get("clients", {}).get("kind") == "simulation":
        made.setdefault("round", {}).setdefault("cohort", 1.0)
    made.setdefault("run", {}).update(purpose="evaluate", rows=rows)
    made["run"].setdefault("evaluate_every", 0)
    made.setdefault("model", {})["initial"] = str(path)
    return RunConfig.from_dict(made)


def name_for(store: Store, name: str, model: str) -> str:
    """
    A new run's name.

    Args:
        name: As it is given; empty: one that is not taken, after the model.

    Raises:
        ConfigError: The given name is taken.
    """
    if name:
        if launching.existing_run(store, name) is not None:
            raise ConfigError(
                "--run",
                f"run {name} exists; see it with `fl-queue result {name}`, or take another name",
            )
        return name
    plain = launching.default_run_name(f"{model}.toml")
    found, number = f"{plain}-evaluation", 1
    while launching.existing_run(store, found) is not None:
        number += 1
        found = f"{plain}-evaluation-{number}"
    return found
