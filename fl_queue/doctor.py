"""
``fl-queue doctor``: is this machine, and are both Redis roles, fit for a federation?
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fl_queue import dispatch, names
from fl_queue.errors import FLQueueError, StoreUnavailable
from fl_queue.store import ServerFacts, Store, server_facts

SKEW_S = 5.0
#: A server that uses more than this part of its memory is nearly full.
FULL = 0.8
Level = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line: how bad, what was found, what to do (empty when nothing)."""

    level: Level
    what: str
    fix: str = ""


class Unfit(FLQueueError):
    """A check failed; what to do is in the findings."""


def examine(url: str, blob_url: str, state_dir: Path, data: Path | None) -> list[Finding]:
    """Every finding; an unreachable Redis is one, not an error."""
    findings = [_data_folder(data)] if data is not None else []
    try:
        store = Store.open(url, blob_url, state_dir)
    except StoreUnavailable as exc:
        return [*findings, Finding("FAIL", str(exc), "start it, or correct the URL")]
    servers = store.servers
    for facts in server_facts(servers.control, servers.url):
        findings += _server("control", facts)
    for facts in server_facts(servers.data, servers.blob_url):
        findings += _server("data", facts)
    return [*findings, *_workers(store), *_queues(store)]


def raise_on_failure(findings: list[Finding]) -> None:
    """
    Raises:
        StoreUnavailable: A Redis role is not reachable.
        Unfit: Anything else failed.
    """
    failed = [finding for finding in findings if finding.level == "FAIL"]
    for finding in failed:
        if finding.what.startswith("Redis at"):
            raise StoreUnavailable("one of the URLs", "not reachable; see above")
    if failed:
        raise Unfit(f"{len(failed)} checks failed; see above")


def _server(role: str, facts: ServerFacts) -> list[Finding]:
    name = f"{role} server {facts.url}"
    found = [
        Finding("OK", f"{name}: version {facts.version}, {1000 * facts.round_trip_s:.1f} ms away")
    ]
    if facts.memory_policy == "noeviction":
        found.append(Finding("OK", f"{name}: maxmemory-policy noeviction"))
    else:
        found.append(
            Finding(
                "FAIL",
                f"{name}: maxmemory-policy {facts.memory_policy} may throw state away",
                "set maxmemory-policy noeviction",
            )
        )
    found.append(_memory(name, facts))
    if role == "control":
        found.append(_persistence(name, facts))
    skew_s = facts.time - time.time()
    if abs(skew_s) > SKEW_S:
        found.append(
            Finding(
                "WARN",
                f"{name}: its clock is {skew_s:+.0f} s from this machine's",
                "rounds are not affected; logs are. Run NTP on both",
            )
        )
    else:
        found.append(Finding("OK", f"{name}: clock within {SKEW_S:g} s"))
    return found


def _memory(name: str, facts: ServerFacts) -> Finding:
    used = f"{facts.used_bytes / 2**20:.0f} MiB"
    if not facts.limit_bytes:
        return Finding("OK", f"{name}: {used} in use")
    what = f"{name}: {used} in use of {facts.limit_bytes / 2**20:.0f} MiB"
    if facts.used_bytes < FULL * facts.limit_bytes:
        return Finding("OK", what)
    return Finding("WARN", what, "give it more memory (maxmemory); when it is full, rounds wait")


def _queues(store: Store) -> list[Finding]:
    """Clients with jobs that nobody takes."""
    left = [
        client
        for client in sorted(store.control.client_ids())
        if dispatch.queued(store, names.client_queue(client))
        and not store.control.lease(names.client_holder(client))
    ]
    if not left:
        return []
    what = f"jobs wait for clients without a worker: {', '.join(left)}"
    fix = f"start one with `fl-queue worker client --client {left[0]}`, or let the round end"
    return [Finding("WARN", what, fix)]


def _persistence(name: str, facts: ServerFacts) -> Finding:
    if facts.appendonly == "yes" and facts.appendfsync == "always":
        return Finding("OK", f"{name}: appendonly yes, appendfsync always")
    return Finding(
        "WARN",
        f"{name}: appendonly {facts.appendonly}, appendfsync {facts.appendfsync}; a crash may lose committed rounds",
        "set appendonly yes and appendfsync always",
    )


def _workers(store: Store) -> list[Finding]:
    roles = [entry.get("role") for entry in store.control.living_workers()]
    found = []
    for role, needed in (("aggregator", True), ("client", True), ("evaluator", False)):
        count = roles.count(role)
        if count:
            found.append(Finding("OK", f"{count} {role} worker{'s' if count > 1 else ''} alive"))
        else:
            how = f"fl-queue worker {role}{' --client ID' if role == 'client' else ''}"
            found.append(
                Finding(
                    "WARN",
                    f"no {role} worker is alive",
                    f"start one with `{how}`"
                    if needed
                    else f"versions are not scored; start one with `{how}`",
                )
            )
    gone = [
        client
        for client in store.control.client_ids()
        if not store.control.lease(names.client_holder(client))
    ]
    if gone:
        found.append(
            Finding(
                "WARN",
                f"clients that were heard of and are not alive: {', '.join(sorted(gone))}",
                "start their workers again, or ignore it if they left",
            )
        )
    return found


def _data_folder(data: Path) -> Finding:
    if not data.is_dir():
        return Finding(
            "FAIL", f"data folder {data} is not a folder", "give the folder of this site's data"
        )
    try:
        count = sum(1 for _ in data.iterdir())
    except OSError as exc:
        return Finding(
            "FAIL",
            f"data folder {data} cannot be read ({exc.strerror})",
            "give the worker's user the right to read it",
        )
    return (
        Finding("OK", f"data folder {data}: {count} entries")
        if count
        else Finding("FAIL", f"data folder {data} is empty", "put the data there")
    )
