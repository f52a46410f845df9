"""
What must hold at the end of a chaos run; each check returns its findings, one line each.

The checks are functions of what was recorded, so that each can be shown bad input.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import redis

from fl_queue.coordinator.operations.verification import Verdict
from fl_queue.protocol.records import RoundRecord
from fl_queue.store import keyspace
from tests.fault.chaos.watch import Training

#: Kept for ever by design, and only where there were late updates.
_ALLOWED = frozenset({keyspace.late("RUN")})


def one_record_per_round(
    opened: Iterable[int], newest: int, history: Sequence[RoundRecord]
) -> list[str]:
    """
    Every round from 1 to the newest was opened once and has one record, and none was abandoned.

    Args:
        opened: Rounds of the ``round_opened`` events, without round 0, which leaves no record.
        newest: Round of the run's hash.
    """
    found = []
    openings, records = Counter(opened), Counter(record.round for record in history)
    for number in range(1, newest + 1):
        if openings[number] != 1:
            found.append(f"round {number} was opened {openings[number]} times")
        if records[number] != 1:
            found.append(f"round {number} has {records[number]} history records")
    found += [f"round {number} has a record and is not there" for number in records if not 1 <= number <= newest]  # fmt: skip
    found += [
        f"round {record.round} ended as {record.outcome}: {record.reason}; {record.rejected}"
        for record in history
        if record.outcome == "abandoned"
    ]
    return found


def nothing_evaluated_twice(history: Sequence[RoundRecord], whose: str) -> list[str]:
    """
    A run ends with one closing evaluation of its newest version.

    A second one takes a round number, and with it the bits of all later versions.
    """
    rounds: dict[int, list[int]] = {}
    for record in history:
        if record.purpose == "evaluate":
            rounds.setdefault(record.base_version, []).append(record.round)
    return [
        f"{whose}: the closing evaluation of version {version} was done in rounds {numbers}"
        for version, numbers in rounds.items()
        if len(numbers) > 1
    ]


def nothing_merged_twice(
    history: Sequence[RoundRecord], calm: Sequence[RoundRecord], clients: list[str]
) -> list[str]:
    """
    Each committed round merged each client of its cohort once, with the update of the calm run.

    Digests and weights are compared: an update that was merged twice, or another one in its place,
    would have to show in one of them or in the bits of the version.
    """
    found = []
    undisturbed = {record.round: record for record in calm}
    for record in history:
        if record.outcome != "committed":
            continue
        where = f"round {record.round}"
        if not sorted(record.accepted) == sorted(record.weights) == record.cohort == clients:
            found.append(f"{where} merged {sorted(record.accepted)} of cohort {record.cohort}")
        twin = undisturbed.get(record.round)
        if twin is None or (record.accepted, record.weights) != (twin.accepted, twin.weights):
            theirs = _merged(twin) if twin else "nothing"
            found.append(f"{where} merged {_merged(record)}, the calm run {theirs}")
    return found


def _merged(record: RoundRecord) -> str:
    return ", ".join(
        f"{client} {digest[:8]} x {record.weights.get(client)}"
        for client, digest in record.accepted.items()
    )


def no_job_merged_twice(history: Sequence[RoundRecord]) -> list[str]:
    """
    Of asynchronous rounds: each version is of a full buffer, and no job of a client is in two of them.

    A job is named by the round in which it began.
    """
    found, merged = [], dict[tuple[str, int], int]()
    for record in history:
        if record.outcome != "committed":
            continue
        where = f"round {record.round}"
        known = sorted(record.accepted) == sorted(record.weights)
        if not known or len(record.accepted) < record.quorum:
            found.append(f"{where} merged {sorted(record.accepted)}, its buffer is {record.quorum}")
        for client in record.accepted:
            job = client, int(record.carried.get(client, {"round": record.round})["round"])
            if job in merged:
                found.append(f"{where} merged {client}'s job of round {job[1]}, as round {merged[job]} did")  # fmt: skip
            merged[job] = record.round
    return found


def versions_made_again(verdicts: Iterable[Verdict]) -> list[str]:
    """Base, accepted updates and record of each version make it again."""
    return [
        f"version {verdict.version} is {verdict.result}: {verdict.reason}"
        for verdict in verdicts
        if verdict.result != "same"
    ]


def no_state_missing(events: Iterable[Mapping[str, Any]], run: str) -> list[str]:
    """No client began without what its newest accepted update had left. Args: ``events``: of clients."""
    return [
        f"a client's state in round {event['round']}: {event['what']}"
        for event in events
        if event["event"] == "client_state_missing" and event["run"] == run
    ]


def nobody_trained_again(
    trainings: Iterable[Training], answered: Mapping[tuple[str, int], tuple[float, str]]
) -> list[str]:
    """
    No client began to train for a round it had answered.

    It has answered at the latest when a file was seen in its outbox, its update was received, or
    the round ended; all are on the clock of this machine. Starting again before that is allowed:
    a killed training leaves nothing.
    """
    found = []
    for training in trainings:
        at_ms, how = answered.get((training.client, training.round), (float("inf"), ""))
        if training.at_ms > at_ms:
            found.append(
                f"{training.client} trained for round {training.round} {(training.at_ms - at_ms) / 1000:.3f} s after {how}"
            )
    return found


def same_bits(
    versions: Mapping[int, Mapping[str, Any]], calm: Mapping[int, Mapping[str, Any]]
) -> list[str]:
    """Every version has the digest it has in the calm run, and was made in the same round."""
    found = [
        f"version {version} is {dict(versions.get(version, {}))}, in the calm run {dict(calm.get(version, {}))}"
        for version in sorted({*versions, *calm})
        if versions.get(version) != calm.get(version)
    ]
    return found if versions else ["there is no version"]


# Keys


def data_leftovers(
    data: redis.Redis, run: str, versions: Mapping[int, Mapping[str, Any]]
) -> list[str]:
    """Keys of a run on the data server that are no chunk of one of its versions."""
    models = tuple(keyspace.model_blob(run, entry["digest"]) + ":" for entry in versions.values())
    keys = sorted(key.decode() for key in data.scan_iter(match=f"*{run}*", count=1000))
    return [f"data server: {key} is left" for key in keys if not key.startswith(models)]


def traces(control: redis.Redis, run: str) -> Counter[str]:
    """
    What a run has left on the control server: its keys, and the members of RQ's collections of jobs.

    Keys that expire do not count, nor do members whose job has such a key: the healer sweeps them
    after it, nor what a round refused whose own key is still kept: only a disturbed run has refused anything.
    Random parts and numbers are written as ``#`` and ``n``.
    """
    found: Counter[str] = Counter()
    for key in _lasting_keys(control):
        round_, _, kind = key.rpartition(":")
        if run in key and not (kind == "rejected" and control.exists(round_)):
            found[_pattern(key, run)] += 1
        for member in _members(control, key) or ():
            job = member.partition(":")[0]
            if run in member and control.pttl(f"rq:job:{job}") < 0:
                found[_pattern(f"{key} has {member}", run)] += 1
    return found


def common_traces(control: redis.Redis, runs: Sequence[str]) -> Counter[str]:
    """The same of the keys and members that belong to none of the runs: workers, clients, queues."""
    found: Counter[str] = Counter()
    for key in _lasting_keys(control):
        if any(run in key for run in runs):
            continue
        members = _members(control, key)
        if members is None:
            found[_pattern(key)] += 1
        for member in members or ():
            of_a_run = any(run in member for run in runs)
            if not of_a_run and control.pttl(member) < 0:
                found[_pattern(f"{key} has {member}")] += 1
    return found


def more_than(found: Counter[str], allowed: Counter[str], whose: str) -> list[str]:
    """Keys and members there are more of than there should be."""
    return [
        f"control server: {found[pattern]} x {pattern}, {whose} has {allowed[pattern]}"
        for pattern in sorted(found)
        if found[pattern] > allowed[pattern] and pattern not in _ALLOWED
    ]


def _lasting_keys(control: redis.Redis) -> list[str]:
    """Without those that expire."""
    keys = sorted(key.decode() for key in control.scan_iter(count=1000))
    return [key for key in keys if control.pttl(key) == -1]


def _members(control: redis.Redis, key: str) -> list[str] | None:
    """Of one of RQ's collections, which is there as long as it has any; None for another key."""
    kind = cast(bytes, control.type(key))
    raw: Any
    if not key.startswith("rq:") or kind not in (b"zset", b"set", b"list"):
        return None
    if kind == b"zset":
        raw = control.zrange(key, 0, -1)
    elif kind == b"set":
        raw = control.smembers(key)
    else:
        raw = control.lrange(key, 0, -1)
    return sorted(member.decode() for member in raw)


def _pattern(text: str, run: str = "") -> str:
    if run:
        text = text.replace(run, "RUN")
    text = re.sub(r"[0-9a-f]{8,}(-[0-9a-f]{4,})*", "#", text)
    return re.sub(r"(?<=[:_])\d+(?=[:_]|$)", "n", text)


# Processes


def processes_left(mark: str, folder: Path, timeout_s: float) -> list[str]:
    """
    Processes that carry a mark in their environment or work in a folder, once they had time to end.

    Args:
        mark: ``NAME=value``, in the environment of everything the chaos run has started.
        folder: Where its redis-servers work; those overwrite their environment.
        timeout_s: Time to end.
    """
    until = time.monotonic() + timeout_s
    while (left := _processes(mark, folder)) and time.monotonic() < until:
        time.sleep(0.1)
    return [f"process left: {text}" for text in left]


def _processes(mark: str, folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            works_in = Path(os.readlink(entry / "cwd"))
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if state != "Z" and (mark.encode() in environment or folder in works_in.parents):
            found.append(f"{entry.name} {command}")
    return found
