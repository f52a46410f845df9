"""
Environment of a fork server and its trainers: that of their worker without secrets, and what decides bits.

A task's own code reads it. Nothing in it leads to Redis; the site's folders and its list of allowed code stay, as they
are no secrets and come in no request. No Redis and no torch here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from fl_queue.protocol import operator_key

#: What stays of our own variables, all others may be secrets.
_KEPT = frozenset(
    {
        "FLQ_LOG",
        "FLQ_FAULTS",
        "FLQ_SITE_STATE_DIR",
        "FLQ_SITE_CLIENT",
        "FLQ_SITE_DATA",
        "FLQ_SITE_DATA_FROM_CONFIG",
        "FLQ_SITE_ALLOW",
        "FLQ_SITE_DEVICE",
        "FLQ_SITE_DEVICES",
        "FLQ_SITE_THREADS",
        "FLQ_SITE_LOADER_WORKERS",
        "FLQ_SITE_MAX_EXAMPLES",
        "FLQ_SITE_MIN_EXAMPLES",
        "FLQ_SITE_MIN_BATCH",
        "FLQ_SITE_POLICY",
        "FLQ_SITE_APPROVE",
        "FLQ_SITE_COMPILE",
        "FLQ_SITE_WORKER",
        "FLQ_SITE_SUPERVISOR",
        "FLQ_TEST_SESSION",
    }
)
#: systemd's folder of credentials, and the operator's key.
_SECRET = frozenset({"CREDENTIALS_DIRECTORY", operator_key.VARIABLE})
#: URLs of Redis, with or without a password, under whatever name.
_URL = re.compile(r"(redis|rediss|unix|sentinel)s?(\+\w+)?://", re.IGNORECASE)
#: Names of passwords of Redis that come in no URL: that of ``redis-cli``, and what others use.
_PASSWORD = re.compile(r"redis.*(pass|auth)", re.IGNORECASE)
#: Pid of the worker, for faults that tests inject.
WORKER_PID = "FLQ_SITE_WORKER_PID"


def of_trainers(environ: Mapping[str, str], threads: int) -> dict[str, str]:
    """
    The environment of a worker's fork server.

    Args:
        environ: The worker's.
        threads: CPU threads of a training job; what the user has set for a library stays.
    """
    kept = {name: value for name, value in environ.items() if _may_stay(name, value)}
    per_library = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(max(1, threads))
    )
    decides_bits = {
        # Read when the interpreter starts: the order of sets.
        "PYTHONHASHSEED": "0",
        # Read when cuBLAS starts, which a task may cause before its first training.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "TORCHINDUCTOR_DETERMINISTIC": "1",
    }
    return {
        **per_library,
        **decides_bits,
        **_of_compiling(environ),
        **kept,
        WORKER_PID: str(os.getpid()),
    }


def _of_compiling(environ: Mapping[str, str]) -> dict[str, str]:
    """Where ``--compile`` keeps its code, for trainers to come too; one thread, as others would be the job's change."""
    if environ.get("FLQ_SITE_COMPILE", "") != "1":
        return {}
    folder = Path(environ.get("FLQ_SITE_STATE_DIR", "")) / "compiled"
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(folder.absolute()),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }


def _may_stay(name: str, value: str) -> bool:
    if name.startswith("FLQ_"):
        return name in _KEPT
    return name not in _SECRET and not _PASSWORD.search(name) and not _URL.search(value)
