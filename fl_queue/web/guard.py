"""
Who may ask what: checks of every request before anything else sees it, and the headers of every answer.

A page of another site can make a browser send requests here. It cannot read answers (there is no
CORS), cannot send JSON or own headers without asking first, and cannot hide its Origin. With DNS
rebinding it can pose as this origin, but then the Host is its own name.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fl_queue.plain import is_count

COOKIE = "flq_session"
CSRF_HEADER = "X-CSRF-Token"
BODY_LIMIT = 64 * 1024
_SAFE = ("GET", "HEAD", "OPTIONS")
_OPEN = ("/login", "/static/")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: that makes the Origin of our own forms "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class Access:
    """
    What the checks compare with.

    Args:
        token: Whoever asks has to know it; empty: nobody has to.
        hosts: Names a request may call this server, besides ``localhost`` and addresses.
        secret: Key of the CSRF token; forms of another process are refused.
    """

    token: str = ""
    hosts: frozenset[str] = frozenset()
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def csrf(self) -> str:
        """What a form of ours has to hold."""
        return hmac.new(self.secret, b"csrf", hashlib.sha256).hexdigest()

    @property
    def session(self) -> str:
        """Value of the cookie of who has given the token; it does not tell the token."""
        return hmac.new(self.token.encode(), b"fl-queue session", hashlib.sha256).hexdigest()

    def is_token(self, text: str) -> bool:
        return bool(self.token) and hmac.compare_digest(text.encode(), self.token.encode())

    def is_csrf(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.csrf.encode())

    def admits(self, headers: Headers) -> bool:
        """Whether a request shows the token, or the cookie that was given for it."""
        if not self.token or self.has_bearer(headers):
            return True
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return morsel is not None and hmac.compare_digest(
            morsel.value.encode(), self.session.encode()
        )

    def has_bearer(self, headers: Headers) -> bool:
        """Whether the token is in a header that no other site can have a browser send."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.is_token(given.strip())


def is_browser(headers: Headers) -> bool:
    """Whether a request may have been made for a page of any site."""
    told = any(name in headers for name in ("origin", "cookie", "sec-fetch-site"))
    return told or wants_html(headers)


def wants_html(headers: Headers) -> bool:
    """Whether the answer is for a browser's window; others get plain text."""
    return "text/html" in headers.get("accept", "")


class Guard:
    """ASGI middleware: refuses what it should, in front of ``app``."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = self._refusal(scope["method"], scope["path"], Headers(scope=scope))
        if refused is not None:
            await refused(scope, receive, with_headers)
            return
        await self.app(scope, _limited(receive), with_headers)

    def _refusal(self, method: str, path: str, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if not is_own_host(host, self.access.hosts):
            return refusal(421, "Host", "this server has another name; see `--allow-host`")
        if not path.startswith(_OPEN) and not self.access.admits(headers):
            if method in _SAFE and wants_html(headers):
                return RedirectResponse("/login", status_code=303)
            answer = refusal(401, "Authorization", "send the token: `Authorization: Bearer TOKEN`")
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        if method in _SAFE:
            return None
        return self._refusal_of_change(path, headers, host)

    def _refusal_of_change(self, path: str, headers: Headers, host: str) -> Response | None:
        length = headers.get("content-length", "0")
        if not is_count(length) or int(length) > BODY_LIMIT:
            return refusal(413, "body", f"is larger than {BODY_LIMIT} bytes")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if path.startswith("/api/") and kind not in ("", "application/json"):
            return refusal(415, "Content-Type", "send application/json")
        if self.access.has_bearer(headers):
            return None
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return refusal(403, "Origin", "another site may not change anything here")
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return refusal(403, "Sec-Fetch-Site", "another site may not change anything here")
        if not path.startswith("/api/"):
            return None  # A form; its own token is in the body.
        if is_browser(headers) and not self.access.is_csrf(headers.get(CSRF_HEADER, "")):
            return refusal(403, CSRF_HEADER, "the page is older than the server; reload it")
        if kind != "application/json" and int(length) > 0:
            return refusal(415, "Content-Type", "send application/json")
        return None


def _limited(receive: Receive) -> Receive:
    """The body, cut off beyond the limit: a chunked one does not tell its length before."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return {"type": "http.disconnect"} if seen > BODY_LIMIT else message

    return limited


def is_own_host(host: str, names: Iterable[str]) -> bool:
    """Whether a Host header names this server: an address, localhost, or one of ``names``."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    if name is None:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name in names
    return True


def refusal(status: int, field: str, message: str) -> Response:
    """An answer that says no, as the API says it."""
    return JSONResponse({"error": "Refused", "field": field, "message": message}, status)
