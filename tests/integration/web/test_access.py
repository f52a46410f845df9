"""Who may ask the page what: each attack on `fl-queue web`, against a real server over real sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner
from starlette.datastructures import Headers

from fl_queue.cli.web import web as command
from fl_queue.errors import ConfigError
from fl_queue.store import Store
from fl_queue.web import limits, server
from fl_queue.web.access import Access
from fl_queue.web.connection import Connection
from fl_queue.web.launch import Configs
from tests.integration.conftest import run
from tests.support.federation import wait_for
from tests.support.recorded_rounds import add_rounds, record

__all__ = ["run"]  # A fixture.

TOKEN, READ = "t" * 43, "r" * 43
HTML = {"Accept": "text/html"}
ALL = {"Authorization": f"Bearer {TOKEN}"}
READER = {"Authorization": f"Bearer {READ}"}


class Served:
    """The page, answering on a free port of loopback."""

    def __init__(self, app: Any) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.thread.start()

    def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: str | None = None
    ) -> tuple[int, dict[str, str], str]:
        """(status, headers, text)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        text = answer.read().decode("latin-1")
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, text

    def stream(self, headers: dict[str, str]) -> http.client.HTTPResponse:
        """An open page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/api/v1/stream", headers=headers)
        return connection.getresponse()

    def login(self, token: str) -> dict[str, str]:
        """Headers of a browser that has opened the link."""
        answer = self.ask("GET", f"/?token={token}", HTML)
        assert answer[0] == 303, answer
        return {"Cookie": answer[1]["set-cookie"].split(";")[0]}

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        self.listener.close()


@pytest.fixture
def page(run: str, store: Store, redis_urls: tuple[str, str], tmp_path: Path) -> Iterator[Served]:
    """A page with a token for everything and one to read, of a Redis with a run in it."""
    add_rounds(store, run, record(1, 0))
    connection = Connection(lambda: Store.open(*redis_urls, tmp_path), tmp_path)
    access = Access(TOKEN, frozenset({"fl.example.org"}), READ)
    made = Served(server.build(connection, Configs(None), access))
    yield made
    made.close()


def test_behind_a_proxy_no_client_comes_in_without_the_token(page: Served, store: Store) -> None:
    """A request that a proxy on this machine passes on from the internet."""
    proxied = {"Host": "fl.example.org", "X-Forwarded-For": "203.0.113.9"}
    before = store.control.runs.names()

    assert page.ask("GET", "/api/v1/runs", proxied)[0] == 401
    assert page.ask("GET", "/", proxied)[0] == 401
    assert page.ask("GET", "/metrics", proxied)[0] == 401
    form = "config=mnist-3v7&rounds=1&run=owned"
    assert page.ask("POST", "/training", proxied, form)[0] == 401
    assert store.control.runs.names() == before
    assert page.ask("GET", "/api/v1/runs", proxied | ALL)[0] == 200


def test_the_link_gives_a_cookie_and_takes_the_token_out_of_the_address(page: Served) -> None:
    status, headers, _ = page.ask("GET", f"/?token={TOKEN}&run=a%26b", HTML)

    assert (status, headers["location"]) == (303, "/?run=a%26b")
    parts = headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(parts)
    assert TOKEN not in headers["set-cookie"]
    assert "Secure" not in parts
    cookie = {"Cookie": parts[0]}
    assert page.ask("GET", "/", HTML | cookie)[0] == 200
    assert page.ask("GET", "/api/v1/runs", cookie)[0] == 200
    tls = {"X-Forwarded-Proto": "https", "Host": "fl.example.org"}
    assert "; Secure" in page.ask("GET", f"/?token={TOKEN}", HTML | tls)[1]["set-cookie"]
    # With a strict cookie a redirect would end at the login.
    linked = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    status, headers, text = page.ask("GET", f"/?token={TOKEN}", HTML | linked)
    assert (status, "set-cookie" in headers, 'content="0;url=/"' in text) == (200, True, True)


@pytest.mark.parametrize(
    "change",
    [
        lambda cookie: cookie.replace("=read.", "=all."),
        lambda cookie: cookie[:-1] + ("0" if cookie[-1] != "0" else "1"),
        lambda cookie: cookie.partition("=")[0] + "=all..",
        lambda cookie: cookie.partition("=")[0] + "=",
    ],
)
def test_a_cookie_cannot_be_made_up(page: Served, change: Any) -> None:
    forged = change(page.login(READ)["Cookie"])

    assert page.ask("GET", "/api/v1/runs", {"Cookie": forged})[0] == 401


def test_without_a_read_token_no_session_of_one_is_valid() -> None:
    one, other = Access(TOKEN), Access(TOKEN)
    session = other.new_session("read")
    assert one.visitor(Headers({"cookie": f"{one.cookie}={session}"})).role == ""
    assert one.role_of("") == ""


def test_a_read_token_reads_and_does_nothing(page: Served, store: Store, run: str) -> None:
    name = "lawful"
    before = store.control.runs.names()
    csrf = page.ask("GET", "/", HTML | ALL)[2].partition('name="csrf" content="')[2][:64]
    for headers in (READER, page.login(READ) | {"X-CSRF-Token": csrf}):
        for path in (
            "/api/v1/runs",
            f"/api/v1/runs/{name}/history.csv",
            "/api/v1/clients",
            "/metrics",
        ):
            assert page.ask("GET", path, headers)[0] == 200, path
        refused = [
            ("POST", "/api/v1/runs", '{"config": "demo"}'),
            ("POST", f"/api/v1/runs/{name}/cancel", "{}"),
            ("POST", f"/api/v1/runs/{name}/resume", "{}"),
            ("POST", "/training", f"config=demo&csrf={csrf}"),
            ("GET", "/training", None),
            ("GET", f"/api/v1/runs/{name}/model.safetensors", None),
            ("GET", f"/api/v1/runs/{name}/model.safetensors?version=0", None),
            ("DELETE", f"/api/v1/runs/{name}", None),
        ]
        for method, path, body in refused:
            sent = headers | (
                {"Content-Type": "application/json"} if path.startswith("/api") else {}
            )
            status, _, text = page.ask(method, path, sent, body)
            assert (status, "may only read" in text) == (403, True), (method, path, status, text)
    assert store.control.runs.names() == before
    assert 'name="may-change" content="no"' in page.ask("GET", "/", HTML | READER)[2]
    assert "may only read" not in page.ask("GET", f"/api/v1/runs/{name}/model.safetensors", ALL)[2]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {
            "Sec-Fetch-Site": "cross-site",
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Dest": "document",
        },
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Referer": "http://evil.example/"},
    ],
)
@pytest.mark.parametrize("token", [TOKEN, ""])
def test_another_sites_page_has_nothing_exported_or_streamed(
    headers: dict[str, str], token: str, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    """With the cookie of who looks at it, or where none is needed: `<img src=http://127.0.0.1:5000/...>`."""
    connection = Connection(lambda: Store.open(*redis_urls, tmp_path), tmp_path)
    page = Served(server.build(connection, Configs(None), Access(token)))
    try:
        sent = headers | HTML | (page.login(TOKEN) if token else {})
        for path in ("runs/a/model.safetensors", "runs/a/history.csv", "stream", "runs"):
            status, _, text = page.ask("GET", f"/api/v1/{path}", sent)
            assert (status, json.loads(text)["error"]) == (403, "Refused"), path
        assert page.ask("GET", "/metrics", sent)[0] == 403
        image = headers.get("Sec-Fetch-Dest") == "image"
        # A link to the page is no attack: it shows what is there.
        is_link = not image and "Origin" not in headers
        assert page.ask("GET", "/", sent)[0] == (200 if is_link else 403)
    finally:
        page.close()


def test_wrong_tokens_are_slowed_down_and_the_right_one_is_not(page: Served) -> None:
    """By the form, the link and the header alike, from one address; another address is as before."""
    attacker = {"X-Forwarded-For": "spoofed, 203.0.113.9"}
    ways: list[tuple[str, str, dict[str, str], str | None]] = [
        ("POST", "/login", HTML, "token=guess"),
        ("GET", "/?token=guess", HTML, None),
        ("GET", "/api/v1/runs", {"Authorization": "Bearer guess"}, None),
    ]
    statuses = []
    for number in range(limits.FREE + 3):
        method, path, headers, body = ways[number % 3]
        spoofed = {"X-Forwarded-For": f"spoofed-{number}, 203.0.113.9"}
        status, answered, _ = page.ask(method, path, headers | spoofed, body)
        statuses.append(status)
        assert ("retry-after" in answered) == (status == 429)
    assert set(statuses[: limits.FREE]) == {403, 401}
    assert set(statuses[limits.FREE :]) == {429}
    assert page.ask("POST", "/login", HTML | attacker, f"token={TOKEN}")[0] == 303
    assert page.ask("GET", "/api/v1/runs", ALL | attacker)[0] == 200
    assert (
        page.ask("POST", "/login", HTML | {"X-Forwarded-For": "203.0.113.7"}, "token=x")[0] == 403
    )


def test_pauses_grow_and_memory_does_not() -> None:
    now, slept = [0.0], list[float]()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def attack(logins: limits.Logins, addresses: int, count: int) -> list[int]:
        return [await logins.wrong(f"a{number % addresses}") for number in range(count)]

    one = limits.Logins(lambda: now[0], sleep)
    pauses = asyncio.run(attack(one, 1, 20))
    assert pauses[: limits.FREE] == [0] * limits.FREE
    assert pauses[limits.FREE :] == sorted(pauses[limits.FREE :])
    assert pauses[-1] == limits.MAX_PAUSE_S
    assert max(slept) == limits.MAX_HOLD_S
    now[0] += limits.FORGOTTEN_S
    assert asyncio.run(attack(one, 1, 1)) == [0]
    many = limits.Logins(lambda: now[0], sleep)
    pauses = asyncio.run(attack(many, 10**9, 3000))
    assert pauses[limits.FREE_IN_TOTAL - 1] == 0
    assert pauses[-1] == limits.MAX_PAUSE_S
    assert len(many._by_address) <= 1000


def test_open_pages_are_limited_for_each_session_and_in_all(
    page: Served,
) -> None:
    mine, other = page.login(TOKEN), page.login(TOKEN)
    held = [page.stream(mine) for _ in range(limits.STREAMS_OF_ONE)]
    assert {stream.status for stream in held} == {200}
    refused = page.stream(mine)
    assert refused.status == 429
    assert refused.getheader("Retry-After")
    assert "close one" in json.loads(refused.read())["message"]
    held.append(page.stream(other))
    assert held[-1].status == 200
    assert page.ask("GET", "/api/v1/runs", mine)[0] == 200
    held.pop(0).close()

    def opened() -> bool:
        again = page.stream(mine)
        held.append(again)
        return again.status == 200

    wait_for("a page that was closed to count no more", opened)
    for stream in held:
        stream.close()


def test_all_open_pages_together_are_limited() -> None:
    streams = limits.Streams(at_most=3, of_one=2)
    for who in ("a", "a", "b"):
        assert streams.refusal(who) is None
        streams.enter(who)
    assert streams.refusal("a") == (429, "2 pages of this session are open; close one")
    refused = streams.refusal("c")
    assert refused is not None
    assert refused[0] == 503
    streams.leave("a")
    assert streams.refusal("c") is None


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        (["--no-token", "--allow-host", "fl.example.org"], {}, "cannot be used with --allow-host"),
        (["--no-token", "--host", "0.0.0.0"], {}, "cannot be used with --host"),
        (["--no-token"], {"FLQ_WEB_TOKEN": "x" * 30}, "cannot be used with FLQ_WEB_TOKEN"),
        (["--no-token", "--read-token-file", "good"], {}, "cannot be used with --read-token-file"),
        (["--token-file", "open"], {}, "chmod 600"),
        (["--token-file", "group"], {}, "chmod 600"),
        (["--token-file", "short"], {}, "needed are 20 or more"),
        (["--token-file", "letters"], {}, "not of ASCII letters"),
        (["--token-file", "none"], {}, "cannot be read"),
        (["--token-file", "/dev/null"], {}, "/dev/null is no file"),
        (["--token-file", "good", "--read-token-file", "good"], {}, "the same token"),
        ([], {"FLQ_WEB_TOKEN": "a"}, "needed are 20 or more"),
    ],
)
def test_a_page_is_not_opened_wider_than_its_options(
    options: list[str], environment: dict[str, str], words: str, tmp_path: Path
) -> None:
    for name, mode, text in (
        ("open", 0o644, "x" * 30),
        ("group", 0o640, "x" * 30),
        ("short", 0o600, "x" * 19),
        ("letters", 0o600, "x" * 30 + " y"),
        ("good", 0o600, "x" * 30),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    known = {path.name for path in tmp_path.iterdir()} | {"none"}
    given = [str(tmp_path / word) if word in known else word for word in options]
    found = CliRunner(env={"FLQ_WEB_TOKEN": None, **environment}).invoke(
        command, [*given, "--port", "0", "--state-dir", str(tmp_path / "state")]
    )
    assert isinstance(found.exception, ConfigError), found.output
    assert words in str(found.exception)
    assert "x" * 19 not in str(found.exception)


class Command:
    """`fl-queue web` in a process of its own, without a Redis."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        line = [sys.executable, "-m", "fl_queue", "web", "--port", "0", *options]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FLQ_")}
        self.process = subprocess.Popen(
            [*line, "--state-dir", str(folder / "state")],
            stdout=subprocess.PIPE, text=True, env=kept | environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.stdout = self.process.stdout

    def close(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


def test_the_command_prints_two_links_once_and_serves_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "page.sock"
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(str(path))
    left_over.close()
    on_loopback, on_socket = (
        Command(tmp_path),
        Command(tmp_path, "--uds", str(path), "--uds-mode", "0660"),
    )
    try:
        link, read = on_loopback.stdout.readline().strip(), on_loopback.stdout.readline().strip()
        assert link.startswith("http://127.0.0.1:")
        assert read.startswith("read only: http://127.0.0.1:")
        tokens = {line.rpartition("/?token=")[2] for line in (link, read)}
        assert {len(token) for token in tokens} == {43}
        assert len(tokens) == 2
        assert on_socket.stdout.readline().strip() == f"unix:{path}"
        token = on_socket.stdout.readline().split()[-1]
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        for sent, status in ((f"Bearer {token}", b"503"), ("Bearer guess", b"401")):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                text = (
                    f"GET /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: {sent}\r\n\r\n"
                )
                client.sendall(text.encode())
                assert client.recv(100).split()[1] == status
    finally:
        assert on_socket.close() == 0
        assert on_loopback.close() == 0
    assert not path.exists()


def test_a_file_in_the_way_of_a_socket_stays(tmp_path: Path) -> None:
    kept = tmp_path / "notes"
    kept.write_text("mine")
    living = server._bound_to_path(tmp_path / "living", 0o600)
    for path in (kept, tmp_path / "living"):
        with pytest.raises(ConfigError, match="--uds"):
            server._bound_to_path(path, 0o600)
    assert kept.read_text() == "mine"
    assert stat.S_IMODE((tmp_path / "living").stat().st_mode) == 0o600
    living.close()


class _Raced(type(Path())):  # type: ignore[misc]
    """A path in a folder that others write to, one of whom is quick: it is a link by the time of a chmod."""

    victim: Path

    def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        os.unlink(self)
        os.symlink(self.victim, self)
        os.chmod(self, mode)


def test_a_socket_is_born_with_its_mode(tmp_path: Path) -> None:
    secret = tmp_path / "operator.key"
    secret.touch(0o600)
    path = _Raced(tmp_path / "page.sock")
    path.victim = secret
    umask = os.umask(0o077)
    try:
        with server._bound(server.ServerSettings(uds=path, uds_mode=0o660)):
            assert stat.S_IMODE(path.lstat().st_mode) == 0o660
            path.unlink()
            path.write_text("another process's by now")
        assert path.exists()
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
