"""Start a run for the page and the API, as ``start-round --no-wait`` does; fields that name files are refused."""

from __future__ import annotations

from pathlib import Path

from fl_queue.common.safe_json import is_count
from fl_queue.config import loading
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.errors import ConfigError
from fl_queue.experiments import launching
from fl_queue.reporting import run_status
from fl_queue.reporting.run_status import RunStatus
from fl_queue.store import Store

#: Fields that name files and servers of this machine: they are set in a config here, not by a request.
REFUSED = ("redis.url", "redis.blob_url", "model.initial")
#: Field of the form -> of the config.
FORM_FIELDS = {
    "learning_rate": "train.learning_rate",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "train_per_class": "data.train_per_class",
    "validation_per_class": "data.validation_per_class",
}
_RANGES = ("train_per_class", "validation_per_class")


class Configs:
    """The configs that can be launched: the shipped ones, and those of a folder, which win."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Their names, sorted."""
        own = [path.stem for path in self.folder.glob("*.toml")] if self.folder else []
        return sorted({*loading.preset_names(), *own})

    def source(self, name: str) -> str:
        """
        Source for ``loading.load``.

        Raises:
            ConfigError: There is none of that name; a path is no name.
        """
        if name not in self.names():
            raise ConfigError("config", f"{name!r} is none of {', '.join(self.names())}")
        own = self.folder / f"{name}.toml" if self.folder else None
        return str(own) if own is not None and own.is_file() else name


def launch(
    store: Store,
    offered: Configs,
    config: str,
    name: str = "",
    count: int | None = None,
    overrides: tuple[str, ...] = (),
) -> RunStatus:
    """
    Start a run, or continue it.

    Args:
        config: Name of a config that is offered.
        name: Of the run; empty: that of the config.
        count: Rounds of training; None: ``run.rounds`` of the config.
        overrides: ``section.key=value``.

    Raises:
        ConfigError, RunStateError, StoreUnavailable: As ``start-round`` would.
    """
    for override in overrides:
        field = override.partition("=")[0].strip()
        if field in REFUSED:
            raise ConfigError(field, "cannot be set from here; write it in a config of --configs")
    loaded = loading.load(offered.source(config), overrides)
    store.check()  # Both servers: without the data server no round is opened.
    run = launching.begin(store, name or launching.default_run_name(config), loaded, count)
    lifecycle.advance(store, run)
    return run_status.run_status(store, runs.find_run(store, run))


def from_form(given: dict[str, str]) -> tuple[str, str, int | None, tuple[str, ...]]:
    """
    Read config, run, rounds and overrides from a form; an empty field leaves the config's value.

    Raises:
        ConfigError: ``rounds`` is no count.
    """
    count = given.get("rounds", "")
    if count and not (is_count(count) and 0 < int(count) < 2**31):
        raise ConfigError("rounds", f"{count!r} is not a count; write 1 or more")
    overrides = [line.strip() for line in given.get("more", "").splitlines() if line.strip()]
    for name, field in FORM_FIELDS.items():
        text = given.get(name, "")
        if text and name in _RANGES and not text.startswith("["):
            text = f"[{text}]"
        if text:
            overrides.append(f"{field}={text}")
    return given.get("config", ""), given.get("run", ""), int(count or 0) or None, tuple(overrides)
