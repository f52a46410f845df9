"""Redis servers: settings, memory, replication, exposure, clock, sentinels."""

from __future__ import annotations

import time

from fl_queue.errors import StoreUnavailable, Trouble
from fl_queue.reporting.doctor.finding import Finding, not_usable
from fl_queue.store import (
    UNKNOWN,
    RedisClient,
    ServerFacts,
    check,
    exposure,
    probe,
    server_facts,
)
from fl_queue.store.sentinel import is_sentinel, sentinel_facts

MAX_SKEW_S = 5.0
#: Used part of the memory, or of the connections, from which on a server is nearly full.
NEARLY_FULL = 0.8
#: Connections of a client in training.
CONNECTIONS_PER_CLIENT = 4


def examine(role: str, client: RedisClient, url: str) -> list[Finding]:
    """Check the facts of one server, or of each node of a cluster, and write a key."""
    try:
        check(client, url)
        nodes = server_facts(client, url)
    except StoreUnavailable as exc:
        return [not_usable(f"{role} server: {exc}", exc)]
    found = [finding for facts in nodes for finding in _server(role, facts)]
    if any(finding.trouble for finding in found):
        return found  # A replica refuses writes.
    trouble = probe(client, url)
    if trouble is None:
        return [*found, Finding("OK", f"{role} server {url}: takes a write and gives it back")]
    if trouble.trouble is Trouble.not_allowed:
        # A client's user has its own keys only.
        what = f"{role} server {url}: this user may not write a key to try it out"
        return [*found, Finding("WARN", what, "run the doctor as flq-operator, or ignore it")]
    what = f"{role} server {url}: takes no writes: {trouble.reason}"
    return [*found, Finding("FAIL", what, "", trouble.trouble)]


def exposed(given: list[str]) -> list[Finding]:
    """Report connections that a third party can read or forge. Args: ``given``: URLs, with their passwords."""
    risks = dict.fromkeys(risk for url in given for risk in exposure.of_url(url))
    return [Finding("WARN", what, fix) for what, fix in risks]


def sentinels(role: str, url: str) -> list[Finding]:
    """Report the state of a server in each sentinel of its URL."""
    found = []
    for sentinel in sentinel_facts(url) if is_sentinel(url) else ():
        what = f"{role} server: sentinel {sentinel.where}"
        if sentinel.trouble:
            found.append(
                Finding(
                    "WARN",
                    f"{what} cannot be asked: {sentinel.trouble}",
                    "start it, or correct the URL",
                )
            )
            continue
        what = f"{what}: primary {sentinel.primary}, {sentinel.replicas} replicas, {sentinel.others} other sentinels"
        if sentinel.down or not sentinel.replicas or sentinel.others + 1 < sentinel.quorum:
            fix = "start the missing ones: a failover is impossible now"
            found.append(Finding("WARN", what, fix))
        else:
            found.append(Finding("OK", what))
    return found


def _server(role: str, facts: ServerFacts) -> list[Finding]:
    name = f"{role} server {facts.url}"
    found = [
        Finding("OK", f"{name}: version {facts.version}, {1000 * facts.round_trip_s:.1f} ms away")
    ]
    found += [
        *_open_to(name, facts),
        _memory_policy(name, facts),
        _memory(name, facts),
        *_replication(name, facts, role),
        *_snapshots(name, facts),
        *_connections(name, facts),
    ]
    if role == "control":
        found.append(_persistence(name, facts))
    return [*found, _clock(name, facts)]


def _open_to(name: str, facts: ServerFacts) -> list[Finding]:
    """Report risks of a server on the network; a unix socket is open to its owner alone."""
    if facts.url.startswith("unix:"):
        return []
    found = []
    if facts.is_open:
        found.append(
            Finding(
                "WARN",
                f"{name}: its default user needs no password: every client that reaches it has all rights",
                "switch it off (ACL SETUSER default off) once flq-operator has a password; see `fl-queue acl`",
            )
        )
    if risk := exposure.of_version(facts.version):
        what = f"{name}: {risk.what}"
        found.append(Finding("WARN", what, risk.fix))
    return found


def _memory_policy(name: str, facts: ServerFacts) -> Finding:
    if facts.memory_policy == "noeviction":
        return Finding("OK", f"{name}: maxmemory-policy noeviction")
    if facts.memory_policy == UNKNOWN:
        return Finding(
            "WARN",
            f"{name}: does not report its maxmemory-policy",
            "see at your provider that it is noeviction",
        )
    return Finding(
        "FAIL",
        f"{name}: maxmemory-policy {facts.memory_policy} may throw state away",
        "set maxmemory-policy noeviction",
    )


def _memory(name: str, facts: ServerFacts) -> Finding:
    used = f"{facts.used_bytes / 2**20:.0f} MiB"
    if not facts.limit_bytes:
        return Finding("OK", f"{name}: {used} in use")
    what = f"{name}: {used} in use of {facts.limit_bytes / 2**20:.0f} MiB"
    if facts.used_bytes < NEARLY_FULL * facts.limit_bytes:
        return Finding("OK", what)
    return Finding("WARN", what, "give it more memory (maxmemory); when it is full, rounds wait")


def _replication(name: str, facts: ServerFacts, role: str) -> list[Finding]:
    """Report a replica, and writes that a failover may lose."""
    if facts.role == "slave":
        link = (
            "" if facts.link == "up" else f", and its link to that is {facts.link or 'not known'}"
        )
        return [
            Finding(
                "FAIL",
                f"{name}: is a read-only replica of {facts.primary or 'another server'}{link}",
                "name the primary in the URL; in a failover wait until it has ended",
                Trouble.not_now,
            )
        ]
    if role != "control" or not facts.replicas:
        return []
    kept = facts.min_replicas not in ("0", UNKNOWN)
    return [
        Finding(
            "WARN",
            f"{name}: its {facts.replicas} replicas get each write after it was acknowledged; a failover may lose the last ones",
            "they cost a round at worst, never a wrong model; fewer are lost with min-replicas-max-lag 1"
            if kept
            else "they cost a round at worst, never a wrong model; fewer are lost with min-replicas-to-write 1 and min-replicas-max-lag 1",
        )
    ]


def _snapshots(name: str, facts: ServerFacts) -> list[Finding]:
    if facts.last_save == "err":
        return [
            Finding(
                "WARN",
                f"{name}: its last save of a snapshot failed",
                "see its log, and give it disk and memory; with stop-writes-on-bgsave-error it takes no writes until one succeeds",
            )
        ]
    if facts.save in ("", UNKNOWN) or facts.stops_writes != "yes":
        return []
    return [
        Finding(
            "WARN",
            f"{name}: saves snapshots (save {facts.save}), and takes no writes after one that failed (stop-writes-on-bgsave-error yes)",
            "set save to nothing, as the append-only file keeps everything, or stop-writes-on-bgsave-error no",
        )
    ]


def _connections(name: str, facts: ServerFacts) -> list[Finding]:
    limit = facts.max_connections
    if not limit or facts.connections < NEARLY_FULL * limit:
        return []
    return [
        Finding(
            "WARN",
            f"{name}: {facts.connections} connections of maxclients {limit}",
            f"raise maxclients, and the limit of open files of its process; a client in training has about {CONNECTIONS_PER_CLIENT}",
        )
    ]


def _persistence(name: str, facts: ServerFacts) -> Finding:
    if facts.appendonly == "yes" and facts.appendfsync == "always":
        return Finding("OK", f"{name}: appendonly yes, appendfsync always")
    return Finding(
        "WARN",
        f"{name}: appendonly {facts.appendonly}, appendfsync {facts.appendfsync}; a crash may lose committed rounds",
        "set appendonly yes and appendfsync always",
    )


def _clock(name: str, facts: ServerFacts) -> Finding:
    skew_s = facts.time - time.time()
    if abs(skew_s) <= MAX_SKEW_S:
        return Finding("OK", f"{name}: clock within {MAX_SKEW_S:g} s")
    return Finding(
        "WARN",
        f"{name}: its clock is {skew_s:+.0f} s from this machine's",
        "rounds are not affected; logs are. Run NTP on both",
    )
