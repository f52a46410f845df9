"""
Who may do what: tokens, and the cookies that browsers get for them.

There are two: one for everything, one that may only read. A cookie names its session and is signed
with the token it was given for, so nothing is kept here, and a new token ends all sessions.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Literal

from starlette.datastructures import Headers

#: What somebody may: everything, read, nothing.
Role = Literal["all", "read", ""]
_COOKIE = "flq_session"


@dataclass(frozen=True)
class Visitor:
    """
    Who asks.

    Args:
        role: What they may.
        session: Of their browser; empty: of none.
        has_bearer: Whether the token is in a header that no other site can have a browser send.
    """

    role: Role
    session: str = ""
    has_bearer: bool = False


@dataclass(frozen=True)
class Access:
    """
    What requests are compared with.

    Args:
        token: Whoever asks has to know it; empty: nobody has to, and everybody may everything.
        hosts: Names a request may call this server, besides ``localhost`` and addresses.
        read_token: Who knows this one may read; empty: there is none.
        secret: Key of the CSRF token; forms of another process are refused.
    """

    token: str = field(default="", repr=False)
    hosts: frozenset[str] = frozenset()
    read_token: str = field(default="", repr=False)
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def csrf(self) -> str:
        """What a form of ours has to hold."""
        return _mac(self.secret, "csrf")

    @property
    def cookie(self) -> str:
        """Name of the cookie; servers of one host, which share cookies, have different ones."""
        return f"{_COOKIE}_{_mac(self.token.encode(), 'cookie')[:8]}"

    def role_of(self, token: str) -> Role:
        """What a token lets do. Takes as long whatever it is."""
        given = token.encode()
        is_token = bool(self.token) and hmac.compare_digest(given, self.token.encode())
        may_read = bool(self.read_token) and hmac.compare_digest(given, self.read_token.encode())
        return "all" if is_token else "read" if may_read else ""

    def is_csrf(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.csrf.encode())

    def new_session(self, role: Role) -> str:
        """Value of the cookie for somebody who has given a token; it does not tell the token."""
        name = secrets.token_hex(16)
        return f"{role}.{name}.{self._signature(role, name)}"

    def visitor(self, headers: Headers) -> Visitor:
        """Who asks, by the token or by the cookie that was given for it."""
        if not self.token:
            return Visitor("all")
        if bearer := bearer_of(headers):
            return Visitor(self.role_of(bearer), has_bearer=True)
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return Visitor("")
        role, _, rest = (morsel.value if morsel else "").partition(".")
        name, _, signature = rest.partition(".")
        for known in ("all", "read"):
            wanted = self._signature(known, name).encode()
            if role == known and hmac.compare_digest(signature.encode(), wanted):
                return Visitor(known, session=name)
        return Visitor("")

    def _signature(self, role: Role, name: str) -> str:
        key = self.token if role == "all" else self.read_token
        # Without a read token there is no session of one: an empty key is everybody's.
        return _mac(key.encode() if key else self.secret, f"session {role} {name}")


def bearer_of(headers: Headers) -> str:
    """The token of ``Authorization: Bearer``; empty without."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def _mac(key: bytes, text: str) -> str:
    return hmac.new(key, f"fl-queue {text}".encode(), hashlib.sha256).hexdigest()
