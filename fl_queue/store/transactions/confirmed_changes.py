"""
Changes of a run's state by a command that reports whether it made them.

The reply to a transaction can be lost after the server has carried it out. The state does not show it then:
another command may have changed it since, or may have made the same change. So each command has a token,
which is a field of the event that its transaction writes.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from redis.client import Pipeline

from fl_queue.protocol.events import Event
from fl_queue.store import Store, keyspace

#: Newest events in which a command looks for its own; it looks at once.
_LOOKED_AT = 200


@dataclass(frozen=True)
class Change:
    """
    Writes of a transaction.

    Args:
        event: For the run's stream; None: ``write`` adds its own.
        write: Everything else.
    """

    event: Event | None
    write: Callable[[], Any]


def new_token() -> str:
    """A token for one command, the same in all its attempts."""
    return secrets.token_hex(8)


def decide(
    store: Store,
    run: str,
    watched: Sequence[str],
    body: Callable[[Pipeline], Change | None],
    by: str = "",
) -> bool:
    """
    Compare and set, with an event.

    Args:
        run: Run id.
        watched: Keys that ``body`` reads.
        body: Reads under WATCH and returns what is to be written; None: nothing.
        by: Token of the command; empty: no caller needs the result after a lost reply.

    Returns:
        Whether it was written. False: look again, and repeat if it is still wanted.
    """

    def marked(pipe: Pipeline) -> Callable[[], None] | None:
        change = body(pipe)
        if change is None:
            return None

        def write() -> None:
            change.write()
            if change.event is None:
                return
            event = replace(change.event, by=by) if by else change.event
            store.control.events.add(run, event, pipe)

        return write

    return store.control.transact(watched, marked) or was_made(store, run, by)


def was_made(store: Store, run: str, by: str) -> bool:
    """Whether the change of the command with this token has been made."""
    if not by:
        return False
    newest = store.control.events.newest(keyspace.events(run), _LOOKED_AT)
    return any(event.get("by") == by for _, event in newest)
