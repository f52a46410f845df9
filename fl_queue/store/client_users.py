"""
The Redis users of an enrolled client; their names and rules follow from the client's id.

An enrolment on the control server has their names and the hashes of their passwords. Write access to it must
not give further rights, so the rules are computed (``acl``), and other content is ignored.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence

from fl_queue.protocol import identifiers
from fl_queue.store import acl
from fl_queue.store.credentials import Login

#: Server -> name of a user -> ``#`` and the SHA-256 of its password; entries of earlier versions have its rules there, too.
Hashes = Mapping[str, Mapping[str, Sequence[str]]]
#: Server -> name of a user -> arguments of ACL SETUSER after it.
Rules = dict[str, dict[str, Sequence[str]]]
_SERVERS = ("control", "data")
_HASH = re.compile(r"#[0-9a-f]{64}")
#: Of servers with selectors, and of those without: a client is one user there, or three.
_VERSIONS = (acl.SELECTORS, (6, 2))


class ForeignUsers(ValueError):
    """An enrolment with other users, or other content about them, than ``fl-queue enroll`` writes."""


def make(
    client: str, servers: Sequence[acl.Server], version: tuple[int, int]
) -> tuple[dict[str, Login], Rules, dict[str, dict[str, list[str]]]]:
    """
    New users of a client, with random passwords.

    Args:
        servers: ``control`` and ``data``; one of them where both are the same server.
        version: Of the servers.

    Returns:
        Logins by purpose, rules, and names with hashes for its enrolment.
    """
    logins: dict[str, Login] = {}
    rules: Rules = {}
    hashes: dict[str, dict[str, list[str]]] = {}
    for server in servers:
        rules[server], hashes[server] = {}, {}
        for user in _users(client, version, server, servers):
            login = logins.setdefault(user.purpose, Login(user.name, secrets.token_urlsafe(32)))
            digest = "#" + hashlib.sha256(login.password.encode()).hexdigest()
            rules[server][user.name] = user.setuser(digest)[1:]
            hashes[server][user.name] = [digest]
    return logins, rules, hashes


def rules(client: str, known: Hashes, servers: Sequence[acl.Server]) -> Rules:
    """
    The rules of the users that an enrolment has the passwords of.

    Raises:
        ForeignUsers: It has other users than the client's own, or no single hash of one.
    """
    found = hashes(client, known)
    return {
        server: {
            user.name: user.setuser(found[server][user.name][0])[1:]
            for user in _as_in(client, found[server], server, servers)
        }
        for server in servers
        if server in found
    }


def hashes(client: str, known: Hashes) -> dict[str, dict[str, list[str]]]:
    """The users in an enrolment with nothing but the hashes of their passwords. Raises ForeignUsers."""
    found: dict[str, dict[str, list[str]]] = {}
    for server, of_server in known.items():
        users = _as_in(client, of_server, "both", ()) if of_server else []
        if server not in _SERVERS or not users:
            raise ForeignUsers(f"it names Redis users that are not of {client}")
        found[server] = {user.name: [_hash(user.name, of_server[user.name])] for user in users}
    return found


def own(client: str, known: Hashes) -> dict[str, list[str]]:
    """Server -> those users in an enrolment that are the client's own."""
    allowed = {user.name for version in _VERSIONS for user in _users(client, version, "both", ())}
    return {server: sorted(allowed & of_server.keys()) for server, of_server in known.items()}


def _as_in(
    client: str, of_server: Mapping[str, object], server: acl.Server, servers: Sequence[acl.Server]
) -> list[acl.User]:
    """The users that a client is on a server, one or three, as an enrolment names them; none: it names others."""
    shapes = (_users(client, version, server, servers) for version in _VERSIONS)
    return next((it for it in shapes if {user.name for user in it} == of_server.keys()), [])


def _users(
    client: str, version: tuple[int, int], server: acl.Server, servers: Sequence[acl.Server]
) -> list[acl.User]:
    role: acl.Role = "evaluator" if client == identifiers.EVALUATOR else "client"
    return acl.users(role, client, version, "both" if len(servers) == 1 else server)


def _hash(user: str, entry: Sequence[str]) -> str:
    hashes = [item for item in entry if _HASH.fullmatch(item)]
    if len(hashes) != 1 or "nopass" in entry:
        raise ForeignUsers(f"it has no single hash of the password of Redis user {user}")
    return hashes[0]
