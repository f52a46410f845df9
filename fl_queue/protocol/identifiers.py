"""
Identifiers of runs, clients, jobs, models and metrics: their forms, parsers and new ones.

A run id is the run's name, a dash and six digits (``demo-3f2a9c``).
"""

from __future__ import annotations

import re
import secrets

from fl_queue.errors import ConfigError, MessageError

EVALUATOR = "evaluator"
AGGREGATOR = "aggregator"
POOL = "pool"
#: Ids of virtual clients begin with it.
VIRTUAL = "sim-"
#: Client ids that mean something else in job ids and receipts.
RESERVED = (AGGREGATOR, EVALUATOR, POOL, "coordinator", "healer")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
#: A run's name, a dash, and six digits.
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,71}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_METRIC = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


def is_name(text: str) -> bool:
    """Whether ``text`` may be a run name or client id: letters, digits, dashes, at most 63."""
    return _NAME.fullmatch(text) is not None


def check_run_name(text: str) -> None:
    """Raise ConfigError unless ``text`` may be a run name."""
    if not is_name(text):
        reason = f"{text!r} is not a run name; use letters, digits and dashes, at most 63"
        raise ConfigError("--run", reason)


def is_run_id(text: str) -> bool:
    """Whether ``text`` may be a run id, and so a part of a file's name."""
    return _RUN.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Whether ``text`` may name a model, and so a file: 64 hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def is_metric(text: str) -> bool:
    """Whether ``text`` may be the name of a metric: a letter, then letters, digits, ``_``, ``.`` and ``-``, at most 64."""
    return _METRIC.fullmatch(text) is not None


# Any process may have written the values in Redis: these parse ids, or raise.


def parse_name(raw: object, what: str = "client id") -> str:
    """
    A run name or client id out of Redis.

    Args:
        raw: Bytes as Redis returns them, or a value out of JSON.
        what: What it should be, for the error.

    Raises:
        MessageError: It is none; so for the others.
    """
    return _parsed(_NAME, raw, what)


def parse_run_id(raw: object) -> str:
    """A run id out of Redis."""
    return _parsed(_RUN, raw, "run id")


def parse_digest(raw: object) -> str:
    """A digest out of Redis."""
    return _parsed(_DIGEST, raw, "digest")


def _parsed(form: re.Pattern[str], raw: object, what: str) -> str:
    text = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
    if type(text) is not str or form.fullmatch(text) is None:
        raise MessageError(f"{str(text)[:80]!r} is no {what}")
    return text


def new_run_id(name: str) -> str:
    """Name + random uid, so that a deleted and recreated run is another run."""
    return f"{name}-{secrets.token_hex(3)}"


def new_job_id(who: str, run: str, number: int) -> str:
    """
    A job id that has never been used (RQ mixes up the old and the new job of a reused one).

    Args:
        who: Client id, group of virtual clients, ``aggregator`` or ``evaluator``; first, so that ACL patterns can match it.
        run: Run id.
        number: Round, or version for an evaluation.
    """
    return f"{who}_{run}_{number}_{secrets.token_hex(4)}"
