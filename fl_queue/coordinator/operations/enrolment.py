"""
Enrol and revoke clients: their keys, Redis users and entries on the control server.

For the operator's side only. Secrets are created here and are only in the credentials that are handed over:
the servers hold a public key and hashes of passwords.
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
from fl_queue.protocol.events import ClientRevoked, EnrolmentChanged
from fl_queue.protocol.records import Enrolment
from fl_queue.store import Store, client_users, drop_keys, keyspace
from fl_queue.store.acl_users import Rules, Users
from fl_queue.store.client_users import ForeignUsers
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
    URLs and certificates of a site.

    Args:
        url: URL of the control server; a login in it is left out.
        blob_url: URL of the data server, likewise.
        tls: As in ``Credentials``.
    """

    url: str
    blob_url: str
    tls: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NewEnrolment:
    """
    The result of an enrolment.

    Args:
        credentials: To hand over to the site.
        rules: Users and rules; of each server.
        notes: Notes for the operator.
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
    public_key: str = "",
) -> NewEnrolment:
    """
    Create a client's key, Redis users and credentials, in place of earlier ones; and the operator's key.

    Args:
        store: Both servers.
        client: Client id.
        place: The addresses for its credentials.
        max_examples: Largest number of examples that counts in its weight; 0: any.
        use_acl: Create the users; without it an administrator of the server has to.
        open_server: Allow a server whose default user needs no password.
        public_key: Public half of a key that the client has made itself, base64; empty: one is made here.

    Raises:
        ConfigError: No such client can be enrolled, or not on such a server or from this machine, or this
            login may not change users.
    """
    _check_name(client)
    _check_public_key(store, client, public_key)
    users = Users(store.servers)
    if use_acl and not open_server:
        _check_closed(users)
    _check_key(store, client)
    operator = store.control.enrolments.pins.make_key()
    secret, public = ("", public_key) if public_key else signing.new_key()
    logins, rules, hashes = client_users.make(client, users.servers, users.version())
    known = store.control.enrolments.get(client)
    notes: list[str] = []
    if use_acl:
        users.give(rules)
        notes += _notes(users)
    # Users first: after a kill in between, a key without users would lock the site out.
    _register(store, client, Enrolment(public, max_examples, _now(store), hashes), known)
    if known is not None:
        notes.append(f"{client} was enrolled before: its earlier credentials are void")
    url, blob_url = (without_login(each, for_site=True) for each in (place.url, place.blob_url))
    operator_key = operator.public if operator is not None else ""
    credentials = Credentials(
        client, secret, url, blob_url, logins, place.tls, operator_key, public_key
    )
    return NewEnrolment(credentials, rules, tuple(notes))


def revoke(store: Store, client: str, use_acl: bool) -> list[str]:
    """
    Exclude a client: none of its messages is accepted any more, its jobs and Redis users are removed.

    Returns:
        A line for each change.

    Raises:
        ConfigError: It is not enrolled, or not by the operator of this machine, or this login may not
            change users.
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
    # This decides; the rest is clean-up, and is repeated with the command.
    if known.revoked_at:
        store.control.enrolments.pins.pin(client, known)
        store.control.enrolments.write(client, known)  # An older entry may have been written back.
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
    # Last: until its users are removed, the client can write new keys.
    dropped = sum(drop_keys(server, client) for server in store.each_server())
    done.append(f"its keys are removed from Redis: {dropped}")
    return done


def unsigned(store: Store) -> dict[str, Enrolment]:
    """
    Enrolments on the control server without the operator's signature, and without a pin on this machine.

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
    Sign and pin enrolments as they are, and write pinned ones back where the control server differs.

    Args:
        store: Both servers.
        found: The result of ``unsigned``, after an operator has checked it.

    Returns:
        A line for each change.

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
        except ForeignUsers as exc:
            hashes = {}
            done.append(f"{client}: {exc}: left out; enrol it anew")
        _register(store, client, replace(known, users=hashes), None)
        done.append(f"{client}: signed")
    for client, ruling in store.control.enrolments.rulings().items():
        if ruling.trouble and ruling.enrolment is not None:
            store.control.enrolments.write(client, ruling.enrolment)
            done.append(f"{client}: {ruling.trouble}; the pinned entry is written back")
    return done


def restore_users(store: Store) -> list[str]:
    """
    Create users again that a server lost when it restarted; the healer calls this.

    Returns:
        Names of the created users.

    Raises:
        ConfigError: This login may not change users.
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
        with contextlib.suppress(ForeignUsers):  # See ``troubles``.
            lacking = users.missing(client_users.rules(client, known.users, users.servers))
            users.give(lacking)
            made += sorted({name for of_server in lacking.values() for name in of_server})
    return made


def troubles(store: Store) -> dict[str, str]:
    """
    Client -> problem of its entry on the control server, which was changed outside of enrolment.

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
    """The users in an enrolment that are ignored, as text; empty: none."""
    try:
        client_users.hashes(client, known.users if known is not None else {})
    except ForeignUsers as exc:
        return f"{exc}; these are ignored"
    return ""


class EnrolmentMonitor:
    """
    Watches the enrolments on the control server.

    Changes by another machine of the operator are pinned. Other changes are recorded in the log, and as an
    event of each run that trains.

    Args:
        store: Both servers.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recorded: dict[str, str] = {}

    def look(self) -> None:
        """Read the enrolments, and record new problems."""
        try:
            rulings = self._store.control.enrolments.rulings()
            self._store.control.enrolments.pins.adopt(rulings)
            found = _troubles(rulings)
        except ConfigError as exc:
            log.error("the enrolments cannot be read: %s", exc)
            return
        news = {client: why for client, why in found.items() if self._recorded.get(client) != why}
        self._recorded = found
        for client, why in news.items():
            log.warning("the entry of %s in %s: %s", client, keyspace.ENROLLED, why)
        for state in self._store.control.runs.living() if news else ():
            if state.active:
                run = state.run_id
                events = [
                    EnrolmentChanged(client=client, reason=why) for client, why in news.items()
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


def _check_public_key(store: Store, client: str, public: str) -> None:
    """Refuse a key that is none, that is the operator's, or that is another client's. Raises ConfigError."""
    if not public:
        return
    if client == identifiers.EVALUATOR:
        raise ConfigError("--public-key", "is for clients; the evaluator's key is made here")
    if not signing.is_key(public):
        raise ConfigError(
            "--public-key", "is not a key; give the line that `fl-queue keygen` printed"
        )
    for other, known in store.control.enrolments.all().items():
        if other != client and known.key == public:
            raise ConfigError("--public-key", f"is the key of {other}; each client makes its own")


def _check_closed(users: Users) -> None:
    if users.open_to_all():
        raise ConfigError(
            "--open-server",
            "the server's default user needs no password, so users and passwords keep no client out: give it one "
            "(`ACL SETUSER default on '>PASSWORD'`, and requirepass or an aclfile), or give --open-server "
            "if only your machines can reach the server",
        )


def _check_key(store: Store, client: str) -> None:
    """Refuse to create an operator's key where one must exist already. Raises ConfigError."""
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
    """Sign, pin and write an enrolment. Args: ``before``: the one in force so far."""
    signed = store.control.enrolments.pins.signed(client, made, before)
    # The pin first: it holds on this machine even if the entry is lost or changed.
    store.control.enrolments.pins.pin(client, signed)
    store.control.enrolments.write(client, signed)
    return signed


def _notes(users: Users) -> list[str]:
    if users.save():
        return []
    return [
        "the server has no aclfile: after a restart of it, a healer that may use ACL creates the users "
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
        store.control.events.add(run, ClientRevoked(round=current.number, client=client))
        done.append(
            f"run {name}: its job of round {current.number} is dropped; the round does not wait for it"
        )
    return done
