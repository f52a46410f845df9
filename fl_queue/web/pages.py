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

from fl_queue import views
from fl_queue.errors import ConfigError, FLQueueError, RunStateError, StoreUnavailable
from fl_queue.views import RunStatus
from fl_queue.web import guard, scene
from fl_queue.web.connection import Connection
from fl_queue.web.guard import Access
from fl_queue.web.launch import FORM_FIELDS, Configs, from_form, launch

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


def router(connection: Connection, offered: Configs, access: Access) -> APIRouter:
    """Everything outside the API."""
    made = APIRouter(include_in_schema=False)
    _add_page(made, connection, access)
    _add_form(made, connection, offered, access)
    _add_login(made, access)
    return made


def _add_page(made: APIRouter, connection: Connection, access: Access) -> None:
    @made.get("/")
    def page(request: Request) -> Response:
        if guard.wants_html(request.headers):
            return html("index.html", csrf=access.csrf, token=bool(access.token))
        try:
            with connection.store() as store:
                return PlainTextResponse(_LINE.format(scene.overall(views.living_runs(store))))
        except StoreUnavailable as exc:
            return PlainTextResponse(f"{_LINE.format('UNAVAILABLE')}{exc}\n", 503)


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
        if guard.wants_html(request.headers):
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
        browser = guard.is_browser(request.headers)
        if browser and not access.is_csrf(given.pop("csrf", "")):
            return form(given, "The form is older than the server; launch again.", "", 403)
        try:
            status = await run_in_threadpool(start, given)
        except FLQueueError as exc:
            code = 409 if isinstance(exc, RunStateError) else 422
            code = 503 if isinstance(exc, StoreUnavailable) else code
            if not browser:
                return PlainTextResponse(f"Error: {exc}\n", code)
            field = exc.field if isinstance(exc, ConfigError) else ""
            return form(given, str(exc), _INPUTS.get(field, "more" if field else ""), code)
        if not browser:
            line = _LINE.format("TRAINING")
            return PlainTextResponse(f"{line}{status.run_id} {status.doing}\n", 201)
        return RedirectResponse(f"/?run={quote(status.name)}", status_code=303)


def _add_login(made: APIRouter, access: Access) -> None:
    @made.get("/login")
    def login() -> Response:
        return html("login.html", error="")

    @made.post("/login")
    async def check(request: Request) -> Response:
        given = (await _form(request)).get("token", "")
        if not access.is_token(given.strip()):
            return html("login.html", 403, error="That is not the token.")
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            guard.COOKIE,
            access.session,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer


async def _form(request: Request) -> dict[str, str]:
    """A submitted form; of a field that is there twice, the last one."""
    body = (await request.body()).decode("utf-8", errors="replace")
    return {
        name: value.strip()
        for name, value in parse_qsl(body, keep_blank_values=True, max_num_fields=100)
    }
