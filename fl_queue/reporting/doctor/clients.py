"""Workers, clients and their waiting jobs."""

from __future__ import annotations

from fl_queue.reporting.doctor.finding import Finding
from fl_queue.reporting.doctor.servers import CONNECTIONS_PER_CLIENT
from fl_queue.store import Store, keyspace, server_facts
from fl_queue.store.jobs import dispatch


def examine_workers(store: Store) -> list[Finding]:
    """Report living workers by role, missing roles, and clients that are gone."""
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
    """Report a connection limit that is too low for all living clients at once."""
    known = server_facts(store.servers.control, store.servers.url)
    limit = known[0].max_connections
    if not limit or clients * CONNECTIONS_PER_CLIENT < limit:
        return []
    return [
        Finding(
            "WARN",
            f"control server: maxclients {limit} is too few for {clients} clients of about {CONNECTIONS_PER_CLIENT} connections each",
            f"set maxclients {2 * CONNECTIONS_PER_CLIENT * clients} or more, and the limit of open files of its process",
        )
    ]


def examine_queues(store: Store) -> list[Finding]:
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
