"""
Enrolling and revoking clients: keys, Redis users, and what the control server knows of them.

The operator's side only. The secrets are made here and are nowhere but in the credentials that are
handed over: the servers know a public key and hashes of passwords.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fl_queue import clientusers, dispatch, names, signing
from fl_queue.clientusers import StrangeUsers
from fl_queue.credentials import Credentials, is_enrollable
from fl_queue.errors import ConfigError
from fl_queue.records import Enrolment
from fl_queue.spelling import nearest
from fl_queue.store import Store, drop_keys
from fl_queue.store.users import Rules, Users
from fl_queue.urls import without_login

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """
    How a site reaches Redis.

    Args:
        url, blob_url: Both roles; a login in them is left out.
        tls: As in ``Credentials``.
    """

    url: str
    blob_url: str
    tls: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Enrolled:
    """
    What enrolling made.

    Args:
        credentials: To hand over.
        rules: Users and rules; of each server.
        notes: What the operator should know.
    """

    credentials: Credentials
    rules: Rules
    notes: tuple[str, ...]


def enroll(store: Store, client: str, place: Place, max_examples: int, use_acl: bool) -> Enrolled:
    """
    Make a client's key, Redis users and credentials, in place of those it had.

    Args:
        max_examples: More examples than it may claim count as so many; 0: any.
        use_acl: Whether to make the users; else somebody else has to.

    Raises:
        ConfigError: No such client can be enrolled, or we may not change users.
    """
    if not is_enrollable(client):
        raise ConfigError("CLIENT", f"{client!r} is not a client id; use letters, digits, dashes")
    secret, public = signing.new_key()
    users = Users(store.servers)
    logins, rules, hashes = clientusers.make(client, users.servers, users.version())
    known = store.control.enrolment(client)
    notes: list[str] = []
    if use_acl:
        users.give(rules)
        notes += _notes(users)
    # The users first: a site whose file is not written yet is no loss, a key without users would be.
    made = Enrolment(public, max_examples, round(store.control.now(), 3), hashes)
    store.control.write_enrolment(client, made)
    if known is not None:
        notes.append(f"{client} was enrolled before: what it had is void")
    url, blob_url = (without_login(each, for_site=True) for each in (place.url, place.blob_url))
    handed = Credentials(client, secret, url, blob_url, logins, place.tls)
    return Enrolled(handed, rules, tuple(notes))


def revoke(store: Store, client: str, use_acl: bool) -> list[str]:
    """
    End a client's part: nothing more of it is accepted, its jobs and its Redis users go.

    Returns:
        What was done, for people.

    Raises:
        ConfigError: It is not enrolled, or we may not change users.
    """
    known = store.control.enrolment(client)
    if known is None:
        raise ConfigError(
            "CLIENT",
            f"{client} is not enrolled, so there is nothing to revoke; clients.exclude in a run's config "
            f"leaves it out of that run, see also `fl-queue clients`{nearest(client, store.control.enrolments())}",
        )
    # This decides; all else is cleaning up, and repeated by repeating the command.
    if not known.revoked_at:
        known = replace(known, revoked_at=round(store.control.now(), 3))
        store.control.write_enrolment(client, known)
    done = [f"{client} is revoked: no update of it is accepted any more"]
    done += _drop_jobs(store, client)
    gone = sorted(
        {name for found in clientusers.own(client, known.users).values() for name in found}
    )
    if use_acl and gone:
        users = Users(store.servers)
        users.take(dict.fromkeys(users.servers, gone))
        users.save()
        done.append("its Redis users are gone, and their connections")
    elif gone:
        done.append(f"remove its Redis users: ACL DELUSER {' '.join(gone)}")
    # Last: until its users are gone it may make others.
    dropped = sum(drop_keys(server, client) for server in store.each_server())
    done.append(f"its keys are removed from Redis: {dropped}")
    return done


def restore_users(store: Store) -> list[str]:
    """
    Make users again that a server lost when it restarted; the healer does it.

    Returns:
        Names of those that were made.

    Raises:
        ConfigError: We may not change users.
    """
    living = {
        client: known
        for client, known in store.control.enrolments().items()
        if known.users and not known.revoked_at
    }
    if not living:
        return []
    users, made = Users(store.servers), []
    for client, known in living.items():
        with contextlib.suppress(StrangeUsers):  # See ``troubles``.
            lacking = users.missing(clientusers.rules(client, known.users, users.servers))
            users.give(lacking)
            made += sorted({name for of_server in lacking.values() for name in of_server})
    return made


def troubles(store: Store) -> dict[str, str]:
    """Client -> what is wrong with its entry on the control server, which somebody must have changed."""
    servers = Users(store.servers).servers
    found = {}
    for client, known in store.control.enrolments().items():
        try:
            clientusers.rules(client, known.users, servers)
        except StrangeUsers as exc:
            found[client] = f"{exc}; these are ignored"
    return found


class Watch:
    """Records what somebody has changed among the enrolments: in the log, and as an event of each run that trains."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._said: dict[str, str] = {}

    def look(self) -> None:
        """Look, and record what is new."""
        found = troubles(self._store)
        news = {client: why for client, why in found.items() if self._said.get(client) != why}
        self._said = found
        for client, why in news.items():
            log.warning("the entry of %s in %s: %s", client, names.ENROLLED, why)
        for run in self._store.control.run_names().values() if news else ():
            state = self._store.control.run(run)
            if state is not None and state.active:
                events = [
                    {"event": "enrolment_changed", "client": client, "reason": why}
                    for client, why in news.items()
                ]
                self._store.control.add_events(run, events)


def _notes(users: Users) -> list[str]:
    notes = []
    if not users.save():
        notes.append(
            "the server has no aclfile: after a restart of it, a healer that may use ACL makes the users "
            "again within half a minute; with an aclfile they stay"
        )
    if users.open_to_all():
        notes.append(
            "the server's default user needs no password, so users bar nobody: give it one "
            "(`ACL SETUSER default`), or keep the server out of reach of others"
        )
    return notes


def _drop_jobs(store: Store, client: str) -> list[str]:
    done = []
    for name, run in sorted(store.control.run_names().items()):
        state = store.control.run(run)
        current = store.control.open_round(state) if state is not None and state.active else None
        if current is None or client not in current.cohort:
            continue
        ticket = dispatch.tickets(store, run, current.number).get(client)
        if ticket is not None:
            dispatch.forget(store, ticket)
        store.control.add_event(
            run, {"event": "client_revoked", "round": current.number, "client": client}
        )
        done.append(
            f"run {name}: its job of round {current.number} is dropped; nobody waits for it"
        )
    return done
