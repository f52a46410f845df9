"""
Every field of a config: its section, type, range, default and meaning. One table, nothing that reads it.

``config/default.toml`` and ``docs/reference/config.md`` are rendered from it; tests hold them equal.
"""

from __future__ import annotations

import re

from fl_queue.common.options import Option
from fl_queue.common.spelling import nearest
from fl_queue.config.data_section import DATA_FIELDS, DATA_FIXED
from fl_queue.protocol.codecs import topk
from fl_queue.protocol.manifest import BATCH_NORM
from fl_queue.strategies import STRATEGIES

_SELECT = re.compile(r"[a-z_0-9]+:(max|min)")
#: A client id (``identifiers.is_name``) with the wildcards of a shell.
_CLIENTS = re.compile(r"[A-Za-z0-9\-*?!\[\]]{1,200}")
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


def _clients_problem(patterns: tuple[str, ...]) -> str | None:
    for pattern in patterns:
        if not _CLIENTS.fullmatch(pattern):
            return f"{pattern!r} is neither a client id nor a pattern of one, such as hospital-*"
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


SECTIONS: dict[str, tuple[str, dict[str, Option]]] = {
    "run": (
        "What is trained, for how long, and which version counts as the best.",
        {
            "task": Option(
                "str",
                "mnist-2nn",
                "a built-in task (mnist-3v7, mnist-2nn, mnist-cnn, image-folder, csv), your own as module:name (a class or a function), or a Flower client as flower:module:name",
            ),
            "rounds": Option(
                "int", 10, "rounds to commit each time the run is started, 1 or more", low=1
            ),
            "seed": Option(
                "int",
                0,
                "seed of everything random: initial model, cohorts, data split, training; 0 to 2**63-1",
                low=0,
                high=2**63 - 1,
            ),
            "select": Option(
                "str",
                "",
                "which version is the best by the clients' validation (metric:max or metric:min), and is never pruned; empty: accuracy:max, or loss:min of a task without accuracy",
                check=_select_problem,
            ),
            "stop_when": Option(
                "str",
                "",
                "stop early once the clients' validation metric holds, such as accuracy >= 0.97; empty: never",
                check=_stop_problem,
            ),
            "preflight": Option(
                "str",
                "refuse",
                "before round 1 sites tell labels, columns and channels: one that differs is left out (refuse), only named (warn), or nobody asks (off)",
                choices=("refuse", "warn", "off"),
            ),
            "evaluate_every": Option(
                "int",
                1,
                "the evaluator scores every so many versions, and the last one; 1: each version; 0: none",
                low=0,
            ),
        },
    ),
    "round": (
        "When a round opens and when it closes; docs/guides/async.md explains asynchronous rounds.",
        {
            "mode": Option(
                "str",
                "sync",
                "sync: a round waits for its cohort; async: it commits as soon as its buffer is full",
                choices=("sync", "async"),
            ),
            "cohort": Option(
                "share",
                1.0,
                "clients selected for a round: a count (4), or a fraction of those who may take part (0.5, 1.0)",
            ),
            "quorum": Option(
                "share",
                1.0,
                "accepted updates needed to commit: a count (3), or a fraction of the cohort (0.8, 1.0)",
            ),
            "deadline_s": Option(
                "float",
                300.0,
                "reporting closes after this time, counted while Redis is up; seconds, above 0",
                above=0,
            ),
            "grace_s": Option(
                "float",
                5.0,
                "extra wait for the rest of the cohort once the quorum is in; seconds, 0 or more",
                low=0,
            ),
            "max_abandoned": Option(
                "int",
                3,
                "the run fails after this many abandoned rounds in a row, 1 or more",
                low=1,
            ),
            "buffer": Option(
                "share",
                0.5,
                "async: updates that make a version: a count (4), or a fraction of the clients that train at a time (0.5)",
            ),
            "concurrency": Option(
                "share",
                1.0,
                "async: clients that train at a time: a count (8), or a fraction of those who may take part (0.5, 1.0)",
            ),
            "staleness": Option(
                "str",
                "polynomial",
                "async: weight of an update made from an older version: (1 + its age in versions) ** -staleness_exponent, or constant",
                choices=("polynomial", "constant"),
            ),
            "staleness_exponent": Option(
                "float", 0.5, "async: see staleness; 0 to 10", low=0.0, high=10.0
            ),
            "max_staleness": Option(
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
            "kind": Option(
                "str",
                "cross-silo",
                "a worker for each client on its own machine, or virtual clients trained by a pool of processes",
                choices=("cross-silo", "simulation"),
            ),
            "count": Option("int", 0, "simulation: virtual clients, 1 or more", low=0),
            "processes": Option(
                "int",
                0,
                "simulation: pool processes that start-round starts; 0: as many as cores",
                low=0,
            ),
            "include": Option(
                "strs",
                (),
                'who may take part: client ids and patterns, such as ["hospital-*", "clinic-a"]; empty: everybody',
                check=_clients_problem,
            ),
            "exclude": Option(
                "strs",
                (),
                "who may not, also of those in include: client ids and patterns",
                check=_clients_problem,
            ),
            "active_s": Option(
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
            "epochs": Option(
                "int", 1, "passes over the client's data in a round, 1 or more", low=1
            ),
            "batch_size": Option("int", 10, "samples a step, 1 or more", low=1),
            "learning_rate": Option(
                "rate",
                0.1,
                "step size, above 0: a number, or a schedule by round such as [[1, 0.1], [20, 0.01]]",
                above=0,
            ),
            "momentum": Option("float", 0.0, "momentum of SGD, 0 to 1", low=0.0, high=1.0),
            "weight_decay": Option("float", 0.0, "weight decay of SGD, 0 or more", low=0.0),
            "accumulate": Option(
                "int",
                1,
                "batches whose gradients make one step, for steps larger than memory; 1 or more",
                low=1,
            ),
            "clip_norm": Option(
                "float",
                0.0,
                "a step's gradient is scaled down to at most this L2 norm; 0 leaves it as it is",
                low=0.0,
            ),
            "precision": Option(
                "str",
                "float32",
                "of forward passes in training: float32, bfloat16, or float16 on a GPU; parameters stay float32",
                choices=("float32", "bfloat16", "float16"),
            ),
            "finetune_epochs": Option(
                "int",
                0,
                "clients also validate the model after so many epochs on their own data, finetuned_accuracy; 0: no",
                low=0,
            ),
            "timeout_s": Option(
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
            "strategy": Option(
                "str",
                "fedavg",
                f"the strategy: {', '.join(sorted(STRATEGIES))}, or your own as module:Class",
            ),
            "weighting": Option(
                "str",
                "examples",
                "weight of an update: its examples, the same capped, or 1",
                choices=("examples", "capped", "uniform"),
            ),
            "cap": Option("int", 1000, "largest weight with weighting = capped, 1 or more", low=1),
            "max_examples": Option(
                "int",
                1048576,
                "an update that claims more examples counts as one of so many, 1 or more",
                low=1,
            ),
            "clip_norm": Option(
                "float",
                0.0,
                "an update whose parameters have a larger L2 norm is scaled down to it, above 0; 0: never",
                low=0.0,
            ),
            "limit": Option(
                "float",
                64.0,
                "an update with a parameter change larger than this is rejected, above 0",
                above=0,
            ),
            "buffer_limit": Option(
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
            "codec": Option(
                "str",
                "float32",
                "parameters on the wire: float32 exact, bfloat16 half the bytes, int8 a quarter, topk the largest only",
                choices=("float32", "bfloat16", "int8", "topk"),
            ),
            "fraction": Option(
                "float",
                0.01,
                "topk: part of a tensor's elements that is sent, 0.000001 to 1; an element sent is 8 bytes",
                low=topk.LEAST,
                high=1.0,
            ),
            "error_feedback": Option(
                "bool",
                False,
                "clients keep what a lossy codec left out, and add it to their next update",
            ),
        },
    ),
    "model": (
        "Versions of the model.",
        {
            "codec": Option(
                "str",
                "float32",
                "parameters of models on their way to clients: float32 exact, bfloat16 half the bytes",
                choices=("float32", "bfloat16"),
            ),
            "initial": Option(
                "str", "", "safetensors file to start from; empty: initialised from the seed"
            ),
            "max_bytes": Option(
                "int",
                17179869184,
                "version 0 as a client may send it is no larger than this; bytes, 1 to 64 GiB",
                low=1,
                high=64 * 1024**3,
            ),
            "private": Option(
                "strs",
                (),
                'tensors that stay on each client, patterns such as ["head.*"] (FedPer), or ["@batch_norm"] (FedBN)',
                check=_private_problem,
            ),
            "keep_versions": Option(
                "int",
                5,
                "newest versions whose checkpoints are kept, besides the best; 0: all",
                low=0,
            ),
            "keep_updates": Option(
                "bool",
                False,
                "keep accepted updates beside the checkpoints, as long as their base, for fl-queue verify",
            ),
        },
    ),
    "security": (
        "Who is believed.",
        {
            "require_enrolment": Option(
                "bool",
                False,
                "only enrolled clients are selected, and only signed updates accepted; see fl-queue enroll",
            ),
        },
    ),
    "redis": (
        "Where Redis is (this machine's view, not recorded with the run), and how blobs travel.",
        {
            "url": Option(
                "str",
                "",
                "control server, redis://, rediss://, unix:// or redis+sentinel://; empty: the private servers of the state folder",
            ),
            "blob_url": Option(
                "str",
                "",
                "data server, the same or redis+cluster:// for a Redis Cluster; empty: the control server",
            ),
            "inline_bytes": Option(
                "int",
                1048576,
                "updates up to this size lie in the results list itself; bytes, 0 to 64 MiB",
                low=0,
                high=64 * 1024 * 1024,
            ),
            "unmerged_bytes": Option(
                "int",
                4294967296,
                "updates of a run that may lie on the data server before they are merged, at most a quarter of its maxmemory; clients wait beyond it; bytes, 1 or more",
                low=1,
            ),
            "chunk_bytes": Option(
                "int",
                4190208,
                "size of a chunk of models and larger updates; bytes, 64 KiB to 64 MiB",
                low=65536,
                high=64 * 1024 * 1024,
            ),
        },
    ),
}
LOCAL = {("redis", "url"), ("redis", "blob_url"), ("model", "initial")}
#: Tables whose fields depend on what another field names.
OPEN = ("task", "strategy")
TABLES = (*SECTIONS, *OPEN)
#: Fields of one mode of rounds -> what the other mode has in their place.
OF_MODE = {
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
    "aggregation.strategy", "model.private", "update.error_feedback", "redis.chunk_bytes",
)  # fmt: skip
