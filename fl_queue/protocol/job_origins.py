"""
The clients at work in an asynchronous round: each with the job of this round, or one of an earlier round.

A job goes on over the end of its round: the next one takes its ticket over. So a client's job is wanted
while the run's newest round has its ticket.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fl_queue.protocol.records import Receipt, RoundRecord, Verdict
from fl_queue.protocol.state import RoundState


class JobOrigin(NamedTuple):
    """Origin of a client's job: its round, and the base version."""

    round: int
    version: int


def begun(current: RoundState, client: str) -> JobOrigin:
    """Origin of the job that a client of a round works on."""
    found = current.carried.get(client)
    if found is None:
        return JobOrigin(current.number, current.base_version)
    return JobOrigin(found["round"], found["version"])


def by_job(current: RoundState, accepted: Mapping[str, str]) -> dict[str, tuple[int, str]]:
    """
    Name of an update in a client's files: the round of the job, not the one that merged it.

    Args:
        accepted: Client -> digest of its update.

    Returns:
        Client -> round in which its job began, and that digest.
    """
    return {client: (begun(current, client).round, digest) for client, digest in accepted.items()}


def by_job_of(record: RoundRecord) -> dict[str, tuple[int, str]]:
    """The same of a round that was committed, by its record."""
    return {
        client: (record.carried.get(client, {}).get("round", record.round), digest)
        for client, digest in record.accepted.items()
    }


def newest_accepted(history: Iterable[RoundRecord], version: int) -> dict[str, tuple[int, str]]:
    """
    Client -> its newest accepted update among the rounds that made a version, as in ``by_job``.

    A run may have gone back to an older version: rounds after that one have no part in what came then.
    """
    made = {record.version: record for record in history if record.version is not None}
    found: dict[str, tuple[int, str]] = {}
    while (record := made.get(version)) is not None and record.base_version < version:
        found = by_job_of(record) | found
        version = record.base_version
    return found


def versions(current: RoundState) -> set[int]:
    """Older versions that clients of a round are training from."""
    return {found["version"] for found in current.carried.values()} - {current.base_version}


def is_given_up(current: RoundState, client: str, version: int, max_staleness: int) -> bool:
    """Whether a client's job is of no use any more. Args: ``version``: the newest one."""
    return version - begun(current, client).version > max_staleness


def given_up(
    current: RoundState, receipts: Mapping[str, Receipt], max_staleness: int
) -> dict[str, Receipt]:
    """
    Receipts of the clients whose jobs are too old for the version that a round makes: they get new ones.

    Args:
        receipts: What has come of the round.
    """
    version, found = current.base_version + 1, {}
    for client in current.cohort:
        has_answered = client in receipts and receipts[client].answers
        if not has_answered and is_given_up(current, client, version, max_staleness):
            began = begun(current, client).version
            reason = f"at work on version {began} when version {version} was made; round.max_staleness = {max_staleness}"
            found[client] = Receipt(Verdict.stale, reason)
    return found
