"""
Authorisation of the page: tokens, and the session cookies that browsers get for them.

There are two tokens: one for everything, one for reading. A cookie names its session and is signed with
the token, so the server stores no sessions, and a new token ends all of them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Literal

from starlette.datastructures import Headers

#: Permission: everything, reading, nothing.
Role = Literal["all", "read", ""]
_COOKIE = "flq_session"


@dataclass(frozen=True)
class Visitor:
    """
    The sender of a request.

    Args:
        role: Its permission.
        session: Id of the browser's session; empty without a cookie.
        has_bearer: Whether the token is in a header that another site cannot make a browser send.
    """

    role: Role
    session: str = ""
    has_bearer: bool = False


@dataclass(frozen=True)
class Access:
    """
    Secrets and host names that requests are checked against.

    Args:
        token: Token for everything; empty: every request is allowed.
        hosts: Host names of this server, in addition to ``localhost`` and addresses.
        read_token: Token for reading; empty: there is none.
        secret: Key of the CSRF token; new in each process, so old forms are refused.
    """

    token: str = field(default="", repr=False)
    hosts: frozenset[str] = frozenset()
    read_token: str = field(default="", repr=False)
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def csrf(self) -> str:
        """CSRF token that forms and scripts of the page send."""
        return _mac(self.secret, "csrf")

    @property
    def cookie(self) -> str:
        """Name of the cookie. Servers on one host share cookies, so it differs between tokens."""
        return f"{_COOKIE}_{_mac(self.token.encode(), 'cookie')[:8]}"

    def role_of(self, token: str) -> Role:
        """Find the permission of a token, in constant time."""
        given = token.encode()
        is_token = bool(self.token) and hmac.compare_digest(given, self.token.encode())
        may_read = bool(self.read_token) and hmac.compare_digest(given, self.read_token.encode())
        return "all" if is_token else "read" if may_read else ""

    def is_csrf(self, text: str) -> bool:
        """Whether a text is the CSRF token."""
        return hmac.compare_digest(text.encode(), self.csrf.encode())

    def new_session(self, role: Role) -> str:
        """Make the cookie of a new session. The token cannot be derived from it."""
        name = secrets.token_hex(16)
        return f"{role}.{name}.{self._signature(role, name)}"

    def visitor(self, headers: Headers) -> Visitor:
        """Identify the sender by its token or cookie."""
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
        # Without a read token no such session is valid: a signature with an empty key could be forged.
        return _mac(key.encode() if key else self.secret, f"session {role} {name}")


def bearer_of(headers: Headers) -> str:
    """Read the token of ``Authorization: Bearer``; empty without one."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def _mac(key: bytes, text: str) -> str:
    return hmac.new(key, f"fl-queue {text}".encode(), hashlib.sha256).hexdigest()
