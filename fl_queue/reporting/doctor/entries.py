"""Entries in Redis: too many of one client, or unreadable ones."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

from fl_queue.errors import ConfigError, StoreUnavailable
from fl_queue.reporting import run_status
from fl_queue.reporting.doctor.finding import Finding
from fl_queue.store import Store, count_keys

#: Keys of one client that no round leaves behind.
MANY_KEYS = 10_000
#: Clients, or entries, that are listed at most.
MAX_LISTED = 20


def many_keys(store: Store) -> list[Finding]:
    """Report clients with more keys than their rounds leave behind."""
    counts: Counter[str] = Counter()
    for server in store.each_server():
        with suppress(StoreUnavailable):  # The server's own finding has the reason.
            counts += count_keys(server)
    return [
        Finding(
            "WARN",
            f"client {client} has {count} keys in Redis",
            f"ask its site for the reason; `fl-queue revoke {client}` ends its part and removes them",
        )
        for client, count in counts.most_common(MAX_LISTED)
        if count >= MANY_KEYS
    ]


def unreadable(store: Store) -> list[Finding]:
    """Report entries that were left out because they cannot be read."""
    with suppress(ConfigError):  # The finding of the operator's key has the reason.
        run_status.clients(store)  # It also reads runs and enrolments.
    return [
        Finding(
            "WARN",
            f"{entry.key} {entry.entry} is unreadable and left out: {why}",
            "another program has written to Redis; correct or remove the entry",
        )
        for entry, why in list(store.control.unreadable.found.items())[:MAX_LISTED]
    ]
