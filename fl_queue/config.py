"""
TOML -> frozen ``RunConfig``: what a run does, checked field by field. No Redis here.

Precedence: the defaults below < the file < ``FLQ_<SECTION>_<KEY>`` environment variables <
``--set section.key=value``. ``config/default.toml`` and ``docs/config.md`` are rendered from
``SECTIONS``; tests hold them equal.

What concerns a site (device, threads, its data folder) is an option of its worker instead, and
where Redis is (``[redis] url``) belongs to the machine: it never enters the run's record.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_queue import topk
from fl_queue.catalog import TASKS, task_options
from fl_queue.data_fields import DATA_FIELDS, DATA_FIXED, check_data
from fl_queue.errors import ConfigError
from fl_queue.fields import Field, nearest, unknown_key
from fl_queue.records import BATCH_NORM
from fl_queue.strategies import STRATEGIES, get_strategy, strategy_options
from fl_queue.strategies.base import Strategy
from fl_queue.urls import mask

_SELECT = re.compile(r"[a-z_0-9]+:(max|min)")
_STOP = re.compile(r"([a-z_0-9]+)\s*(>=|<=|>|<)\s*([0-9.eE+-]+)")


def _select_problem(text: str) -> str | None:
    return (
        None
        if _SELECT.fullmatch(text)
        else f"{text!r} is not `metric:max` or `metric:min`, such as accuracy:max"
    )


def _private_problem(patterns: tuple[str, ...]) -> str | None:
    for pattern in patterns:
        if not pattern or (pattern.startswith("@") and pattern != BATCH_NORM):
            near = nearest(pattern, [BATCH_NORM])
            return f"{pattern!r} is not a pattern such as head.*, nor {BATCH_NORM}{near}"
    return None


def _stop_problem(text: str) -> str | None:
    if not text:
        return None
    match = _STOP.fullmatch(text)
    if not match:
        return f"{text!r} is not a comparison such as `accuracy >= 0.97`"
    try:
        float(match[3])
    except ValueError:
        return f"{match[3]!r} is not a number; write a comparison such as `accuracy >= 0.97`"
    return None


SECTIONS: dict[str, tuple[str, dict[str, Field]]] = {
    "run": (
        "What is trained, for how long, and which version counts as the best.",
        {
            "task": Field(
                "str",
                "mnist-2nn",
                "a built-in task (mnist-3v7, mnist-2nn, mnist-cnn, image-folder, csv) or your own as module:name, a class or a function",
            ),
            "rounds": Field(
                "int", 10, "rounds to commit each time the run is started, 1 or more", low=1
            ),
            "seed": Field(
                "int",
                0,
                "seed of everything random: initial model, cohorts, data split, training; 0 to 2**63-1",
                low=0,
                high=2**63 - 1,
            ),
            "select": Field(
                "str",
                "accuracy:max",
                "which version is the best (metric:max or metric:min); it is never pruned",
                check=_select_problem,
            ),
            "stop_when": Field(
                "str",
                "",
                "stop early once the clients' validation metric holds, such as accuracy >= 0.97; empty: never",
                check=_stop_problem,
            ),
            "evaluate_every": Field(
                "int",
                1,
                "the evaluator scores every so many versions, and the last one; 1: each version; 0: none",
                low=0,
            ),
        },
    ),
    "round": (
        "When a round opens and when it closes; docs/async.md explains asynchronous rounds.",
        {
            "mode": Field(
                "str",
                "sync",
                "sync: a round waits for its cohort; async: it commits as soon as its buffer is full",
                choices=("sync", "async"),
            ),
            "cohort": Field(
                "share",
                1.0,
                "clients selected for a round: a count (4), or a fraction of the clients alive (0.5, 1.0)",
            ),
            "quorum": Field(
                "share",
                1.0,
                "accepted updates needed to commit: a count (3), or a fraction of the cohort (0.8, 1.0)",
            ),
            "deadline_s": Field(
                "float",
                300.0,
                "reporting closes after this time, counted while Redis is up; seconds, above 0",
                above=0,
            ),
            "grace_s": Field(
                "float",
                5.0,
                "extra wait for the rest of the cohort once the quorum is in; seconds, 0 or more",
                low=0,
            ),
            "max_abandoned": Field(
                "int",
                3,
                "the run fails after this many abandoned rounds in a row, 1 or more",
                low=1,
            ),
            "buffer": Field(
                "share",
                0.5,
                "async: updates that make a version: a count (4), or a fraction of the clients that train at a time (0.5)",
            ),
            "concurrency": Field(
                "share",
                1.0,
                "async: clients that train at a time: a count (8), or a fraction of the clients alive (0.5, 1.0)",
            ),
            "staleness": Field(
                "str",
                "polynomial",
                "async: weight of an update made from an older version: (1 + its age in versions) ** -staleness_exponent, or constant",
                choices=("polynomial", "constant"),
            ),
            "staleness_exponent": Field(
                "float", 0.5, "async: see staleness; 0 to 10", low=0.0, high=10.0
            ),
            "max_staleness": Field(
                "int",
                10,
                "async: a client still at work when its version is older than this many versions is given up; 0 to 100",
                low=0,
                high=100,
            ),
        },
    ),
    "clients": (
        "Who takes part.",
        {
            "kind": Field(
                "str",
                "cross-silo",
                "a worker for each client on its own machine, or virtual clients trained by a pool of processes",
                choices=("cross-silo", "simulation"),
            ),
            "count": Field("int", 0, "simulation: virtual clients, 1 or more", low=0),
            "processes": Field(
                "int",
                0,
                "simulation: pool processes that start-round starts; 0: as many as cores",
                low=0,
            ),
            "active_s": Field(
                "float",
                15.0,
                "a client is alive when its worker was heard of within this time; seconds, above 0",
                above=0,
            ),
        },
    ),
    "data": (
        "Where the built-in tasks find their data, and how it is split over clients.",
        DATA_FIELDS,
    ),
    "train": (
        "How a client trains.",
        {
            "epochs": Field("int", 1, "passes over the client's data in a round, 1 or more", low=1),
            "batch_size": Field("int", 10, "samples a step, 1 or more", low=1),
            "learning_rate": Field(
                "rate",
                0.1,
                "step size, above 0: a number, or a schedule by round such as [[1, 0.1], [20, 0.01]]",
                above=0,
            ),
            "momentum": Field("float", 0.0, "momentum of SGD, 0 to 1", low=0.0, high=1.0),
            "weight_decay": Field("float", 0.0, "weight decay of SGD, 0 or more", low=0.0),
            "accumulate": Field(
                "int",
                1,
                "batches whose gradients make one step, for steps larger than memory; 1 or more",
                low=1,
            ),
            "clip_norm": Field(
                "float",
                0.0,
                "a step's gradient is scaled down to at most this L2 norm; 0 leaves it as it is",
                low=0.0,
            ),
            "finetune_epochs": Field(
                "int",
                0,
                "clients also validate the model after so many epochs on their own data, finetuned_accuracy; 0: no",
                low=0,
            ),
            "timeout_s": Field(
                "float",
                3600.0,
                "a training job is ended after this time and tried again; seconds, above 0",
                above=0,
            ),
        },
    ),
    "aggregation": (
        "How accepted updates become the next model.",
        {
            "strategy": Field(
                "str",
                "fedavg",
                f"the strategy: {', '.join(sorted(STRATEGIES))}, or your own as module:Class",
            ),
            "weighting": Field(
                "str",
                "examples",
                "weight of an update: its examples, the same capped, or 1",
                choices=("examples", "capped", "uniform"),
            ),
            "cap": Field("int", 1000, "largest weight with weighting = capped, 1 or more", low=1),
            "max_examples": Field(
                "int",
                1048576,
                "an update that claims more examples counts as one of so many, 1 or more",
                low=1,
            ),
            "clip_norm": Field(
                "float",
                0.0,
                "an update whose parameters have a larger L2 norm is scaled down to it, above 0; 0: never",
                low=0.0,
            ),
            "limit": Field(
                "float",
                64.0,
                "an update with a parameter change larger than this is rejected, above 0",
                above=0,
            ),
            "buffer_limit": Field(
                "float",
                65536.0,
                "the same for float buffers, such as BatchNorm statistics, above 0",
                above=0,
            ),
        },
    ),
    "update": (
        "How updates travel from clients to the aggregator.",
        {
            "codec": Field(
                "str",
                "float32",
                "parameters on the wire: float32 exact, bfloat16 half the bytes, int8 a quarter, topk the largest only",
                choices=("float32", "bfloat16", "int8", "topk"),
            ),
            "fraction": Field(
                "float",
                0.01,
                "topk: part of a tensor's elements that is sent, 0.000001 to 1; an element sent is 8 bytes",
                low=topk.LEAST,
                high=1.0,
            ),
            "error_feedback": Field(
                "bool",
                False,
                "clients keep what a lossy codec left out, and add it to their next update",
            ),
        },
    ),
    "model": (
        "Versions of the model.",
        {
            "codec": Field(
                "str",
                "float32",
                "parameters of models on their way to clients: float32 exact, bfloat16 half the bytes",
                choices=("float32", "bfloat16"),
            ),
            "initial": Field(
                "str", "", "safetensors file to start from; empty: initialised from the seed"
            ),
            "max_bytes": Field(
                "int",
                17179869184,
                "version 0 as a client may send it is no larger than this; bytes, 1 to 64 GiB",
                low=1,
                high=64 * 1024**3,
            ),
            "private": Field(
                "strs",
                (),
                'tensors that stay on each client, patterns such as ["head.*"] (FedPer), or ["@batch_norm"] (FedBN)',
                check=_private_problem,
            ),
            "keep_versions": Field(
                "int",
                5,
                "newest versions whose checkpoints are kept, besides the best; 0: all",
                low=0,
            ),
            "keep_updates": Field(
                "bool",
                False,
                "keep accepted updates beside the checkpoints, as long as their base, for fl-queue verify",
            ),
        },
    ),
    "security": (
        "Who is believed.",
        {
            "require_enrolment": Field(
                "bool",
                False,
                "only enrolled clients are selected, and only signed updates accepted; see fl-queue enroll",
            ),
        },
    ),
    "redis": (
        "Where Redis is (this machine's view, not recorded with the run), and how blobs travel.",
        {
            "url": Field(
                "str",
                "",
                "control server, redis://, rediss:// or unix://; empty: the private servers of the state folder",
            ),
            "blob_url": Field(
                "str",
                "",
                "data server, or redis+cluster:// for a Redis Cluster; empty: the control server",
            ),
            "inline_bytes": Field(
                "int",
                1048576,
                "updates up to this size lie in the results list itself; bytes, 0 to 64 MiB",
                low=0,
                high=64 * 1024 * 1024,
            ),
            "unmerged_bytes": Field(
                "int",
                4294967296,
                "updates of a run that may lie on the data server before they are merged, at most a quarter of its maxmemory; clients wait beyond it; bytes, 1 or more",
                low=1,
            ),
            "chunk_bytes": Field(
                "int",
                4190208,
                "size of a chunk of models and larger updates; bytes, 64 KiB to 64 MiB",
                low=65536,
                high=64 * 1024 * 1024,
            ),
        },
    ),
}
_LOCAL = {("redis", "url"), ("redis", "blob_url"), ("model", "initial")}
#: Tables whose fields depend on what another field names.
_OPEN = ("task", "strategy")
_TABLES = (*SECTIONS, *_OPEN)
#: Fields of one mode of rounds -> what the other mode has in their place.
_OF_MODE = {
    "sync": {
        "cohort": "round.concurrency is how many clients train at a time",
        "quorum": "round.buffer is how many updates make a version",
        "grace_s": "a full buffer is committed at once",
    },
    "async": dict.fromkeys(
        ("buffer", "concurrency", "staleness", "staleness_exponent", "max_staleness"),
        "it is for round.mode = async",
    ),
}
#: Fields a run keeps for life: a continued run with another value is refused.
FIXED = (
    "run.task", "run.seed", "clients.kind", "clients.count", *DATA_FIXED,
    "aggregation.strategy", "model.private", "redis.chunk_bytes",
)  # fmt: skip


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
            if section not in _TABLES:
                raise unknown_key(section, _TABLES)
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
        check_data(self.data, self.run["task"], self.task, self.clients["count"])
        self._check_strategy()
        self._check_mode()

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
        cohort, quorum = self.round["cohort"], self.round["quorum"]
        if self.clients["kind"] == "simulation":
            cohort = cohort_size(self, self.clients["count"])
        if isinstance(cohort, int):
            return quorum_size(self, cohort)
        return quorum if isinstance(quorum, int) else 0

    def _check_mode(self) -> None:
        settings, name = self.round, self.aggregation["strategy"]
        of_mode = _OF_MODE["sync" if settings["mode"] == "async" else "async"]
        for key, instead in of_mode.items():
            default = SECTIONS["round"][1][key].default
            if settings[key] != default:
                raise ConfigError(
                    f"round.{key}",
                    f"says nothing with round.mode = {settings['mode']}; set it to {_toml(default)} ({instead})",
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
        if self.update["error_feedback"]:
            raise ConfigError(
                "update.error_feedback",
                "what clients left out belongs to rounds that wait for them; set it to false, or round.mode to sync",
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
        return {section: _plain(getattr(self, section)) for section in _TABLES}

    def record(self) -> dict[str, dict[str, Any]]:
        """What is recorded with the run: everything but what belongs to the machine."""
        return {
            section: {key: value for key, value in fields.items() if (section, key) not in _LOCAL}
            for section, fields in self.to_dict().items()
        }

    def learning_rate(self, round_number: int) -> float:
        """The learning rate of a round (numbered from 1): the newest schedule entry that has begun."""
        rate = self.train["learning_rate"]
        if isinstance(rate, float):
            return rate
        return float([value for first, value in rate if first <= max(round_number, 1)][-1])


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
        if match and match[1].lower() in _TABLES:
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
    package = Path(__file__).parent
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "config"


def preset_names() -> list[str]:
    """Names of the shipped configs that ``load`` takes in place of a path."""
    return sorted(file.stem for file in preset_folder().glob("*.toml") if file.stem != "default")


def render_defaults() -> str:
    """The text of ``config/default.toml``: every field with its meaning, unit and range."""
    lines = [
        "# Every field of a fl-queue config with its default. A config of yours holds overrides only.",
        "# Rendered from fl_queue/config.py by `make docs`.",
    ]
    for section, (doc, fields) in SECTIONS.items():
        lines += ["", f"# {doc}", f"[{section}]"]
        for key, field in fields.items():
            lines += [f"# {field.doc}", f"{key} = {_toml(field.default)}"]
    for table in _OPEN:
        lines += ["", f"# Options of the {table} itself; see docs/config.md.", f"[{table}]"]
    return "\n".join(lines) + "\n"


def render_reference() -> str:
    """The text of ``docs/config.md``: the same fields, with their environment variables."""
    lines = [
        "# Config",
        "",
        "A config is a TOML file with overrides only. Precedence: the defaults below, the file,",
        "`FLQ_<SECTION>_<KEY>` environment variables, `--set section.key=value`.",
        "Rendered from `fl_queue/config.py` by `make docs`.",
    ]
    for section, (doc, fields) in SECTIONS.items():
        lines += [
            "",
            f"## [{section}]",
            "",
            doc,
            "",
            "| field | default | meaning | variable |",
            "|---|---|---|---|",
        ]
        for key, field in fields.items():
            variable = f"FLQ_{section.upper()}_{key.upper()}"
            lines.append(
                f"| `{section}.{key}` | `{_toml(field.default)}` | {field.doc} | `{variable}` |"
            )
    lines += ["", "## [task]", "", "Options of the task itself. A task of your own takes any."]
    for name, entry in TASKS.items():
        lines += ["", f"### {name}", "", f"{entry.doc[0].upper()}{entry.doc[1:]}."]
        if entry.options:
            lines += ["", "| option | default | meaning |", "|---|---|---|"]
        for key, field in entry.options.items():
            lines.append(f"| `task.{key}` | `{_toml(field.default)}` | {field.doc} |")
    doc = "Options of the strategy itself (`aggregation.strategy`; see docs/strategies.md)."
    lines += ["", "## [strategy]", "", doc, "", "| strategy | option | default | meaning |"]
    lines += ["|---|---|---|---|"]
    for name, strategy in sorted(STRATEGIES.items()):
        for key, field in strategy.OPTIONS.items():
            default = _toml(field.default)
            lines.append(f"| {name} | `strategy.{key}` | `{default}` | {field.doc} |")
    return "\n".join(lines) + "\n"


def masked(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The config as nested dictionaries, passwords in URLs replaced by ``***``."""
    plain = config.to_dict()
    for key in ("url", "blob_url"):
        plain["redis"][key] = mask(plain["redis"][key])
    return plain


def to_toml(config: Mapping[str, Mapping[str, Any]]) -> str:
    """Nested dictionaries as TOML text."""
    lines: list[str] = []
    for section, fields in config.items():
        lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in fields.items()), ""]
    return "\n".join(lines)


def _section(section: str, fields: Mapping[str, Field], given: Mapping[str, Any]) -> dict[str, Any]:
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
            "CONFIG", f"{name} is neither a file nor a shipped config ({', '.join(preset_names())})"
        )
    return (preset_folder() / f"{name}.toml").read_text(encoding="utf-8")


def _assign(raw: dict[str, Any], section: str, key: str, text: str) -> None:
    if section not in _TABLES:
        raise unknown_key(section, _TABLES)
    if not isinstance(raw.setdefault(section, {}), dict):
        raise ConfigError(section, f"is a table; write [{section}] and its fields below it")
    raw[section][key] = _value(text)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _lookup(record: Mapping[str, Any], name: str) -> Any:
    section, key = name.split(".", 1)
    fields = SECTIONS.get(section, ("", {}))[1]
    # A run that was made before there was a field did what the default does.
    default = _plain(fields[key].default) if key in fields else None
    return record.get(section, {}).get(key, default)


def _toml(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False)
