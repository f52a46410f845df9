"""JSON API, ``/api/v1``: the records of the commands' ``--json``, described by OpenAPI."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from fl_queue.common import escaping
from fl_queue.common.paths import below
from fl_queue.coordinator.operations import controls
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import (
    ConfigError,
    FLQueueError,
    RunStateError,
    StoreUnavailable,
    UnknownRun,
    UnknownVersion,
)
from fl_queue.protocol.records import RoundRecord
from fl_queue.reporting import analysis_result, model_export, rounds_table, run_status
from fl_queue.reporting.model_export import ExportRequest
from fl_queue.reporting.rounds_table import RoundRow
from fl_queue.reporting.run_status import ClientStatus, RunStatus
from fl_queue.store import keyspace
from fl_queue.web import security
from fl_queue.web.connection import Connection
from fl_queue.web.event_feed import Feed
from fl_queue.web.launch import Configs, launch
from fl_queue.web.limits import Streams, address_of

EVENTS_AT_MOST = 10_000
_LARGEST = 2**31 - 1
_STATUS = {ConfigError: 422, RunStateError: 409, UnknownRun: 404, UnknownVersion: 404}


class Problem(BaseModel):
    """Reason of a refusal; the message is the line that the command would print."""

    error: str
    field: str = ""
    message: str


class Launch(BaseModel):
    """Arguments of ``start-round``."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    config: str = Field(description="One of /configs.", examples=["demo"])
    run: str = Field("", max_length=63, description="Name; empty: that of the config.")
    rounds: int | None = Field(None, ge=1, le=_LARGEST, description="Default: run.rounds.")
    overrides: list[str] = Field(
        default=[], alias="set", max_length=200, description="section.key=value, as for --set."
    )


class History(BaseModel):
    """The rounds of a run as rows, and their full records."""

    rounds: list[RoundRow]
    records: list[RoundRecord]


class Event(BaseModel):
    """An event of a run's stream; its other fields depend on the event."""

    model_config = ConfigDict(extra="allow")

    at: float
    event: str


class Resumed(BaseModel):
    """The run, and a line for each action."""

    run: RunStatus
    done: list[str]


_Responses = dict[int | str, dict[str, Any]]
Run = Annotated[str, PathParameter(description="Name or run id.")]
_PROBLEMS: _Responses = {
    401: {"model": Problem, "description": "The token is missing."},
    404: {"model": Problem, "description": "No such run or version."},
    422: {"model": Problem, "description": "A parameter cannot be used."},
    429: {"model": Problem, "description": "Too many wrong tokens, or open pages."},
    503: {"model": Problem, "description": "Redis is not reachable; ask again."},
}
_CHANGES: _Responses = {
    400: {"model": Problem, "description": "The body cannot be read."},
    403: {
        "model": Problem,
        "description": "It comes from another site, or the token may only read.",
    },
    409: {"model": Problem, "description": "The run's state does not allow it."},
    413: {"model": Problem, "description": "Too large."},
    415: {"model": Problem, "description": "The body is not application/json."},
}
_CONFLICT: _Responses = {409: _CHANGES[409]}


def problem(status: int, error: str, field: str, message: str) -> Response:
    """Make a refusal as JSON."""
    answer = _json({"error": error, "field": field, "message": message}, status)
    if status == 503:
        answer.headers["Retry-After"] = "1"
    return answer


def problem_of(exc: FLQueueError) -> Response:
    """Convert an error of fl_queue to JSON, with its HTTP status."""
    if isinstance(exc, StoreUnavailable):
        return problem(503, "StoreUnavailable", "", str(exc))
    status = next((code for kind, code in _STATUS.items() if isinstance(exc, kind)), 500)
    return problem(status, type(exc).__name__, getattr(exc, "field", ""), str(exc))


def add_handlers(app: FastAPI) -> None:
    """Answer every error with a ``Problem``, those of the framework too."""

    @app.exception_handler(FLQueueError)
    async def _ours(request: Request, exc: FLQueueError) -> Response:
        return problem_of(exc)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, exc: RequestValidationError) -> Response:
        first: dict[str, Any] = dict(exc.errors()[0])
        field = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return problem(422, "ConfigError", field, f"{field}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def _of_the_framework(request: Request, exc: HTTPException) -> Response:
        """Convert an error of Starlette: a malformed body, an unknown path or method."""
        answer = problem(exc.status_code, "Refused", "", str(exc.detail))
        answer.headers.update(exc.headers or {})
        return answer


def _json(value: Any, status: int = 200) -> Response:
    # The form of `--json`. The models above describe it, and do not convert it.
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    # It may be shown on a terminal, by curl.
    return Response(escaping.json_text(text), status, media_type="application/json")


@dataclass(frozen=True)
class Services:
    """
    The objects that the routes share.

    Args:
        connection: To Redis.
        feed: Events for open pages.
        offered: Configs that can be started.
        streams: Count of open pages.
    """

    connection: Connection
    feed: Feed
    offered: Configs
    streams: Streams = field(default_factory=Streams)


async def _services(request: Request) -> Services:
    return cast(Services, request.state.services)


_Services = Annotated[Services, Depends(_services)]
_ROUTES = APIRouter()
_CSV: _Responses = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}
_TEXT: _Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
_BINARY: _Responses = {200: {"content": {"application/octet-stream": {}}}}


def router(connection: Connection, feed: Feed, offered: Configs) -> APIRouter:
    """Make the routes below /api/v1."""
    services = Services(connection, feed, offered)

    async def attach(request: Request) -> None:
        request.state.services = services

    made = APIRouter(prefix="/api/v1", responses=_PROBLEMS, dependencies=[Depends(attach)])
    made.include_router(_ROUTES)
    return made


class _Stream(StreamingResponse):
    """
    An answer that counts as an open page while it is sent.

    It is counted here and not where it is made: a visitor who has left by then gets no answer, so the
    count would never go down.
    """

    def __init__(
        self, messages: AsyncIterator[str], streams: Streams, who: str, **options: Any
    ) -> None:
        super().__init__(messages, **options)
        self.streams, self.who = streams, who

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self.streams.refusal(self.who)
        if refused is not None:
            status, message = refused
            answer = problem(status, "TooMany", "stream", message)
            answer.headers["Retry-After"] = "10"
            await answer(scope, receive, send)
            return
        self.streams.enter(self.who)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.streams.leave(self.who)


def _who(request: Request) -> str:
    """Key by which open pages are counted: the browser's session, else address and role."""
    visitor = request.scope[security.VISITOR]
    return visitor.session or f"{visitor.role} {address_of(request.scope)}"


def _may_change(request: Request) -> None:
    """Refuse a visitor with the read-only token. Raises HTTPException."""
    if request.scope[security.VISITOR].role != "all":
        raise HTTPException(403, security.READ_ONLY)


@_ROUTES.get("/runs", response_model=list[RunStatus])
def list_runs(services: _Services) -> Response:
    """The state of all runs: `fl-queue status --json`."""
    with services.connection.store() as store:
        found = run_status.statuses(store, run_status.living_runs(store))
    return _json([asdict(status) for status in found])


@_ROUTES.get("/runs/{run}", response_model=RunStatus)
def one_run(services: _Services, run: Run) -> Response:
    """The state of a run: `fl-queue status RUN --json`."""
    with services.connection.store() as store:
        return _json(asdict(run_status.run_status(store, runs.find_run(store, run))))


@_ROUTES.get("/runs/{run}/history", response_model=History)
def run_history(services: _Services, run: Run) -> Response:
    """The rounds of a run: `fl-queue history RUN --json`."""
    with services.connection.store() as store:
        return _json(run_status.history(store, runs.find_run(store, run).run_id))


@_ROUTES.get("/runs/{run}/events", response_model=list[Event])
def run_events(
    services: _Services, run: Run, last: Annotated[int, Query(ge=1, le=EVENTS_AT_MOST)] = 1000
) -> Response:
    """The newest events of a run, oldest first: `fl-queue events RUN --json`."""
    with services.connection.store() as store:
        stream = keyspace.events(runs.find_run(store, run).run_id)
        found = store.control.events.newest(stream, last)
    return _json([run_status.event_record(entry, event) for entry, event in found])


@_ROUTES.get(
    "/runs/{run}/rounds/{number}/clients/{client}",
    response_model=dict[str, Any],
    responses=_CONFLICT,
)
def receipt(
    services: _Services,
    run: Run,
    number: Annotated[int, PathParameter(ge=0, le=_LARGEST)],
    client: str,
) -> Response:
    """The receipt of a client's update: `fl-queue inspect RUN ROUND CLIENT --json`."""
    with services.connection.store() as store:
        return _json(run_status.receipts(store, runs.find_run(store, run), number, client))


@_ROUTES.get("/clients", response_model=list[ClientStatus])
def list_clients(services: _Services) -> Response:
    """All clients: `fl-queue clients --json`."""
    with services.connection.store() as store:
        return _json([asdict(client) for client in run_status.clients(store)])


@_ROUTES.get("/configs", response_model=list[str])
def list_configs(services: _Services) -> Sequence[str]:
    """The configs that can be launched."""
    return services.offered.names()


@_ROUTES.get("/stream", response_class=StreamingResponse, include_in_schema=False)
async def stream(
    services: _Services,
    request: Request,
    run: str = "",
    last_event_id: Annotated[str, Header()] = "",
) -> StreamingResponse:
    """Server-sent events for the page."""
    return _Stream(
        services.feed.messages(run, last_event_id),
        services.streams,
        _who(request),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


# response_class is not PlainTextResponse: OpenAPI would describe refusals as text.
@_ROUTES.get("/runs/{run}/history.csv", response_class=Response, responses={**_CSV})
def history_csv(services: _Services, run: Run) -> PlainTextResponse:
    """The rounds of a run as CSV: `fl-queue history RUN --csv`."""
    with services.connection.store() as store:
        state = runs.find_run(store, run)
        rows = rounds_table.rounds_of(store, state.run_id)
    attached = {
        "Content-Disposition": f'attachment; filename="{escaping.file_name(state.name)}-history.csv"'
    }
    return PlainTextResponse(rounds_table.to_csv(rows), media_type="text/csv", headers=attached)


@_ROUTES.get(
    "/runs/{run}/model.safetensors",
    response_class=FileResponse,
    responses={**_BINARY, **_CONFLICT, 403: _CHANGES[403]},
    dependencies=[Depends(_may_change)],
)
def model(
    services: _Services,
    run: Run,
    version: Annotated[int | None, Query(ge=0, le=_LARGEST)] = None,
    best: bool = False,
) -> FileResponse:
    """A model version (the newest, a numbered or the best one): `fl-queue export RUN`."""
    folder = TemporaryDirectory(prefix="fl-queue-web-")
    try:
        with services.connection.store() as store:
            state = runs.find_run(store, run)
            runs.check_is_model(store, state)
            number = model_export.version_of(store, state, version, best)
            path = below(Path(folder.name), f"{state.name}-{number}.safetensors")
            request = ExportRequest(path, number, kind=model_export.SAFETENSORS)
            model_export.export_version(store, state, services.connection.state_dir, request)
    except BaseException:
        folder.cleanup()
        raise
    return FileResponse(
        path, filename=path.name, background=BackgroundTask(folder.cleanup),
        media_type="application/octet-stream",
    )  # fmt: skip


@_ROUTES.get(
    "/runs/{run}/result",
    response_model=dict[str, Any],
    responses={**_CONFLICT, 403: _CHANGES[403]},
    dependencies=[Depends(_may_change)],
)
def result(services: _Services, run: Run) -> Response:
    """The result of an analysis of tables: `fl-queue result RUN --json`."""
    with services.connection.store() as store:
        return _json(analysis_result.read(store, runs.find_run(store, run)))


@_ROUTES.get(
    "/runs/{run}/result.txt",
    response_class=Response,
    responses={**_TEXT, **_CONFLICT, 403: _CHANGES[403]},
    dependencies=[Depends(_may_change)],
)
def result_text(services: _Services, run: Run) -> PlainTextResponse:
    """The result of an analysis as tables of text: `fl-queue result RUN`."""
    with services.connection.store() as store:
        found = analysis_result.read(store, runs.find_run(store, run))
    return PlainTextResponse(analysis_result.text(found))


@_ROUTES.post("/runs", response_model=RunStatus, status_code=201, responses=_CHANGES)
def start(services: _Services, wanted: Launch) -> Response:
    """Start a run, or continue it: `fl-queue start-round CONFIG --no-wait`."""
    with services.connection.store() as store:
        status = launch(
            store,
            services.offered,
            wanted.config,
            wanted.run,
            wanted.rounds,
            tuple(wanted.overrides),
        )
    return _json(asdict(status), 201)


@_ROUTES.post("/runs/{run}/cancel", response_model=RunStatus, responses=_CHANGES)
def cancel(services: _Services, run: Run) -> Response:
    """Stop a run; its model and history stay: `fl-queue cancel RUN`."""
    with services.connection.store() as store:
        return _json(asdict(run_status.run_status(store, controls.cancel(store, run))))


@_ROUTES.post("/runs/{run}/resume", response_model=Resumed, responses=_CHANGES)
def resume(services: _Services, run: Run) -> Response:
    """Continue a run after a failure or a cancel: `fl-queue resume RUN`."""
    with services.connection.store() as store:
        state, done = controls.resume(store, run, services.connection.state_dir)
        return _json({"run": asdict(run_status.run_status(store, state)), "done": done})
