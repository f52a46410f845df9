"""
The HTML: the page, the form, the login; and what a plain HTTP client gets in their place.

Templates escape what they are given. Forms work without JavaScript.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, quote

from fastapi import APIRouter, Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.responses import (
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)

from fl_queue.common import escaping
from fl_queue.errors import ConfigError, FLQueueError, RunStateError, StoreUnavailable
from fl_queue.reporting import run_status
from fl_queue.reporting.run_status import RunStatus
from fl_queue.web import security, view_model
from fl_queue.web.access import Access
from fl_queue.web.connection import Connection
from fl_queue.web.launch import FORM_FIELDS, Configs, from_form, launch
from fl_queue.web.limits import Logins, address_of

_templates = Environment(
    loader=PackageLoader("fl_queue.web"), autoescape=True, undefined=StrictUndefined
)
_LINE = "Federated Learning server running. Status: {}\n"
_HOW = (
    "POST here to launch training: config=NAME, and if wanted run, rounds, {}, more.\nConfigs: {}\n"
)
#: Field of an error -> of the form.
_INPUTS = {field: name for name, field in FORM_FIELDS.items()} | {
    "config": "config", "CONFIG": "config", "--run": "run", "rounds": "rounds", "run.rounds": "rounds",
}  # fmt: skip


def html(template: str, status: int = 200, **values: object) -> HTMLResponse:
    """A template, filled in."""
    return HTMLResponse(_templates.get_template(template).render(**values), status)


def router(connection: Connection, offered: Configs, access: Access, logins: Logins) -> APIRouter:
    """Everything outside the API."""
    made = APIRouter(include_in_schema=False)
    _add_page(made, connection, access, logins)
    _add_form(made, connection, offered, access)
    _add_login(made, access, logins)
    return made


def _add_page(made: APIRouter, connection: Connection, access: Access, logins: Logins) -> None:
    def line() -> Response:
        try:
            with connection.store() as store:
                return PlainTextResponse(
                    _LINE.format(view_model.overall(run_status.living_runs(store)))
                )
        except StoreUnavailable as exc:
            return PlainTextResponse(f"{_LINE.format('UNAVAILABLE')}{escaping.line(exc)}\n", 503)

    @made.get("/")
    async def page(request: Request) -> Response:
        given = request.query_params.get("token")
        if given is not None:
            return await _entered(request, given, access, logins)
        if not security.wants_html(request.headers):
            return await run_in_threadpool(line)
        may_change = request.scope[security.VISITOR].role == "all"
        return html("index.html", csrf=access.csrf, may_change=may_change)


def _add_form(made: APIRouter, connection: Connection, offered: Configs, access: Access) -> None:
    def form(given: dict[str, str], error: str, field: str, status: int) -> Response:
        return html(
            "training.html",
            status,
            csrf=access.csrf,
            configs=offered.names(),
            given={"config": "demo", **given},
            error=error,
            field=field,
        )

    @made.get("/training")
    def show(request: Request) -> Response:
        if security.wants_html(request.headers):
            return form(dict(request.query_params), "", "", 200)
        fields, names = ", ".join(FORM_FIELDS), ", ".join(offered.names())
        return PlainTextResponse(_HOW.format(fields, names))

    def start(given: dict[str, str]) -> RunStatus:
        config, name, count, overrides = from_form(given)
        with connection.store() as store:
            return launch(store, offered, config, name, count, overrides)

    @made.post("/training")
    async def submit(request: Request) -> Response:
        given = await _form(request)
        browser = security.is_browser(request.headers)
        if browser and not access.is_csrf(given.pop("csrf", "")):
            return form(given, "The form is older than the server; launch again.", "", 403)
        try:
            status = await run_in_threadpool(start, given)
        except FLQueueError as exc:
            code = 409 if isinstance(exc, RunStateError) else 422
            code = 503 if isinstance(exc, StoreUnavailable) else code
            if not browser:
                return PlainTextResponse(f"Error: {escaping.line(exc)}\n", code)
            field = exc.field if isinstance(exc, ConfigError) else ""
            return form(given, str(exc), _INPUTS.get(field, "more" if field else ""), code)
        if not browser:
            line = _LINE.format("TRAINING")
            return PlainTextResponse(
                f"{line}{escaping.line(status.run_id)} {escaping.line(status.doing)}\n", 201
            )
        return RedirectResponse(f"/?run={quote(status.name)}", status_code=303)


def _add_login(made: APIRouter, access: Access, logins: Logins) -> None:
    @made.get("/login")
    def login() -> Response:
        return html("login.html", error="")

    @made.post("/login")
    async def check(request: Request) -> Response:
        given = (await _form(request)).get("token", "")
        return await _entered(request, given.strip(), access, logins)


async def _entered(request: Request, given: str, access: Access, logins: Logins) -> Response:
    """The answer to a token, by the form or by the link: a cookie, and on to the page without the token."""
    name = request.query_params.get("run", "")
    where = f"/?run={quote(name)}" if name else "/"
    role = access.role_of(given)
    if access.token and not role:
        wait_s = await logins.wrong(address_of(request.scope))
        error = (
            f"Too many wrong tokens. Try again in {wait_s} s."
            if wait_s
            else "That is not the token."
        )
        answer: Response = html("login.html", 429 if wait_s else 403, error=error)
        if wait_s:
            answer.headers["Retry-After"] = str(wait_s)
        return answer
    # A browser that follows another site's link sends a strict cookie with no redirect of it, but with
    # what a page of ours leads to.
    came = request.headers.get("sec-fetch-site", "none")
    if came in ("none", "same-origin"):
        answer = RedirectResponse(where, status_code=303)
    else:
        answer = html("entered.html", where=where)
    if role:
        answer.set_cookie(
            access.cookie,
            access.new_session(role),
            httponly=True,
            samesite="strict",
            secure=_is_encrypted(request),
        )
    return answer


def _is_encrypted(request: Request) -> bool:
    """Whether the browser speaks TLS, with us or with the proxy before us."""
    forwarded = request.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
    return "https" in (request.url.scheme, forwarded)


async def _form(request: Request) -> dict[str, str]:
    """A submitted form; of a field that is there twice, the last one."""
    body = (await request.body()).decode("utf-8", errors="replace")
    return {
        name: value.strip()
        for name, value in parse_qsl(body, keep_blank_values=True, max_num_fields=100)
    }
