"""
Statements that the operator signs about a run, and their check. No Redis here.

There are three kinds of statement. Each is JSON with sorted keys, so the same values are the same bytes:

    config    one segment of a run's config: run id, name, number of the segment, digests of the config
              and of the initial model
    version   one version of the model: run id, number, and the digests that make it up
    round     one round: what its clients are to start from, under which config, and who they are

A version's statement and a config's are rebuilt by the process that checks them: Redis keeps the signature alone.
A round's is kept whole, so that a site can name the field that was changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from blake3 import blake3

from fl_queue.common.safe_json import dumps
from fl_queue.protocol import operator_key
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.operator_key import OperatorKey
from fl_queue.protocol.records import Purpose, digest_of
from fl_queue.protocol.state import RoundState, RunState

Kind = Literal["config", "version", "round"]
Statement = dict[str, Any]
#: A round's statement has digests in place of lists: nothing makes a longer one.
_MAX_CHARS = 64 * 1024

#: Of a segment of a run's config, and of an entry of its versions.
SIGNATURE = "signature"


def manifest_digest(manifest: Manifest | None) -> str:
    """Of a run's model; empty before version 0."""
    return "" if manifest is None else blake3(manifest.to_json().encode()).hexdigest()


def initial_digest(initial: Mapping[str, Any] | None) -> str:
    """Of what a run records of its initial model; empty: it has none."""
    return digest_of(dict(initial)) if initial else ""


def of_segment(run: str, name: str, number: int, segment: Mapping[str, Any]) -> Statement:
    """A segment of a run's config. Args: ``segment``: as the run's ``config`` key has it."""
    return {
        "run": run,
        "name": name,
        "segment": number,
        "config": digest_of(segment["config"]),
        "initial": segment.get("initial", ""),
    }


def of_version(run: str, version: int, entry: Mapping[str, Any], manifest: str) -> Statement:
    """
    A version of the model.

    Args:
        entry: As the run's ``versions`` hash has it.
        manifest: Digest of the run's manifest.
    """
    return {
        "run": run,
        "version": version,
        "digest": entry["digest"],
        "download": entry.get("download", ""),
        "server_state": dict(entry.get("server_state", {})),
        "manifest": manifest,
    }


def of_round(
    state: RunState, current: RoundState, shares: int, config: str, manifest: str
) -> Statement:
    """
    A round, without what changes while it is open and is no business of a site, such as its deadline.

    Args:
        state: Of the run; its population is that of the round.
        shares: Into how many parts the data is split.
        config: Digest of the segment's config.
        manifest: Digest of the run's manifest.
    """
    return {
        "run": state.run_id,
        "name": state.name,
        "round": current.number,
        "purpose": current.purpose,
        "mode": current.mode,
        "opened_at": current.opened_at,
        "segment": current.segment,
        "config": config,
        "initial": initial_digest(state.initial) if current.purpose == Purpose.initialise else "",
        "manifest": manifest,
        "base_version": current.base_version,
        "base_digest": current.base_digest,
        "download": current.download,
        "server_state": dict(current.server_state),
        "cohort": digest_of(list(current.cohort)),
        "shares": shares,
        # Only where there is one: what was signed before it existed stays what it was.
        **({"exponent": current.exponent} if current.exponent else {}),
        **of_population(state.population),
    }


def of_population(population: Sequence[str]) -> Statement:
    """Whose data is which part of a data set that is split; later rounds only append to it."""
    return {"population": len(population), "places": digest_of(list(population))}


def differing(
    statement: Statement,
    state: RunState,
    current: RoundState,
    config: str,
    manifest: Manifest | None,
) -> str:
    """
    The first field in which a round, as Redis has it, differs from a statement; empty: none.

    Args:
        statement: The operator's, of the round.
        state: Read after the round: its population includes the round's.
        config: Digest of the round's segment of the config.
        manifest: The run's.
    """
    signed_for = None if current.purpose == Purpose.initialise else manifest
    found = of_round(state, current, state.shares, config, manifest_digest(signed_for))
    # Clients have come since the round was opened; those it was signed for keep their places.
    count = statement.get("population")
    if type(count) is int and count >= 0:
        found |= of_population(state.population[:count])
    names = sorted({*found, *statement})
    return next((name for name in names if found.get(name) != statement.get(name)), "")


def sign(kind: Kind, statement: Statement, key: OperatorKey) -> str:
    """The operator's signature of a statement; the same each time."""
    return key.sign(f"{kind} v1", dumps(statement).encode())


def is_signed(kind: Kind, statement: Statement, signature: object, public: str) -> bool:
    """Whether the operator has signed a statement. Args: ``public``: half of the operator's key."""
    if type(signature) is not str:
        return False
    return operator_key.verify(public, f"{kind} v1", dumps(statement).encode(), signature)


def sealed(statement: Statement, key: OperatorKey) -> str:
    """A round's statement with its signature, as the round's hash keeps it."""
    signature = sign("round", statement, key)
    return dumps({"statement": statement, "signature": signature, "key": key.fingerprint})


def opened(text: str, public: str) -> Statement | None:
    """A round's statement, if the operator has signed it; None of anything else."""
    if len(text) > _MAX_CHARS:
        return None
    try:
        whole = json.loads(text)
        statement = whole["statement"]
        signed = type(statement) is dict and is_signed(
            "round", statement, whole["signature"], public
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return statement if signed else None


def is_segment_signed(
    run: str, name: str, number: int, found: Mapping[str, Any], public: str
) -> bool:
    """Whether the operator has signed a segment of a run's config. Args: ``public``: half of the key."""
    statement = of_segment(run, name, number, found)
    return is_signed("config", statement, found.get(SIGNATURE), public)
