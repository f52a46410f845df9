"""
Security checks of every request, before the application sees it, and headers of every answer.

A page of another site can make a browser send requests here. It cannot read answers (there is no
CORS), cannot send JSON or own headers without asking first, and cannot hide its Origin. With DNS
rebinding it can pose as this origin, but then the Host is its own name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fl_queue.common.safe_json import is_count
from fl_queue.web.access import Access, bearer_of
from fl_queue.web.limits import Logins, address_of

#: Key of a request's scope: its ``Visitor``.
VISITOR = "fl_queue.visitor"
READ_ONLY = "this token may only read"
CSRF_HEADER = "X-CSRF-Token"
BODY_LIMIT = 64 * 1024
_SAFE = ("GET", "HEAD", "OPTIONS")
_OPEN = ("/login", "/static/")
_PAGES = ("/", "/training", "/login")
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


def is_browser(headers: Headers) -> bool:
    """Whether a request may have been made for a page of any site."""
    has_header = any(name in headers for name in ("origin", "cookie", "sec-fetch-site"))
    return has_header or wants_html(headers)


def wants_html(headers: Headers) -> bool:
    """Whether the answer is for a browser's window; others get plain text."""
    return "text/html" in headers.get("accept", "")


class Guard:
    """
    ASGI middleware that refuses requests which fail a check.

    Args:
        logins: Counts wrong tokens.
    """

    def __init__(self, app: ASGIApp, access: Access, logins: Logins) -> None:
        self.app, self.access, self.logins = app, access, logins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, and pass it to the application."""
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

        refused = await self._refusal(scope, Headers(scope=scope))
        if refused is not None:
            await refused(scope, receive, with_headers)
            return
        await self.app(scope, _limited(receive), with_headers)

    async def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        method, path, host = scope["method"], scope["path"], headers.get("host", "")
        if not is_own_host(host, self.access.hosts):
            return refusal(421, "Host", "this server has another name; see `--allow-host`")
        visitor = scope[VISITOR] = self.access.visitor(headers)
        by_bearer = bool(visitor.role) and visitor.has_bearer
        elsewhere = "" if by_bearer else from_elsewhere(headers, host)
        if elsewhere and not (method in _SAFE and _is_visit(path, headers)):
            what = "ask for" if method in _SAFE else "change"
            return refusal(403, elsewhere, f"another site may not {what} anything here")
        if not visitor.role and not _is_open(scope):
            return await self._unknown(scope, headers)
        is_change = (path == "/training" or method not in _SAFE) and not path.startswith("/login")
        if is_change and visitor.role != "all":
            return refusal(403, "Authorization", READ_ONLY)
        if method in _SAFE:
            return None
        return self._refusal_of_change(path, headers, by_bearer)

    async def _unknown(self, scope: Scope, headers: Headers) -> Response:
        if bearer_of(headers):
            if wait_s := await self.logins.wrong(address_of(scope)):
                return too_many(wait_s)
        elif scope["method"] in _SAFE and wants_html(headers):
            return RedirectResponse("/login", status_code=303)
        answer = refusal(401, "Authorization", "send the token: `Authorization: Bearer TOKEN`")
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    def _refusal_of_change(self, path: str, headers: Headers, by_bearer: bool) -> Response | None:
        length = headers.get("content-length", "0")
        if not is_count(length) or int(length) > BODY_LIMIT:
            return refusal(413, "body", f"is larger than {BODY_LIMIT} bytes")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if path.startswith("/api/") and kind not in ("", "application/json"):
            return refusal(415, "Content-Type", "send application/json")
        # A form has its own token in the body.
        if by_bearer or not path.startswith("/api/"):
            return None
        if is_browser(headers) and not self.access.is_csrf(headers.get(CSRF_HEADER, "")):
            return refusal(403, CSRF_HEADER, "the page is older than the server; reload it")
        if kind != "application/json" and int(length) > 0:
            return refusal(415, "Content-Type", "send application/json")
        return None


def _is_open(scope: Scope) -> bool:
    """Whether a request needs no token yet: the login and what it shows, and the link with the token."""
    if scope["path"].startswith(_OPEN):
        return True
    is_link = scope["path"] == "/" and scope["method"] in _SAFE
    return is_link and b"token=" in scope["query_string"]


def from_elsewhere(headers: Headers, host: str) -> str:
    """
    Find the header which shows that another site's page made the request; empty if none does.

    A GET counts, too: an image of another site could have models exported, and streams opened.
    """
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return "Origin"
    site = headers.get("sec-fetch-site")
    if site is not None:
        return "" if site in ("same-origin", "none") else "Sec-Fetch-Site"
    referer = headers.get("referer")  # Of browsers before 2023.
    if origin is None and referer and urlsplit(referer).netloc.lower() != host.lower():
        return "Referer"
    return ""


def _is_visit(path: str, headers: Headers) -> bool:
    """Whether a browser follows a link of another site to a page. That only shows the page."""
    mode = headers.get("sec-fetch-mode", "navigate"), headers.get("sec-fetch-dest", "document")
    is_document = mode == ("navigate", "document") and "origin" not in headers
    return path in _PAGES and is_document and wants_html(headers)


def _limited(receive: Receive) -> Receive:
    """Cut the body off at the limit: a chunked one has no length in its headers."""
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
    """Make the answer to a refused request, in the form of the API."""
    return JSONResponse({"error": "Refused", "field": field, "message": message}, status)


def too_many(wait_s: int) -> Response:
    """An answer to a wrong token after too many of them; the right one is taken at any time."""
    answer = refusal(429, "Authorization", f"too many wrong tokens; try again in {wait_s} s")
    answer.headers["Retry-After"] = str(wait_s)
    return answer
