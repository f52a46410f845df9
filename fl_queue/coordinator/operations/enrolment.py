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

from fl_queue.common.redis_url import without_login
from fl_queue.common.spelling import nearest
from fl_queue.errors import ConfigError
from fl_queue.protocol import identifiers, signing, virtual_clients
from fl_queue.protocol.records import Enrolment
from fl_queue.store import Store, client_users, drop_keys, keyspace
from fl_queue.store.acl_users import Rules, Users
from fl_queue.store.client_users import StrangeUsers
from fl_queue.store.credentials import Credentials, is_enrollable
from fl_queue.store.enrolment_pins import Ruling
from fl_queue.store.jobs import dispatch

log = logging.getLogger(__name__)

_KEY_ELSEWHERE = (
    "clients are enrolled with an operator's key that this machine does not have; copy operator.key from the "
    "machine where `fl-queue enroll` runs, or name it"
)


@dataclass(frozen=True)
class RedisEndpoints:
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


def enroll(
    store: Store,
    client: str,
    place: RedisEndpoints,
    max_examples: int,
    use_acl: bool,
    open_server: bool = False,
) -> Enrolled:
    """
    Make a client's key, Redis users and credentials, in place of those it had; and the operator's key.

    Args:
        max_examples: More examples than it may claim count as so many; 0: any.
        use_acl: Whether to make the users; else somebody else has to.
        open_server: Whether a server may let in anybody without a password.

    Raises:
        ConfigError: No such client can be enrolled, or not on such a server or from this machine, or
            we may not change users.
    """
    _check_name(client)
    users = Users(store.servers)
    if use_acl and not open_server:
        _check_closed(users)
    _check_key(store, client)
    operator = store.control.enrolments.pins.make_key()
    secret, public = signing.new_key()
    logins, rules, hashes = client_users.make(client, users.servers, users.version())
    known = store.control.enrolments.get(client)
    notes: list[str] = []
    if use_acl:
        users.give(rules)
        notes += _notes(users)
    # The users first: a site whose file is not written yet is no loss, a key without users would be.
    _register(store, client, Enrolment(public, max_examples, _now(store), hashes), known)
    if known is not None:
        notes.append(f"{client} was enrolled before: what it had is void")
    url, blob_url = (without_login(each, for_site=True) for each in (place.url, place.blob_url))
    theirs = operator.public if operator is not None else ""
    handed = Credentials(client, secret, url, blob_url, logins, place.tls, theirs)
    return Enrolled(handed, rules, tuple(notes))


def revoke(store: Store, client: str, use_acl: bool) -> list[str]:
    """
    End a client's part: nothing more of it is accepted, its jobs and its Redis users go.

    Returns:
        What was done, for people.

    Raises:
        ConfigError: It is not enrolled, or not by the operator of this machine, or we may not change users.
    """
    known = store.control.enrolments.get(client)
    if known is None:
        raise ConfigError(
            "CLIENT",
            f"{client} is not enrolled, so there is nothing to revoke; clients.exclude in a run's config "
            f"leaves it out of that run, see also `fl-queue clients`{nearest(client, store.control.enrolments.all())}",
        )
    if (
        known.signature
        and store.state_dir is not None
        and store.control.enrolments.pins.key is None
    ):
        raise ConfigError("--operator-key", _KEY_ELSEWHERE)
    # This decides; all else is cleaning up, and repeated by repeating the command.
    if known.revoked_at:
        store.control.enrolments.pins.pin(client, known)
        store.control.enrolments.write(client, known)  # An older one may have been put back there.
    else:
        known = _register(store, client, replace(known, revoked_at=_now(store)), known)
    done = [f"{client} is revoked: no update of it is accepted any more"]
    done += _drop_jobs(store, client)
    gone = sorted(
        {name for found in client_users.own(client, known.users).values() for name in found}
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


def unsigned(store: Store) -> dict[str, Enrolment]:
    """
    Those on the control server that this machine has no pin of, and the operator has not signed.

    Raises:
        ConfigError: The key cannot be used.
    """
    entries, pins = store.control.enrolments.entries(), store.control.enrolments.pins
    found = ((key.decode(errors="replace"), raw) for key, raw in entries.items())
    return {
        client: known
        for client, raw in sorted(found)
        if identifiers.is_name(client) and (known := pins.unsigned(client, raw)) is not None
    }


def sign_existing(store: Store, found: Mapping[str, Enrolment]) -> list[str]:
    """
    Sign enrolments as they are, pin them, and put back what is pinned where the control server has something else.

    Args:
        found: What ``unsigned`` has found, and somebody has looked through.

    Returns:
        What was done, for people.

    Raises:
        ConfigError: The key is on another machine, or cannot be made.
    """
    if any(known.signature for known in found.values()) and store.control.enrolments.pins.lacks_key:
        raise ConfigError("--operator-key", _KEY_ELSEWHERE)
    store.control.enrolments.pins.make_key()
    done = []
    for client, known in found.items():
        try:
            hashes = client_users.hashes(client, known.users)
        except StrangeUsers as exc:
            hashes = {}
            done.append(f"{client}: {exc}: left out; enrol it anew")
        _register(store, client, replace(known, users=hashes), None)
        done.append(f"{client}: signed")
    for client, ruling in store.control.enrolments.rulings().items():
        if ruling.trouble and ruling.enrolment is not None:
            store.control.enrolments.write(client, ruling.enrolment)
            done.append(f"{client}: {ruling.trouble}; what is pinned here is written there again")
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
        for client, known in store.control.enrolments.all().items()
        if known.users and not known.revoked_at
    }
    if not living:
        return []
    users, made = Users(store.servers), []
    for client, known in living.items():
        with contextlib.suppress(StrangeUsers):  # See ``troubles``.
            lacking = users.missing(client_users.rules(client, known.users, users.servers))
            users.give(lacking)
            made += sorted({name for of_server in lacking.values() for name in of_server})
    return made


def troubles(store: Store) -> dict[str, str]:
    """
    Client -> what is wrong with its entry on the control server, which somebody must have changed.

    Raises:
        ConfigError: The operator's key, or a pin, cannot be used.
    """
    return _troubles(store.control.enrolments.rulings())


def _troubles(rulings: Mapping[str, Ruling]) -> dict[str, str]:
    found = {}
    for client, ruling in rulings.items():
        if why := ruling.trouble or _strange_users(client, ruling.enrolment):
            found[client] = why
    return found


def _strange_users(client: str, known: Enrolment | None) -> str:
    """What is ignored of the users that an enrolment names; empty: nothing."""
    try:
        client_users.hashes(client, known.users if known is not None else {})
    except StrangeUsers as exc:
        return f"{exc}; these are ignored"
    return ""


class EnrolmentMonitor:
    """
    A machine's look at the enrolments on the control server.

    What another machine of the operator has enrolled or revoked is pinned. What somebody else has changed
    is recorded: in the log, and as an event of each run that trains.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._said: dict[str, str] = {}

    def look(self) -> None:
        """Look, and record what is new."""
        try:
            rulings = self._store.control.enrolments.rulings()
            self._store.control.enrolments.pins.adopt(rulings)
            found = _troubles(rulings)
        except ConfigError as exc:
            log.error("nobody can say who is enrolled: %s", exc)
            return
        news = {client: why for client, why in found.items() if self._said.get(client) != why}
        self._said = found
        for client, why in news.items():
            log.warning("the entry of %s in %s: %s", client, keyspace.ENROLLED, why)
        for state in self._store.control.runs.living() if news else ():
            if state.active:
                run = state.run_id
                events = [
                    {"event": "enrolment_changed", "client": client, "reason": why}
                    for client, why in news.items()
                ]
                self._store.control.events.add_many(run, events)


def _check_name(client: str) -> None:
    if not is_enrollable(client):
        raise ConfigError("CLIENT", f"{client!r} is not a client id; use letters, digits, dashes")
    if client.startswith(virtual_clients.SHARED):
        raise ConfigError(
            "CLIENT",
            f"{client} is a name of simulations, as {virtual_clients.SHARED[0]}1; choose another",
        )


def _check_closed(users: Users) -> None:
    if users.open_to_all():
        raise ConfigError(
            "--open-server",
            "the server's default user needs no password, so users and passwords bar nobody: give it one "
            "(`ACL SETUSER default on '>PASSWORD'`, and requirepass or an aclfile), or give --open-server "
            "if nobody else can reach the server",
        )


def _check_key(store: Store, client: str) -> None:
    """Refuse to make an operator's key where there must be one already. Raises ConfigError."""
    if store.state_dir is None or not store.control.enrolments.pins.lacks_key:
        return
    others = {name: known for name, known in unsigned(store).items() if name != client}
    if any(known.signature for known in others.values()):
        raise ConfigError("--operator-key", _KEY_ELSEWHERE)
    if others:
        raise ConfigError(
            "--operator-key",
            f"{', '.join(others)}: enrolled before there was an operator's key; "
            "run `fl-queue enroll --sign-existing` first, else they would count as not enrolled",
        )


def _now(store: Store) -> float:
    return round(store.control.now(), 3)


def _register(store: Store, client: str, made: Enrolment, before: Enrolment | None) -> Enrolment:
    """Sign, pin and write an enrolment. Args: ``before``: what counted so far."""
    signed = store.control.enrolments.pins.signed(client, made, before)
    # The pin first: from here on it counts on this machine, whatever becomes of the entry.
    store.control.enrolments.pins.pin(client, signed)
    store.control.enrolments.write(client, signed)
    return signed


def _notes(users: Users) -> list[str]:
    if users.save():
        return []
    return [
        "the server has no aclfile: after a restart of it, a healer that may use ACL makes the users "
        "again within half a minute; with an aclfile they stay"
    ]


def _drop_jobs(store: Store, client: str) -> list[str]:
    done = []
    for state in store.control.runs.living():
        name, run = state.name, state.run_id
        current = store.control.rounds.newest_open(state) if state.active else None
        if current is None or client not in current.cohort:
            continue
        ticket = dispatch.tickets(store, run, current.number).get(client)
        if ticket is not None:
            dispatch.forget(store, ticket)
        store.control.events.add(
            run, {"event": "client_revoked", "round": current.number, "client": client}
        )
        done.append(
            f"run {name}: its job of round {current.number} is dropped; nobody waits for it"
        )
    return done
