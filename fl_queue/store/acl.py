"""
Users of the Redis servers and their rules for Redis' access control. No Redis here.

Redis 7 has selectors: one user is given several sets of commands, each with keys of its own. 6.2 has
none, and there a union of all commands and all keys would let a client DEL, LTRIM or SET the results
list. So there a client has several users, one for each purpose, and its worker sends each command as the
user for it (``store/split_users.py``). Admin commands are for the operator's user alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fl_queue.errors import ConfigError
from fl_queue.protocol import identifiers
from fl_queue.store import key_table, keyspace

Role = Literal["client", "aggregator", "evaluator", "operator", "pool", "reader"]
Purpose = Literal["all", "own", "read", "push"]
#: Which of the two Redis roles a server has.
Server = Literal["control", "data", "both"]

ROLES: tuple[Role, ...] = ("client", "aggregator", "evaluator", "operator", "pool", "reader")
#: What the users of a client are for on a server without selectors.
SPLIT: tuple[Purpose, ...] = ("own", "read", "push")
#: The first version with selectors.
SELECTORS = (7, 0)

_CONNECTION = ("auth", "hello", "ping", "select", "info", "client|setname", "client|info")
_TRANSACTION = ("multi", "exec", "discard", "watch", "unwatch")
_READ = (
    *("exists", "type", "ttl", "pttl", "get", "mget", "getrange", "strlen"),
    *("hget", "hmget", "hgetall", "hexists", "hlen", "hstrlen"),
    *("llen", "lrange", "lindex", "lpos", "zcard", "zscore", "zrange", "zrangebyscore"),
    *("smembers", "scard", "sismember", "xlen", "xrange", "xrevrange", "xread"),
)
#: What RQ and our leases need on keys of one's own.
_OWN = (
    *("set", "del", "unlink", "expire", "pexpire", "persist"),
    *("hset", "hsetnx", "hdel", "hincrby", "hincrbyfloat"),
    *("lpush", "rpush", "lrem", "lmove", "blmove", "zadd", "zrem", "zremrangebyscore"),
    *("sadd", "srem", "xadd"),
)


#: Beginnings of keys that clients read, and others write.
_OF_OTHERS = ("flq:{", "flq:chunk:", "flq:roster:", "flq:inbox:", keyspace.DELETED)


@dataclass(frozen=True)
class User:
    """
    One Redis user.

    Args:
        name: Its name.
        purpose: What it is for; ``all`` where one user does everything.
        rules: Arguments of ``ACL SETUSER`` after name, ``reset``, ``on`` and the password.
    """

    name: str
    purpose: Purpose
    rules: tuple[str, ...]

    def line(self, secret: str) -> str:
        """
        The user's line of a ``users.acl`` file.

        Args:
            secret: ``#`` and the SHA-256 of its password in hexadecimal.
        """
        return " ".join(("user", self.name, "on", secret, *self.rules))

    def setuser(self, secret: str) -> list[str]:
        """Arguments of ``ACL SETUSER``, which forgets what the user could do before."""
        return [self.name, "reset", "on", secret, *self.rules]


def users(
    role: Role, who: str = "", version: Sequence[int] = SELECTORS, server: Server = "both"
) -> list[User]:
    """
    The Redis users of a role.

    Args:
        role: One of ``ROLES``.
        who: Client id, for the role ``client``.
        version: Of the server, ``(7, 0)``; of two servers the lower one, so that both have the same users.
        server: What the server is used for.

    Raises:
        ConfigError: ``who`` is not a client id.
    """
    has_selectors = tuple(version[:2]) >= SELECTORS
    if role == "client":
        if not identifiers.is_name(who) or who in identifiers.RESERVED:
            raise ConfigError("client", f"{who!r} is not a client id; use letters, digits, dashes")
        return _client(who, has_selectors, server)
    rules = _reader(has_selectors) if role == "reader" else _trusted(role, has_selectors)
    if role == "operator":
        rules += ("+keys", "+config|get", "+acl")
    return [User(f"flq-{role}", "all", rules)]


def user_for_command(command: str, key: str = "") -> Purpose:
    """Which of a client's users sends a command, where there are several. Args: ``key``: its first argument."""
    if command == "PUBLISH" or (command == "RPUSH" and key.startswith("flq:{")):
        return "push"
    is_read = key.startswith(_OF_OTHERS) and command.lower() in _READ
    return "read" if is_read else "own"


def client_user(client: str, purpose: Purpose = "all") -> str:
    """Name of a client's user."""
    return f"flq-client-{client}" + ("" if purpose == "all" else f"_{purpose}")


def _client(client: str, has_selectors: bool, server: Server) -> list[User]:
    # No pattern here is another client's: an id stands between separators that no id contains.
    own, read, push = _own(client, server), _read(client, server, has_selectors), _push(server)
    connection = ("resetchannels", *_with("+", _CONNECTION))
    if has_selectors:
        channel = push[2:]  # Channels need no selector: they have but one command.
        selectors = [f"({' '.join(part)})" for part in (read, _writing(push[:2])) if part]
        return [User(client_user(client), "all", (*connection, *own, *channel, *selectors))]
    parts: dict[Purpose, tuple[str, ...]] = {"own": own, "read": read, "push": push}
    return [
        User(client_user(client, purpose), purpose, (*connection, *rules))
        for purpose, rules in parts.items()
    ]


def _own(client: str, server: Server) -> tuple[str, ...]:
    """The client's queue, jobs, workers, hash, events and leases; its chunks and its admission."""
    keys: list[str] = []
    if server != "data":
        queue = keyspace.client_queue(client)
        keys += [
            *_keys("control", "own", client),
            f"rq:queue:{queue}",
            f"rq:queue:{queue}:intermediate",
        ]
        keys += [f"rq:{registry}:{queue}" for registry in ("wip", "finished", "failed")]
        # "job:" makes two colons: that is how RQ names a job's dependencies.
        for kind in ("job", "job:", "results", "executions", "execution", "worker"):
            keys.append(f"rq:{kind}:{client}_*")
    if server != "control":
        keys += _keys("data", "own", client)
    return (*_with("~", keys), *_with("+", (*_TRANSACTION, *_READ, *_OWN)))


def _read(client: str, server: Server, has_selectors: bool) -> tuple[str, ...]:
    """Runs and rounds as far as a client needs them, models, what is admitted, and the client's inboxes."""
    keys: list[str] = []
    if server != "data":
        keys += _keys("control", "read")
    if server != "control":
        keys += _keys("data", "read")
        keys += _keys("data", "inbox", client)
    return (*_with("%R~" if has_selectors else "~", keys), *_with("+", _READ))


def _keys(server: Server, use: str, client: str = "*") -> list[str]:
    """Return the patterns of a server's keys that clients use so. Args: ``client``: only its own."""
    found: list[str] = []
    for key in key_table.KEYS:
        if key.server != server or use not in key.clients:
            continue
        if key.pattern == "flq:{<run>}:round:<n>":
            # Not ``*``: receipts lie below a round's key.
            found += [keyspace.round_("*", "[0-9]" * digits) for digits in range(1, 10)]
        else:
            found.append(key.glob(id=client, client=client, name=f"{client}_*"))
    return found


def _push(server: Server) -> tuple[str, ...]:
    """Rules to append to results lists and announce it; the control server has none."""
    if server == "control":
        return ()
    return (f"~{keyspace.results('*')}", "+rpush", f"&{keyspace.ARRIVALS}", "+publish")


def _writing(rules: Sequence[str]) -> tuple[str, ...]:
    """The same rules, but reading."""
    return tuple(rule.replace("~", "%W~", 1) if rule[0] == "~" else rule for rule in rules)


def _trusted(role: Role, has_selectors: bool) -> tuple[str, ...]:
    """
    The operator's side: everything that is ours and RQ's, and no administration.

    Who is enrolled only the operator writes. Aggregators read it; without selectors Redis cannot give them
    that alone.
    """
    ours = ["~flq:*"]
    if role != "operator" and (has_selectors or role != "aggregator"):
        # No rule takes a key out of a pattern; no other key of ours begins so.
        ours = ["~flq:[^e]*", *([f"%R~{keyspace.ENROLLED}"] if has_selectors else [])]
    keys = (*ours, "~rq:*", f"&{keyspace.ARRIVALS}")
    commands = ("+@all", "-@admin", "-@dangerous", *_with("+", _CONNECTION))
    return ("resetchannels", *keys, *commands)


def _reader(has_selectors: bool) -> tuple[str, ...]:
    """
    Rules to read status, history and events, but no updates and no models; and to write nothing.

    Without selectors, the permission for the length of a results list would include its content.
    """
    commands = _with("+", (*_READ, *_CONNECTION, "time", "scan"))
    if not has_selectors:
        return ("resetchannels", "~flq:*", "~rq:*", *commands)
    keys = key_table.without_covered(
        ["rq:*", *(key.glob() for key in key_table.KEYS if key.reader)]
    )
    lists = f"(%R~{keyspace.results('*')} %R~{keyspace.taken('*', '*')} +llen)"
    return ("resetchannels", *_with("%R~", keys), *commands, lists)


def _with(mark: str, items: Sequence[str]) -> tuple[str, ...]:
    return tuple(mark + item for item in items)
