"""
``fl-queue doctor``: is this machine, and are both Redis roles, fit for a federation?
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fl_queue.common import data_folder
from fl_queue.coordinator.operations import enrolment
from fl_queue.coordinator.rounds import statement_signing
from fl_queue.errors import ConfigError, MachineUnfit, StoreUnavailable, Trouble
from fl_queue.protocol import operator_key
from fl_queue.reporting import run_status
from fl_queue.store import (
    INTERACTIVE,
    UNKNOWN,
    RedisClient,
    ServerFacts,
    Store,
    check,
    count_keys,
    exposure,
    keyspace,
    probe,
    resolve_urls,
    server_facts,
)
from fl_queue.store.jobs import dispatch
from fl_queue.store.sentinel import is_sentinel, sentinel_facts

SKEW_S = 5.0
#: A server that uses more than this part of its memory is nearly full.
FULL = 0.8
#: Connections of a client in training.
PER_CLIENT = 4
#: Keys of one client that are more than its rounds leave, and how many clients and entries are named.
MANY_KEYS = 10_000
NAMED = 20
Level = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """
    One line: how bad, what was found, what to do (empty when nothing).

    Args:
        trouble: Of a Redis server that cannot be used: ``gone``, ``silent``, ``not_now``, ``wrong_mode``, ``not_allowed``.
    """

    level: Level
    what: str
    fix: str = ""
    trouble: str = ""


def examine(
    url: str, blob_url: str, state_dir: Path, data: Path | None, operator_key: Path | None = None
) -> list[Finding]:
    """
    Every finding, of each server also when the other cannot be used; that is a finding, not an error.

    Args:
        operator_key: The operator's key, if not where it is by default.
    """
    findings = [_data_folder(data)] if data is not None else []
    try:
        both = resolve_urls(url, blob_url, state_dir)
        store = Store(
            *both,
            timeouts=INTERACTIVE,
            needs_data=False,
            state_dir=state_dir,
            operator_key=operator_key,
        )
    except StoreUnavailable as exc:
        return [*findings, _not_usable(str(exc), exc)]
    servers = store.servers
    findings += _exposed([url, blob_url])
    findings += [*_sentinels("control", url), *_sentinels("data", blob_url or url)]
    control = _examine("control", servers.control, servers.url)
    # One server for both roles is asked once, for the role that wants more of it.
    other = (
        [] if servers.url == servers.blob_url else _examine("data", servers.data, servers.blob_url)
    )
    findings += control + other
    if any(finding.trouble for finding in control):
        return findings  # Workers renew their leases there, so it is not known which are alive.
    try:
        for look in (_workers, _queues, _operator_key, _enrolments, _many_keys, _unreadable):
            findings += look(store)
    except StoreUnavailable as exc:
        findings.append(_not_usable(f"control server: {exc}", exc))
    return findings


def _exposed(given: list[str]) -> list[Finding]:
    """What others on the way can read or answer. Args: ``given``: URLs, with their passwords."""
    risks = dict.fromkeys(risk for url in given for risk in exposure.of_url(url))
    return [Finding("WARN", what, fix) for what, fix in risks]


def _sentinels(role: str, url: str) -> list[Finding]:
    """Report the state of a server in each sentinel of its URL."""
    found = []
    for said in sentinel_facts(url) if is_sentinel(url) else ():
        what = f"{role} server: sentinel {said.where}"
        if said.trouble:
            found.append(
                Finding(
                    "WARN",
                    f"{what} cannot be asked: {said.trouble}",
                    "start it, or correct the URL",
                )
            )
            continue
        what = f"{what}: primary {said.primary}, {said.replicas} replicas, {said.others} other sentinels"
        if said.down or not said.replicas or said.others + 1 < said.quorum:
            fix = "start what is missing: no failover can follow now"
            found.append(Finding("WARN", what, fix))
        else:
            found.append(Finding("OK", what))
    return found


def raise_on_failure(findings: list[Finding]) -> None:
    """
    Raise an error if a check failed.

    Raises:
        StoreUnavailable: A Redis role cannot be used.
        MachineUnfit: Anything else failed.
    """
    failed = [finding for finding in findings if finding.level == "FAIL"]
    if any(finding.trouble for finding in failed):
        raise StoreUnavailable("one of the URLs", "cannot be used; see above")
    if failed:
        raise MachineUnfit(f"{len(failed)} checks failed; see above")


def _not_usable(what: str, error: StoreUnavailable) -> Finding:
    fix = "start it, or correct the URL" if error.trouble in (Trouble.gone, Trouble.silent) else ""
    return Finding("FAIL", what, fix, error.trouble)


def _examine(role: str, client: RedisClient, url: str) -> list[Finding]:
    """Check one server, or each node of a cluster: its facts, and a write."""
    try:
        check(client, url)
        nodes = server_facts(client, url)
    except StoreUnavailable as exc:
        return [_not_usable(f"{role} server: {exc}", exc)]
    found = [finding for facts in nodes for finding in _server(role, facts)]
    if any(finding.trouble for finding in found):
        return found  # A replica: this is the reason why it refuses writes.
    trouble = probe(client, url)
    if trouble is None:
        return [*found, Finding("OK", f"{role} server {url}: takes a write and gives it back")]
    if trouble.trouble is Trouble.not_allowed:
        # A client may write to its own keys only.
        what = f"{role} server {url}: this user may not write a key to try it out"
        return [*found, Finding("WARN", what, "run the doctor as flq-operator, or ignore it")]
    what = f"{role} server {url}: takes no writes: {trouble.reason}"
    return [*found, Finding("FAIL", what, "", trouble.trouble)]


def _server(role: str, facts: ServerFacts) -> list[Finding]:
    name = f"{role} server {facts.url}"
    found = [
        Finding("OK", f"{name}: version {facts.version}, {1000 * facts.round_trip_s:.1f} ms away")
    ]
    found += _open_to(name, facts)
    if facts.memory_policy == "noeviction":
        found.append(Finding("OK", f"{name}: maxmemory-policy noeviction"))
    elif facts.memory_policy == UNKNOWN:
        found.append(
            Finding(
                "WARN",
                f"{name}: does not report its maxmemory-policy",
                "see at your provider that it is noeviction",
            )
        )
    else:
        found.append(
            Finding(
                "FAIL",
                f"{name}: maxmemory-policy {facts.memory_policy} may throw state away",
                "set maxmemory-policy noeviction",
            )
        )
    found.append(_memory(name, facts))
    found += [
        *_replication(name, facts, role),
        *_snapshots(name, facts),
        *_connections(name, facts),
    ]
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


def _open_to(name: str, facts: ServerFacts) -> list[Finding]:
    """Report risks of an exposed server. A unix socket is open to its owner alone."""
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


def _memory(name: str, facts: ServerFacts) -> Finding:
    used = f"{facts.used_bytes / 2**20:.0f} MiB"
    if not facts.limit_bytes:
        return Finding("OK", f"{name}: {used} in use")
    what = f"{name}: {used} in use of {facts.limit_bytes / 2**20:.0f} MiB"
    if facts.used_bytes < FULL * facts.limit_bytes:
        return Finding("OK", what)
    return Finding("WARN", what, "give it more memory (maxmemory); when it is full, rounds wait")


def _replication(name: str, facts: ServerFacts, role: str) -> list[Finding]:
    """Whether it is the primary, and whether a failover loses what was acknowledged."""
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
    most = facts.max_connections
    if not most or facts.connections < FULL * most:
        return []
    return [
        Finding(
            "WARN",
            f"{name}: {facts.connections} connections of maxclients {most}",
            f"raise maxclients, and the limit of open files of its process; a client in training has about {PER_CLIENT}",
        )
    ]


def _queues(store: Store) -> list[Finding]:
    """Report clients with jobs and without a living worker."""
    known = sorted(store.control.clients.heartbeat_ages())
    waiting = dispatch.lengths(store, map(keyspace.client_queue, known))
    leases = store.control.leases.get_many(map(keyspace.client_holder, known))
    found = zip(known, waiting, leases, strict=True)
    left = [client for client, jobs, lease in found if jobs and not lease]
    if not left:
        return []
    what = f"jobs wait for clients without a worker: {', '.join(left)}"
    fix = f"start one with `fl-queue worker client --client {left[0]}`, or let the round end"
    return [Finding("WARN", what, fix)]


def _many_keys(store: Store) -> list[Finding]:
    """Clients that have more keys than work leaves."""
    counts: Counter[str] = Counter()
    for server in store.each_server():
        with suppress(StoreUnavailable):  # Why has its own line already.
            counts += count_keys(server)
    return [
        Finding(
            "WARN",
            f"client {client} has {count} keys in Redis",
            f"ask its site what it does; `fl-queue revoke {client}` ends its part and removes them",
        )
        for client, count in counts.most_common(NAMED)
        if count >= MANY_KEYS
    ]


def _unreadable(store: Store) -> list[Finding]:
    """What is in Redis and cannot be read."""
    with suppress(ConfigError):  # Of the operator's key: it has its own line already.
        run_status.clients(store)  # Reads runs and enrolments, too.
    return [
        Finding(
            "WARN",
            f"{entry.key} {entry.entry} is unreadable and left out: {why}",
            "somebody has written to Redis beside fl-queue; correct or remove the entry",
        )
        for entry, why in list(store.control.unreadable.found.items())[:NAMED]
    ]


def _operator_key(store: Store) -> list[Finding]:
    """Whether this machine can sign what the runs here need."""
    try:
        trouble, is_foreign = statement_signing.key_trouble(store)
        key = store.control.enrolments.pins.key
    except ConfigError:
        return []  # Reported with the enrolments.
    if is_foreign:
        fix = "put back the key of the machine where the run was begun, or name it with --operator-key"
        return [Finding("FAIL", f"the operator's key: {trouble}", fix)]
    if trouble:
        fix = "copy it there if this machine begins runs or has an aggregator; sites and evaluators need none"
        return [Finding("WARN", f"the operator's key: {trouble}", fix)]
    return [] if key is None else [Finding("OK", f"the operator's key is {key.fingerprint}")]


def _enrolments(store: Store) -> list[Finding]:
    """Check the enrolments on the server against the pins of this machine."""
    try:
        found = enrolment.troubles(store)
        checked = store.control.enrolments.pins.are_kept
    except ConfigError as exc:
        return [Finding("FAIL", f"the operator's key: {exc}", "")]
    if not checked and store.control.enrolments.entries():
        what = f"enrolments are not checked: {store.state_dir} has no {operator_key.FILE}"
        fix = "copy it there from the machine where `fl-queue enroll` runs, or run `fl-queue enroll --sign-existing`"
        return [Finding("WARN", what, fix)]
    fix = (
        "see who may write there; `fl-queue enroll --sign-existing` puts right what is pinned here"
    )
    return [
        Finding("FAIL", f"{keyspace.ENROLLED}: entry of {client}: {why}", fix)
        for client, why in found.items()
    ]


def _persistence(name: str, facts: ServerFacts) -> Finding:
    if facts.appendonly == "yes" and facts.appendfsync == "always":
        return Finding("OK", f"{name}: appendonly yes, appendfsync always")
    return Finding(
        "WARN",
        f"{name}: appendonly {facts.appendonly}, appendfsync {facts.appendfsync}; a crash may lose committed rounds",
        "set appendonly yes and appendfsync always",
    )


def _workers(store: Store) -> list[Finding]:
    roles = [entry.get("role") for entry in store.control.workers.living()]
    found = _room_for(store, roles.count("client"))
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
    known = sorted(store.control.clients.heartbeat_ages())
    leases = store.control.leases.get_many(map(keyspace.client_holder, known))
    gone = [client for client, lease in zip(known, leases, strict=True) if not lease]
    if gone:
        found.append(
            Finding(
                "WARN",
                f"clients that were seen and are not alive: {', '.join(gone)}",
                "start their workers again, or ignore it if they left",
            )
        )
    return found


def _room_for(store: Store, clients: int) -> list[Finding]:
    """Whether all clients that are alive may train at once."""
    known = server_facts(store.servers.control, store.servers.url)
    most = known[0].max_connections
    if not most or clients * PER_CLIENT < most:
        return []
    return [
        Finding(
            "WARN",
            f"control server: maxclients {most} is too few for {clients} clients of about {PER_CLIENT} connections each",
            f"set maxclients {2 * PER_CLIENT * clients} or more, and the limit of open files of its process",
        )
    ]


def _data_folder(data: Path) -> Finding:
    if not data.is_dir():
        return Finding(
            "FAIL", f"data folder {data} is not a folder", "give the folder of this site's data"
        )
    try:
        entries = list(data.iterdir())
    except OSError as exc:
        return Finding(
            "FAIL",
            f"data folder {data} cannot be read ({exc.strerror})",
            "give the worker's user the right to read it",
        )
    if not entries:
        return Finding("FAIL", f"data folder {data} is empty", "put the data there")
    if out := sum(data_folder.leaves(data, entry) for entry in entries):
        return Finding(
            "WARN",
            f"data folder {data}: {out} of {len(entries)} entries are links that lead out of it, and are not read",
            "put there what they name, or give --data a folder that holds both",
        )
    return Finding("OK", f"data folder {data}: {len(entries)} entries")
