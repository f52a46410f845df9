"""
Every field of a config, declared once: its section, type, default, limits and meaning.

``config/default.toml`` and ``docs/reference/config.md`` are rendered from these classes; tests hold them equal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fl_queue.common.options import OptionTable
from fl_queue.common.spelling import nearest
from fl_queue.config.analysis_catalog import ANALYSES
from fl_queue.config.data_section import DataSection
from fl_queue.config.optimizer_catalog import OPTIMIZERS, no_decay_problem, optimizer_problem
from fl_queue.config.section import FIXED, LOCAL, NEWER, Rate, Section, Share, Use, option
from fl_queue.config.secure_section import SecureSection
from fl_queue.config.task_catalog import TASKS
from fl_queue.protocol.codecs import topk
from fl_queue.protocol.manifest import BATCH_NORM
from fl_queue.strategies import STRATEGIES

_SELECT = re.compile(r"[a-z_0-9]+:(max|min)")
#: A client id (``identifiers.is_name``) with the wildcards of a shell.
_CLIENTS = re.compile(r"[A-Za-z0-9\-*?!\[\]]{1,200}")
_ARROW = "->"
_STOP = re.compile(r"([a-z_0-9]+)\s*(>=|<=|>|<)\s*([0-9.eE+-]+)")


def _select_problem(text: str) -> str | None:
    return (
        None
        if not text or _SELECT.fullmatch(text)
        else f"{text!r} is not `metric:max` or `metric:min`, such as accuracy:max"
    )


def _private_problem(patterns: tuple[str, ...]) -> str | None:
    for pattern in patterns:
        if not pattern or (pattern.startswith("@") and pattern != BATCH_NORM):
            near = nearest(pattern, [BATCH_NORM])
            return f"{pattern!r} is not a pattern such as head.*, nor {BATCH_NORM}{near}"
    return None


def _constant_problem(patterns: tuple[str, ...]) -> str | None:
    if "" in patterns:
        return "holds an empty pattern; write one such as *.position_ids, or leave it out"
    return None


def _clients_problem(patterns: tuple[str, ...]) -> str | None:
    for pattern in patterns:
        if not _CLIENTS.fullmatch(pattern):
            return f"{pattern!r} is neither a client id nor a pattern of one, such as hospital-*"
    return None


def _prefixes_problem(pairs: tuple[str, ...]) -> str | None:
    for pair in pairs:
        if _ARROW not in pair:
            return f"{pair!r} is not `prefix in the file -> prefix in the model`, such as `module. -> `"
    return None


def prefixes(pairs: Sequence[str]) -> list[tuple[str, str]]:
    """The prefixes of ``model.initial_map``: in the file, in the model. Args: ``pairs``: as in the config."""
    found = (pair.partition(_ARROW) for pair in pairs)
    return [(old.strip(), new.strip()) for old, _, new in found]


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


#: A field of asynchronous rounds.
ASYNC = Use(mode="async", instead="it is for round.mode = async")


@dataclass(frozen=True, kw_only=True)
class RunSection(Section):
    """Task, number of rounds, and choice of the best version."""

    NAME = "run"

    task: str = option(
        "mnist-2nn",
        f"a built-in task ({', '.join(TASKS)}), an analysis of tables ({', '.join(ANALYSES)}), your own as module:name (a class or a function), or a Flower client as flower:module:name",
        use=FIXED,
    )
    purpose: Literal["train", "evaluate"] = option(
        "train",
        "train: a model is trained; evaluate: the one of model.initial is evaluated on the clients' rows, and the run ends (fl-queue evaluate)",
        use=Use(fixed=True, newer=True),
    )
    rows: Literal["all", "held_out"] = option(
        "all",
        "of an evaluation: all rows of a client, or those alone that it holds out from training (data.validation_fraction)",
        use=Use(fixed=True, newer=True),
    )
    rounds: int = option(10, "rounds to commit each time the run is started, 1 or more", low=1)
    seed: int = option(
        0,
        "seed of everything random: initial model, cohorts, data split, training; 0 to 2**63-1",
        low=0,
        high=2**63 - 1,
        use=FIXED,
    )
    select: str = option(
        "",
        "which version is the best by the clients' validation (metric:max or metric:min), and is never pruned; empty: the first metric that the task declares, else accuracy:max, or loss:min of a task without accuracy",
        check=_select_problem,
    )
    stop_when: str = option(
        "",
        "stop early once the clients' validation metric holds, such as accuracy >= 0.97; empty: never",
        check=_stop_problem,
    )
    patience: int = option(
        0,
        "stop early once so many versions in a row are no better than the best by run.select, in the clients' validation; 0: never",
        low=0,
        use=NEWER,
    )
    restore_best: bool = option(
        False,
        "at its end the run makes the version that is best by run.select the newest one again",
        use=NEWER,
    )
    preflight: Literal["refuse", "warn", "off"] = option(
        "refuse",
        "before round 1 each site reports its labels, columns and channels: one that differs is left out (refuse), only named (warn), or no site is asked (off)",
    )
    evaluate_every: int = option(
        1,
        "the evaluator scores every so many versions, and the last one; 1: each version; 0: none",
        low=0,
    )


@dataclass(frozen=True, kw_only=True)
class RoundSection(Section):
    """Opening and closing of rounds; docs/guides/async.md explains asynchronous rounds."""

    NAME = "round"

    mode: Literal["sync", "async"] = option(
        "sync",
        "sync: a round waits for its cohort; async: it commits as soon as its buffer is full",
    )
    cohort: Share = option(
        1.0,
        "clients selected for a round: a count (4), or a fraction of those who may take part (0.5, 1.0)",
        use=Use(mode="sync", instead="round.concurrency is how many clients train at a time"),
    )
    quorum: Share = option(
        1.0,
        "accepted updates needed to commit: a count (3), or a fraction of the cohort (0.8, 1.0)",
        use=Use(mode="sync", instead="round.buffer is how many updates make a version"),
    )
    deadline_s: float = option(
        300.0,
        "reporting closes after this time, counted while Redis is up; seconds, above 0",
        above=0,
    )
    grace_s: float = option(
        5.0,
        "extra wait for the rest of the cohort once the quorum is in; seconds, 0 or more",
        low=0,
        use=Use(mode="sync", instead="a full buffer is committed at once"),
    )
    max_abandoned: int = option(
        3, "the run fails after this many abandoned rounds in a row, 1 or more", low=1
    )
    buffer: Share = option(
        0.5,
        "async: updates that make a version: a count (4), or a fraction of the clients that train at a time (0.5)",
        use=ASYNC,
    )
    concurrency: Share = option(
        1.0,
        "async: clients that train at a time: a count (8), or a fraction of those who may take part (0.5, 1.0)",
        use=ASYNC,
    )
    staleness: Literal["polynomial", "constant"] = option(
        "polynomial",
        "async: weight of an update made from an older version: (1 + its age in versions) ** -staleness_exponent, or constant",
        use=ASYNC,
    )
    staleness_exponent: float = option(
        0.5, "async: see staleness; 0 to 10", low=0.0, high=10.0, use=ASYNC
    )
    max_staleness: int = option(
        10,
        "async: a client still at work when its version is older than this many versions is given up; 0 to 100",
        low=0,
        high=100,
        use=ASYNC,
    )


@dataclass(frozen=True, kw_only=True)
class ClientsSection(Section):
    """Which clients take part."""

    NAME = "clients"

    kind: Literal["cross-silo", "simulation"] = option(
        "cross-silo",
        "a worker for each client on its own machine, or virtual clients trained by a pool of processes",
        use=FIXED,
    )
    count: int = option(0, "simulation: virtual clients, 1 or more", low=0, use=FIXED)
    processes: int = option(
        0, "simulation: pool processes that start-round starts; 0: as many as cores", low=0
    )
    include: tuple[str, ...] = option(
        (),
        'clients that may take part: ids and patterns, such as ["hospital-*", "clinic-a"]; empty: all',
        check=_clients_problem,
    )
    exclude: tuple[str, ...] = option(
        (),
        "clients that may not take part, even when they are in include: ids and patterns",
        check=_clients_problem,
    )
    active_s: float = option(
        15.0,
        "a client is alive when its worker renewed its lease within this time; seconds, above 0",
        above=0,
    )


@dataclass(frozen=True, kw_only=True)
class TrainSection(Section):
    """Local training of a client."""

    NAME = "train"

    epochs: int = option(1, "passes over the client's data in a round, 1 or more", low=1)
    batch_size: int = option(10, "samples a step, 1 or more", low=1)
    learning_rate: Rate = option(
        0.1,
        "step size, above 0: a number, or a schedule by round such as [[1, 0.1], [20, 0.01]]",
        above=0,
    )
    momentum: float = option(0.0, "momentum of sgd and rmsprop, 0 to 1", low=0.0, high=1.0)
    weight_decay: float = option(
        0.0,
        "weight decay, 0 or more; decoupled in adamw and lion, else part of the gradient",
        low=0.0,
    )
    optimizer: str = option(
        "sgd",
        f"steps of local training: {', '.join(OPTIMIZERS)}, or your own as module:name",
        check=optimizer_problem,
        use=NEWER,
    )
    optimizer_options: OptionTable = option(
        OptionTable(),
        "options of the optimizer, such as { betas = [0.9, 0.95] }; docs/reference/config.md lists them",
        use=NEWER,
    )
    optimizer_state: Literal["reset", "keep"] = option(
        "reset",
        "momentum and the like: begun anew in each round, or kept by each client from its last accepted update",
        use=NEWER,
    )
    no_decay: tuple[str, ...] = option(
        (),
        'parameters without weight decay: patterns such as ["head.*"], @norm (normalisation layers), @bias',
        check=no_decay_problem,
        use=NEWER,
    )
    schedule: Literal["constant", "linear", "cosine"] = option(
        "constant",
        "learning rate within a round: constant, or falling to 0 (linear, cosine); times train.learning_rate",
        use=NEWER,
    )
    warmup: float = option(
        0.0,
        "part of a round's steps in which the learning rate rises to its full value, 0 to 1",
        low=0.0,
        high=1.0,
        use=NEWER,
    )
    ema: float = option(
        0.0,
        "send the running mean of the weights, m <- ema m + (1 - ema) w after each step; below 1, 0: the last weights",
        low=0.0,
        check=lambda value: (
            None if value < 1 else "1 never leaves the round's model; set it below 1"
        ),
        use=NEWER,
    )
    accumulate: int = option(
        1, "batches whose gradients make one step, for steps larger than memory; 1 or more", low=1
    )
    clip_norm: float = option(
        0.0,
        "a step's gradient is scaled down to at most this L2 norm; 0 leaves it as it is",
        low=0.0,
    )
    precision: Literal["float32", "bfloat16", "float16"] = option(
        "float32",
        "of forward passes in training: float32, bfloat16, or float16 on a GPU; parameters stay float32",
    )
    evaluation_batch: int = option(
        0,
        "samples at a time in an evaluation; 0: four times batch_size, at most 256, and fewer if the outputs would take more than 256 MiB",
        low=0,
        use=NEWER,
    )
    finetune_epochs: int = option(
        0,
        "clients also validate the model after so many epochs on their own data, finetuned_accuracy; 0: no",
        low=0,
    )
    timeout_s: float = option(
        3600.0, "a training job is ended after this time and tried again; seconds, above 0", above=0
    )


@dataclass(frozen=True, kw_only=True)
class AggregationSection(Section):
    """Merging of accepted updates into the next version."""

    NAME = "aggregation"

    strategy: str = option(
        "fedavg",
        f"the strategy: {', '.join(sorted(STRATEGIES))}, or your own as module:Class",
        use=FIXED,
    )
    weighting: Literal["examples", "capped", "uniform"] = option(
        "examples", "weight of an update: its examples, the same capped, or 1"
    )
    cap: int = option(1000, "largest weight with weighting = capped, 1 or more", low=1)
    max_examples: int = option(
        1024**2, "an update that claims more examples counts as one of so many, 1 or more", low=1
    )
    clip_norm: float = option(
        0.0,
        "an update whose parameters have a larger L2 norm is scaled down to it, above 0; 0: never",
        low=0.0,
    )
    limit: float = option(
        64.0, "an update with a parameter change larger than this is rejected, above 0", above=0
    )
    buffer_limit: float = option(
        65536.0, "the same for float buffers, such as BatchNorm statistics, above 0", above=0
    )


@dataclass(frozen=True, kw_only=True)
class UpdateSection(Section):
    """Encoding of updates from clients to the aggregator."""

    NAME = "update"

    codec: Literal["float32", "bfloat16", "int8", "topk"] = option(
        "float32",
        "parameters on the wire: float32 exact, bfloat16 half the bytes, int8 a quarter, topk the largest only",
    )
    fraction: float = option(
        0.01,
        "topk: part of a tensor's elements that is sent, 0.000001 to 1; an element sent is 8 bytes",
        low=topk.LEAST,
        high=1.0,
    )
    error_feedback: bool = option(
        False,
        "clients keep what a lossy codec left out, and add it to their next update",
        use=FIXED,
    )


@dataclass(frozen=True, kw_only=True)
class ModelSection(Section):
    """Versions of the model."""

    NAME = "model"

    codec: Literal["float32", "bfloat16"] = option(
        "float32",
        "parameters of models on their way to clients: float32 exact, bfloat16 half the bytes",
    )
    initial: str = option(
        "",
        "safetensors or torch file to start from; empty: initialised from the seed",
        use=LOCAL,
    )
    initial_mode: Literal["exact", "partial"] = option(
        "exact",
        "exact: the file has every tensor of the model and no other; partial: those with a name of the model's are loaded",
        use=LOCAL,
    )
    initial_fresh: tuple[str, ...] = option(
        (),
        'partial: tensors that stay as the task builds them, patterns such as ["fc.*"], even where the file has them',
        use=LOCAL,
    )
    initial_map: tuple[str, ...] = option(
        (),
        'prefixes of names in the file and in the model, such as ["module. -> ", "encoder. -> backbone."]; the first that fits counts',
        check=_prefixes_problem,
        use=LOCAL,
    )
    max_bytes: int = option(
        16 * 1024**3,
        "version 0 as a client may send it is no larger than this; bytes, 1 to 64 GiB",
        low=1,
        high=64 * 1024**3,
    )
    base: Literal["publish", "local"] = option(
        "publish",
        "the frozen tensors of the model, its base part: publish sends them to each host once; local never, each site builds them",
        use=Use(fixed=True, newer=True),
    )
    constant: tuple[str, ...] = option(
        (),
        'buffers that no training changes, patterns such as ["*.position_ids"]: they go into the base part, too',
        check=_constant_problem,
        use=Use(fixed=True, newer=True),
    )
    private: tuple[str, ...] = option(
        (),
        'tensors that stay on each client, patterns such as ["head.*"] (FedPer), or ["@batch_norm"] (FedBN)',
        check=_private_problem,
        use=FIXED,
    )
    keep_versions: int = option(
        5, "newest versions whose checkpoints are kept, besides the best; 0: all", low=0
    )
    keep_updates: bool = option(
        False,
        "keep accepted updates beside the checkpoints, as long as their base, for fl-queue verify",
    )


@dataclass(frozen=True, kw_only=True)
class SecuritySection(Section):
    """Which clients are trusted."""

    NAME = "security"

    require_enrolment: bool = option(
        False,
        "only enrolled clients are selected, and only signed updates accepted; see fl-queue enroll",
    )


@dataclass(frozen=True, kw_only=True)
class RedisSection(Section):
    """URLs of Redis (this machine's view, not recorded with the run), and how models and updates are sent."""

    NAME = "redis"

    url: str = option(
        "",
        "control server, redis://, rediss://, unix:// or redis+sentinel://; empty: the private servers of the state folder",
        use=LOCAL,
    )
    blob_url: str = option(
        "",
        "data server, the same or redis+cluster:// for a Redis Cluster; empty: the control server",
        use=LOCAL,
    )
    inline_bytes: int = option(
        1024**2,
        "updates up to this size lie in the results list itself; bytes, 0 to 64 MiB",
        low=0,
        high=64 * 1024**2,
    )
    unmerged_bytes: int = option(
        4 * 1024**3,
        "updates of a run that may lie on the data server before they are merged, at most a quarter of its maxmemory; clients wait beyond it; bytes, 1 or more",
        low=1,
    )
    chunk_bytes: int = option(
        4190208,
        "size of a chunk of models and larger updates; bytes, 64 KiB to 64 MiB",
        low=65536,
        high=64 * 1024**2,
        use=FIXED,
    )


#: Section name -> its class, in the order of files and documents.
SECTIONS: dict[str, type[Section]] = {
    kind.NAME: kind
    for kind in (
        RunSection,
        RoundSection,
        ClientsSection,
        DataSection,
        TrainSection,
        AggregationSection,
        UpdateSection,
        ModelSection,
        SecuritySection,
        SecureSection,
        RedisSection,
    )
}
#: Tables whose fields depend on what another field names.
OPEN = ("task", "strategy")
TABLES = (*SECTIONS, *OPEN)


def is_fixed(field: str) -> bool:
    """True if a run keeps the value that it began with. Args: ``field``: ``section.key``."""
    section, _, key = field.partition(".")
    if section == "task":
        return True
    kind = SECTIONS.get(section)
    return kind is not None and key in kind.uses() and kind.uses()[key].fixed
