"""
A checked config: what a run does. No Redis here.

What concerns a site (device, threads, its data folder) is an option of its worker instead, and
where Redis is (``[redis] url``) belongs to the machine: it is not recorded with the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl_queue.common.options import as_plain, unknown_key
from fl_queue.config import consistency
from fl_queue.config.schema import SECTIONS, TABLES
from fl_queue.config.settings import RunSettings
from fl_queue.config.task_catalog import recorded_options, task_options
from fl_queue.errors import ConfigError
from fl_queue.protocol.records import digest_of
from fl_queue.strategies.registry import strategy_options


@dataclass(frozen=True)
class RunConfig(RunSettings):
    """A config whose fields have been checked, each by itself and all together."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> RunConfig:
        """
        Check every field and fill in the defaults.

        Raises:
            ConfigError: Names the first field that cannot be used, and the fix.
        """
        for section in raw:
            if section not in TABLES:
                raise unknown_key(section, TABLES)
            if not isinstance(raw[section], Mapping):
                raise ConfigError(section, f"is a table; write [{section}] and its fields below it")
        tables: dict[str, Any] = {
            name: kind.parse(raw.get(name, {})) for name, kind in SECTIONS.items()
        }
        tables["task"] = task_options(tables["run"].task, dict(raw.get("task", {})))
        named = tables["aggregation"].strategy
        tables["strategy"] = strategy_options(named, dict(raw.get("strategy", {})))
        config = cls(**tables)
        consistency.check(config)
        return config

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain nested dictionaries, as JSON and TOML have them."""
        sections = {name: getattr(self, name).to_dict() for name in SECTIONS}
        return sections | {"task": as_plain(self.task), "strategy": as_plain(self.strategy)}

    def record(self) -> dict[str, dict[str, Any]]:
        """Fields that are recorded with the run: without those of the machine, and new ones at their defaults."""
        plain = self.to_dict()
        plain["task"] = as_plain(recorded_options(self.run.task, self.task))
        for name, kind in SECTIONS.items():
            for key, use in kind.uses().items():
                default = as_plain(kind.options()[key].default)
                if use.local or (use.newer and plain[name][key] == default):
                    del plain[name][key]
            # A worker of an older release refuses a section that it does not know.
            if not plain[name] and all(use.newer for use in kind.uses().values()):
                del plain[name]
        return plain

    @property
    def digest(self) -> str:
        """Digest of the record: the operator signs it, and a site may pin it."""
        return digest_of(self.record())


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted names of the fields in which two recorded configs differ, sorted."""
    names = {
        f"{section}.{key}"
        for record in (old, new)
        for section, fields in record.items()
        for key in fields
    }
    return sorted(name for name in names if _lookup(old, name) != _lookup(new, name))


def _lookup(record: Mapping[str, Any], name: str) -> Any:
    section, key = name.split(".", 1)
    options = SECTIONS[section].options() if section in SECTIONS else {}
    # A run that was made before there was a field did what the default does.
    default = as_plain(options[key].default) if key in options else None
    return record.get(section, {}).get(key, default)
