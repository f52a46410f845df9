"""
TOML -> frozen ``RunConfig``: what a run does, checked field by field. No Redis here.

Precedence: the defaults in ``schema`` < the file < ``FLQ_<SECTION>_<KEY>`` environment variables <
``--set section.key=value``.

What concerns a site (device, threads, its data folder) is an option of its worker instead, and
where Redis is (``[redis] url``) belongs to the machine: it never enters the run's record.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_queue.aggregation.sum_format import SumFormat, sum_format
from fl_queue.common.options import Option, as_plain, toml_value, unknown_key
from fl_queue.common.spelling import nearest
from fl_queue.config.data_section import check_data
from fl_queue.config.schema import LOCAL, OF_MODE, SECTIONS, TABLES
from fl_queue.config.task_catalog import TASKS, task_options
from fl_queue.errors import ConfigError
from fl_queue.protocol.identifiers import is_name
from fl_queue.protocol.records import digest_of
from fl_queue.strategies import STRATEGIES, get_strategy, strategy_options
from fl_queue.strategies.base import Strategy


@dataclass(frozen=True)
class RunConfig:
    """
    A checked config. Sections are read-only mappings: ``config.train["epochs"]``.

    ``task`` and ``strategy`` hold the options of the task and of the strategy themselves.
    """

    run: Mapping[str, Any]
    round: Mapping[str, Any]
    clients: Mapping[str, Any]
    data: Mapping[str, Any]
    train: Mapping[str, Any]
    aggregation: Mapping[str, Any]
    update: Mapping[str, Any]
    model: Mapping[str, Any]
    security: Mapping[str, Any]
    redis: Mapping[str, Any]
    task: Mapping[str, Any]
    strategy: Mapping[str, Any]

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
        sections: dict[str, Any] = {}
        for section, (_, fields) in SECTIONS.items():
            sections[section] = _section(section, fields, raw.get(section, {}))
        sections["task"] = task_options(sections["run"]["task"], dict(raw.get("task", {})))
        named = sections["aggregation"]["strategy"]
        sections["strategy"] = strategy_options(named, dict(raw.get("strategy", {})))
        config = cls(**sections)
        config._check_together()
        return config

    def _check_together(self) -> None:
        cohort, quorum = self.round["cohort"], self.round["quorum"]
        if isinstance(cohort, int) and isinstance(quorum, int) and quorum > cohort:
            raise ConfigError(
                "round.quorum",
                f"{quorum} is more than round.cohort = {cohort}; lower the quorum or raise the cohort",
            )
        if self.clients["kind"] == "simulation":
            self._check_simulation()
            size = self._known_cohort()
            if isinstance(quorum, int) and quorum > size:
                raise ConfigError(
                    "round.quorum",
                    f"{quorum} is more than the {size} clients of a round (round.cohort = {cohort} of "
                    f"clients.count = {self.clients['count']}); lower it",
                )
        check_data(self.data, self.run["task"], self.task, self.clients["count"])
        self._check_strategy()
        self._check_mode()
        self._check_named()
        self._check_sums()

    def _check_named(self) -> None:
        """Fields about how many clients there can be at most, where the config itself says that."""
        include, cohort = self.clients["include"], self.round["cohort"]
        if self.clients["kind"] == "simulation":
            return
        field, wanted = "round.cohort", cohort
        if self.round["mode"] == "async":
            field, wanted = "round.concurrency", self.round["concurrency"]
        if not isinstance(wanted, int):
            return
        if include and all(map(is_name, include)) and wanted > len(set(include)):
            raise ConfigError(
                field,
                f"{wanted} is more than the {len(set(include))} clients of clients.include; lower it",
            )
        shares, is_split = self.data["shares"], self.data["partition"] != "site"
        if is_split and self.run["task"] in TASKS and 0 < shares < wanted:
            raise ConfigError(
                field,
                f"{wanted} is more than data.shares = {shares}, and each client takes one; lower it",
            )

    def _check_sums(self) -> None:
        """Refuse what leaves no room for the exact sum of as many updates as are known to come."""
        self.format_of_sum()
        if self.round["mode"] != "async":
            check_room(self, self._most_updates())

    def format_of_sum(self) -> SumFormat:
        """
        The format of a round's sum, of as many updates as are known to come.

        Raises:
            ConfigError: There is no room for them.
        """
        if self.round["mode"] == "async":
            return sum_format(self.aggregation, self.strategy, self._known_buffer(), self.round)
        return sum_format(self.aggregation, self.strategy, self._most_updates())

    def _known_cohort(self) -> int:
        """Clients of a round; 0: that depends on how many will be alive."""
        if self.clients["kind"] == "simulation":
            return cohort_size(self, self.clients["count"])
        cohort = self.round["cohort"]
        return cohort if isinstance(cohort, int) else 0

    def _known_buffer(self) -> int:
        """Updates of an asynchronous round; 1 where that depends on how many clients will be alive."""
        return buffer_size(self, concurrency_size(self, self._most_clients() or 1))

    def _most_updates(self) -> int:
        """Updates that a synchronous round merges at most; 1 where the config does not say how many."""
        return self._known_cohort() or cohort_size(self, self._most_clients() or 1)

    def _most_clients(self) -> int:
        """How many clients there can be at most, where the config says so; 0: any number."""
        include, shares = self.clients["include"], self.data["shares"]
        said = [len(set(include))] if include and all(map(is_name, include)) else []
        if shares and self.data["partition"] != "site" and self.run["task"] in TASKS:
            said.append(shares)
        return min(said, default=0)

    def _check_strategy(self) -> None:
        name, weighting = self.aggregation["strategy"], self.aggregation["weighting"]
        strategy = get_strategy(name, self.strategy)
        if weighting not in strategy.WEIGHTINGS:
            raise ConfigError(
                "aggregation.weighting",
                f"{weighting} is not what {name} is defined for; set it to {strategy.WEIGHTINGS[0]}",
            )
        if self.aggregation["clip_norm"] and not strategy.may_clip:
            fit = ", ".join(sorted(name for name, kind in STRATEGIES.items() if kind.may_clip))
            raise ConfigError(
                "aggregation.clip_norm",
                f"{name} reckons with updates as they were made; set it to 0, or take one of {fit}",
            )
        if strategy.personal and self.model["private"]:
            raise ConfigError(
                "model.private",
                f"{name} keeps a whole model at each client already; leave it empty, or use another strategy",
            )
        if strategy.needs_exact_updates and self.update["codec"] != "float32":
            raise ConfigError(
                "update.codec",
                f"{name} needs updates as they were made; set it to float32",
            )
        if self.update["error_feedback"] and self.update["codec"] == "float32":
            raise ConfigError(
                "update.error_feedback",
                "float32 leaves nothing out; set it to false, or take another update.codec",
            )
        smallest = self._smallest_quorum()
        problem = too_few_for(name, strategy, smallest) if smallest else ""
        if problem:
            raise ConfigError("round.quorum", problem)

    def _smallest_quorum(self) -> int:
        """The fewest updates a round may be made of; 0: that depends on how many clients will be alive."""
        cohort, quorum = self._known_cohort(), self.round["quorum"]
        if cohort:
            return quorum_size(self, cohort)
        return quorum if isinstance(quorum, int) else 0

    def _check_mode(self) -> None:
        settings, name = self.round, self.aggregation["strategy"]
        of_mode = OF_MODE["sync" if settings["mode"] == "async" else "async"]
        for key, instead in of_mode.items():
            default = SECTIONS["round"][1][key].default
            if settings[key] != default:
                raise ConfigError(
                    f"round.{key}",
                    f"says nothing with round.mode = {settings['mode']}; set it to {toml_value(default)} ({instead})",
                )
        if settings["mode"] == "sync":
            return
        buffer, concurrency = settings["buffer"], settings["concurrency"]
        if isinstance(buffer, int) and isinstance(concurrency, int) and buffer > concurrency:
            raise ConfigError(
                "round.buffer",
                f"{buffer} is more than round.concurrency = {concurrency}, and a client has one update in a buffer; lower it, or raise the concurrency",
            )
        if self.clients["kind"] == "simulation":
            raise ConfigError(
                "round.mode",
                "async needs clients with workers of their own, and a pool trains virtual ones in groups; set it to sync, or start client workers (clients.kind = cross-silo)",
            )
        # Of an own strategy only the server's step is its own, and that sees the mean.
        if ":" not in name and not get_strategy(name, self.strategy).takes_stale:
            raise ConfigError(
                "round.mode",
                f"{name} is defined for a cohort that starts from one version; set it to sync, or aggregation.strategy to fedavg",
            )

    def _check_simulation(self) -> None:
        if self.security["require_enrolment"]:
            raise ConfigError(
                "security.require_enrolment",
                "virtual clients cannot be enrolled; leave it false in a simulation",
            )
        for name in ("include", "exclude"):
            if self.clients[name]:
                raise ConfigError(
                    f"clients.{name}",
                    "is for client workers; virtual clients all take part: leave it empty",
                )
        count, cohort, shares = self.clients["count"], self.round["cohort"], self.data["shares"]
        if count < 1:
            raise ConfigError(
                "clients.count", "a simulation needs 1 virtual client or more; set it"
            )
        if isinstance(cohort, int) and cohort > count:
            raise ConfigError(
                "round.cohort",
                f"{cohort} is more than clients.count = {count}; lower it, or raise the count",
            )
        if 0 < shares < count:
            raise ConfigError(
                "data.shares",
                f"{shares} is fewer than clients.count = {count}; leave it 0, or raise it",
            )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain nested dictionaries, as JSON and TOML have them."""
        return {section: as_plain(getattr(self, section)) for section in TABLES}

    def record(self) -> dict[str, dict[str, Any]]:
        """What is recorded with the run: everything but what belongs to the machine."""
        return {
            section: {key: value for key, value in fields.items() if (section, key) not in LOCAL}
            for section, fields in self.to_dict().items()
        }

    @property
    def digest(self) -> str:
        """What the record is called by: the operator signs it, and a site may pin it."""
        return digest_of(self.record())

    @property
    def is_simulation(self) -> bool:
        """True if the clients of the run are virtual."""
        return bool(self.clients["kind"] == "simulation")

    @property
    def processes(self) -> int:
        """Pool processes the run asks for; as many as this machine lends us cores when it names none."""
        return int(self.clients["processes"]) or len(os.sched_getaffinity(0))

    @property
    def premerges(self) -> bool:
        """
        True if the updates of a group of virtual clients may travel as their sum.

        Nothing may need them one by one: neither ``verify`` nor the strategy.
        """
        strategy = get_strategy(self.aggregation["strategy"], self.strategy)
        return not (self.model["keep_updates"] or strategy.needs_all)

    def learning_rate(self, round_number: int) -> float:
        """The learning rate of a round (numbered from 1): the newest schedule entry that has begun."""
        rate = self.train["learning_rate"]
        if isinstance(rate, float):
            return rate
        return float([value for first, value in rate if first <= max(round_number, 1)][-1])


def check_room(config: RunConfig, updates: int) -> None:
    """
    Refuse a rule that needs all updates at once where they are known to have no room together.

    Raises:
        ConfigError: ``redis.unmerged_bytes``, of a built-in task whose model's size is known.
    """
    name, room = config.aggregation["strategy"], config.redis["unmerged_bytes"]
    task = TASKS.get(config.run["task"])
    if task is None or not get_strategy(name, config.strategy).needs_all:
        return
    needed = updates * 4 * task.parameters
    if config.update["codec"] == "float32" and needed > room:
        raise ConfigError(
            "redis.unmerged_bytes",
            f"{name} needs the {updates} updates of a round at once, {needed} bytes, and {room} may lie on "
            "the data server; raise it, or lower round.cohort",
        )


def cohort_size(config: RunConfig, alive: int) -> int:
    """How many of ``alive`` clients a round selects; a count may be more than there are."""
    return _count(config.round["cohort"], alive)


def quorum_size(config: RunConfig, cohort: int) -> int:
    """How many accepted updates a cohort of that size needs to commit."""
    return min(cohort, _count(config.round["quorum"], cohort))


def too_few_for(name: str, strategy: Strategy, quorum: int) -> str:
    """Why a strategy cannot merge as few updates as a quorum allows; empty when it can."""
    fewest = strategy.fewest()
    if quorum >= fewest:
        return ""
    options = ", ".join(f"{key} = {value}" for key, value in strategy.options.items())
    needs = f"; {strategy.NEEDS}" if strategy.NEEDS else ""
    return (
        f"{name} ({options}{needs}) needs {fewest} updates at least, the quorum is {quorum};"
        " raise round.quorum and round.cohort, or change [strategy]"
    )


def concurrency_size(config: RunConfig, clients: int) -> int:
    """How many of the clients there are train at a time in asynchronous rounds; a count may be more."""
    return _count(config.round["concurrency"], clients)


def buffer_size(config: RunConfig, concurrency: int) -> int:
    """How many updates make a version in asynchronous rounds."""
    return _count(config.round["buffer"], concurrency)


def _count(share: int | float, whole: int) -> int:
    # Rounded up: a quorum of 0.8 of 4 is 4 of 4, never fewer than the fraction asked for.
    return share if isinstance(share, int) else max(1, -int(-share * whole // 1))


def load(
    source: str | None,
    overrides: tuple[str, ...] = (),
    environ: Mapping[str, str] = os.environ,
) -> RunConfig:
    """
    Read a config: a TOML file, or the name of a shipped one (``demo``, ``mnist-2nn``), or none.

    Args:
        source: Path or name; None for the defaults alone.
        overrides: ``section.key=value`` texts, values as in TOML (bare words are text).
        environ: Environment with ``FLQ_<SECTION>_<KEY>`` variables.

    Raises:
        ConfigError: The file cannot be read, or a field cannot be used.
    """
    raw = _read(source) if source else {}
    for name, text in sorted(environ.items()):
        match = re.fullmatch(r"FLQ_([A-Z]+)_(\w+)", name)
        if match and match[1].lower() in TABLES:
            _assign(raw, match[1].lower(), match[2].lower(), text)
    for override in overrides:
        match = re.fullmatch(r"([a-z]+)\.([A-Za-z_0-9]+)=(.*)", override, re.DOTALL)
        if not match:
            raise ConfigError(
                "--set", f"{override!r} is not section.key=value, such as train.epochs=5"
            )
        _assign(raw, match[1], match[2], match[3])
    return RunConfig.from_dict(raw)


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted names of the fields in which two recorded configs differ, sorted."""
    names = {
        f"{section}.{key}"
        for record in (old, new)
        for section, fields in record.items()
        for key in fields
    }
    return sorted(name for name in names if _lookup(old, name) != _lookup(new, name))


def preset_folder() -> Path:
    """Where the shipped configs are: ``config/`` of a checkout, ``presets/`` of an installed package."""
    package = Path(__file__).parents[1]
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "config"


def preset_names() -> list[str]:
    """Names of the shipped configs that ``load`` takes in place of a path."""
    return sorted(file.stem for file in preset_folder().glob("*.toml") if file.stem != "default")


def _section(
    section: str, fields: Mapping[str, Option], given: Mapping[str, Any]
) -> dict[str, Any]:
    for key in given:
        if key not in fields:
            raise unknown_key(f"{section}.{key}", [f"{section}.{name}" for name in fields])
    return {
        key: field.parse(f"{section}.{key}", given[key]) if key in given else field.default
        for key, field in fields.items()
    }


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    try:
        if path.suffix != ".toml" and not path.exists():
            return tomllib.loads(_preset(source))
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError("CONFIG", f"{source} cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError("CONFIG", f"{source} is not UTF-8 text") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError("CONFIG", f"{source} is not valid TOML: {exc}") from exc


def _preset(name: str) -> str:
    if name not in preset_names():
        raise ConfigError(
            "CONFIG",
            f"{name} is neither a file nor a shipped config{nearest(name, preset_names())} "
            f"({', '.join(preset_names())})",
        )
    return (preset_folder() / f"{name}.toml").read_text(encoding="utf-8")


def _assign(raw: dict[str, Any], section: str, key: str, text: str) -> None:
    if section not in TABLES:
        raise unknown_key(section, TABLES)
    if not isinstance(raw.setdefault(section, {}), dict):
        raise ConfigError(section, f"is a table; write [{section}] and its fields below it")
    raw[section][key] = _value(text)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _lookup(record: Mapping[str, Any], name: str) -> Any:
    section, key = name.split(".", 1)
    fields = SECTIONS.get(section, ("", {}))[1]
    # A run that was made before there was a field did what the default does.
    default = as_plain(fields[key].default) if key in fields else None
    return record.get(section, {}).get(key, default)
