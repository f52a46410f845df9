"""The page and its API, served by `fl-queue web` to real HTTP clients and a real browser."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_queue.coordinator.operations import controls, tagging
from fl_queue.coordinator.rounds import runs
from fl_queue.protocol.events import Healed
from fl_queue.store import Store, keyspace
from tests.support.commands import fl_queue
from tests.support.federation import Federation, kill, wait_for

CLIENTS = 2


class Web:
    """`fl-queue web` in a process of its own."""

    def __init__(self, federation: Federation, *options: str) -> None:
        command = [sys.executable, "-m", "fl_queue", "web", "--port", "0", *options]
        command += ["--state-dir", str(federation.redis.state_dir)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=federation.environment
        )
        assert self.process.stdout is not None
        self.link = self.process.stdout.readline().strip()
        self.url, _, self.token = self.link.partition("?token=")
        self.port = urllib.parse.urlsplit(self.url).port or 0
        self.bearer = {"Authorization": f"Bearer {self.token}"}
        visited = self.ask("GET", f"/?token={self.token}", Accept="text/html", Authorization="none")
        self.cookie = visited[1]["set-cookie"].split(";")[0]

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """(status, headers, text), with the token or a cookie of it; a body that is no text is sent as JSON."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if not {"Authorization", "Cookie"} & set(sent):
            sent |= self.bearer
        if body is not None and not isinstance(body, str):
            body, sent = json.dumps(body), {"Content-Type": "application/json"} | sent
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        text = answer.read().decode("latin-1")
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, text

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(15)


@pytest.fixture(scope="module")
def web(federation: Federation) -> Iterator[Web]:
    made = Web(federation)
    yield made
    made.close()


def test_a_plain_client_launches_and_reads_as_the_commands_do(
    web: Web, federation: Federation
) -> None:
    line = "Federated Learning server running. Status: IDLE\n"
    assert web.ask("GET", "/")[::2] == (200, line)
    assert web.ask("GET", "/training")[2].startswith("POST here")

    form = "config=mnist-3v7&run=plain&rounds=2&epochs=1&learning_rate=0.1&batch_size=20&train_per_class=20, 30"
    status, _, text = web.ask("POST", "/training", form)

    assert status == 201, text
    run = federation.store.control.runs.id_of("plain")
    assert run is not None
    assert federation.finish(run).state == "completed"
    assert web.ask("POST", "/training", "config=mnist-3v7&epochs=none")[0] == 422
    for path, words in (
        ("/runs/plain", ("status", "plain")),
        ("/runs/plain/history", ("history", "plain")),
        ("/runs/plain/rounds/1/clients/site-1", ("inspect", "plain", "1", "site-1")),
    ):
        status, _, text = web.ask("GET", f"/api/v1{path}")
        assert (status, json.loads(text)) == (200, command(federation, *words))
    events = json.loads(web.ask("GET", "/api/v1/runs/plain/events")[2])
    assert events[0]["event"] == "run_created"
    csv = web.ask("GET", "/api/v1/runs/plain/history.csv")
    assert csv[2].startswith("round,outcome,")
    model = web.ask("GET", "/api/v1/runs/plain/model.safetensors?version=2")
    assert (model[0], 'filename="plain-2.safetensors"' in model[1]["content-disposition"]) == (
        200,
        True,
    )
    assert web.ask("GET", "/api/v1/runs/plain/model.safetensors?version=9")[0] == 404
    assert web.ask("GET", "/api/v1/runs/none")[0] == 404
    assert web.ask("POST", "/api/v1/runs/plain/cancel")[0] == 409
    metrics = web.ask("GET", "/metrics")
    assert metrics[1]["content-type"].startswith("text/plain; version=0.0.4")
    assert 'flq_rounds_total{outcome="committed",run="plain"} 2.0' in metrics[2].splitlines()


def command(federation: Federation, *words: str) -> Any:
    """What a command writes with --json."""
    line = [*words, "--json", "--state-dir", str(federation.redis.state_dir)]
    done = fl_queue(*line, environment=os.environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Accept": "text/html"}, 403),  # A browser without the CSRF token.
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Length": "9999999"}, 413),
    ],
)
def test_another_site_changes_nothing(web: Web, headers: dict[str, str], status: int) -> None:
    answer = web.ask("POST", "/api/v1/runs", {"config": "demo"}, Cookie=web.cookie, **headers)

    assert answer[0] == status, answer
    assert json.loads(answer[2])["error"] == "Refused"
    assert "default-src 'none'" in answer[1]["content-security-policy"]


def test_a_form_of_another_site_launches_nothing(web: Web, federation: Federation) -> None:
    before = federation.store.control.runs.names()

    browser = {"Cookie": web.cookie}
    assert web.ask("POST", "/training", "config=demo", Accept="text/html", **browser)[0] == 403
    elsewhere = {"Origin": "http://evil.example", **browser}
    assert web.ask("POST", "/training", "config=demo", **elsewhere)[0] == 403
    assert federation.store.control.runs.names() == before


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"config": "../../etc/passwd"}, "config"),
        ({"config": "demo", "set": ["redis.url=redis://elsewhere"]}, "redis.url"),
        ({"config": "demo", "set": ["model.initial=/etc/passwd"]}, "model.initial"),
        ({"config": "demo", "rounds": 0}, "rounds"),
        ({"config": "demo", "run": "<b>"}, "--run"),
        ({"config": "demo", "set": ["train.epochs=0"]}, "train.epochs"),
    ],
)
def test_bad_input_names_its_field(web: Web, body: dict[str, Any], field: str) -> None:
    status, _, text = web.ask("POST", "/api/v1/runs", body)

    assert (status, json.loads(text)["field"]) == (422, field)


def test_other_machines_need_the_token(federation: Federation) -> None:
    web = Web(federation, "--host", "0.0.0.0")
    try:
        token, unknown = web.token, {"Authorization": "none"}
        html = {"Accept": "text/html", **unknown}
        assert web.ask("GET", "/api/v1/runs", **unknown)[0] == 401
        assert web.ask("GET", "/", **html)[1]["location"] == "/login"
        assert web.ask("GET", "/api/v1/runs")[0] == 200
        assert web.ask("POST", "/login", "token=guess")[0] == 403
        status, headers, _ = web.ask("POST", "/login", f"token={token}")
        cookie = headers["set-cookie"].split(";")[0]
        assert (status, token in cookie) == (303, False)
        assert {"HttpOnly", "SameSite=strict"} <= set(headers["set-cookie"].split("; "))
        assert web.ask("GET", "/", Cookie=cookie, Accept="text/html")[0] == 200
    finally:
        web.close()


def test_the_page_in_a_browser(web: Web, federation: Federation, tmp_path: Path) -> None:
    """Launch by the form, watch the curve grow, a client die, cancel, branch, a wrong input, hostile names."""
    browser = os.environ.get("FLQ_TEST_CHROMIUM") or shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium on PATH; `apt-get install chromium`, or set FLQ_TEST_CHROMIUM")
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    problems: list[str] = []
    hostile = "<img src=x onerror=alert(1)>"
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser)
        page = chromium.new_page()
        page.on(
            "console",
            lambda message: problems.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(web.link)
        assert page.url == web.url
        page.get_by_role("link", name="Launch training").click()
        page.wait_for_url("**/training")
        page.select_option("#config", "mnist-3v7")
        page.fill("#run", "seen")
        page.fill("#epochs", "0")
        page.get_by_role("button", name="Launch").press("Enter")
        assert "train.epochs" in page.inner_text("#error")
        problems.clear()  # The 422 is shown on the console, too.
        page.fill("#epochs", "1")
        page.fill("#more", "train.finetune_epochs=1")
        page.fill("#rounds", "500")
        page.get_by_role("button", name="Launch").press("Enter")
        page.wait_for_url("**/?run=seen")
        page.wait_for_selector("#accuracy canvas", timeout=30_000)
        page.wait_for_selector("#accuracy .u-label:has-text('fine-tuned')", timeout=30_000)
        page.wait_for_selector("#rounds tbody tr:nth-child(4)")
        second = chromium.new_page(viewport={"width": 360, "height": 740})
        second.goto(f"{web.link}&run=seen")
        second.wait_for_selector("#rounds tbody tr")
        assert second.evaluate("document.documentElement.scrollWidth <= innerWidth")
        worker, supervisor = federation.worker_pid("site-2"), federation.processes.pop("site-2")
        kill(supervisor.pid)
        supervisor.wait()
        kill(worker)
        page.wait_for_selector("#clients tr.bad:has-text('site-2')", timeout=30_000)
        run = federation.store.control.runs.id_of("seen") or ""
        federation.store.control.events.add(run, Healed(round=1, what=hostile))
        page.wait_for_selector(f"#log li:has-text('{hostile}')")
        page.click("#cancel")
        page.get_by_role("button", name="Yes").press("Enter")
        second.wait_for_selector("#headline:has-text('cancelled')")
        assert second.locator("#facts > *").count() == 0
        expected = begin_tag_and_branch(federation.store, "seen", hostile)
        for text in expected[1::2]:
            second.locator("#facts dd", has_text=text).wait_for()
        assert second.locator("#facts > *").all_inner_texts() == expected
        assert second.evaluate("document.documentElement.scrollWidth <= innerWidth")
        chromium.close()
    assert problems == []
    federation.start("site-2")
    wait_for(
        "site-2", lambda: federation.store.control.leases.get(keyspace.client_holder("site-2"))
    )


def begin_tag_and_branch(store: Store, name: str, file: str) -> list[str]:
    """
    Tag a cancelled run, have it go on from an older version, and record a file with this name as its beginning.

    Returns:
        Names and texts that the page shows of it.
    """
    state = runs.find_run(store, name)
    manifest, newest = store.control.versions.manifest(state.run_id), state.version
    assert manifest is not None
    assert newest is not None
    tagging.tag(store, name, str(newest), "approved")
    config = runs.current_config(store, state.run_id)
    runs.start_run(store, name, config, 500, from_version=newest - 1)
    controls.cancel(store, name)
    first, *others = manifest.names
    beginning = {
        "tensors": [[each, "float32", [1]] for each in [*others, "other"]],
        "source": {"file": f"{file}.pt", "digest": "ab" * 32},
        "partial": {"fresh": [], "left_out": [first]},
    }
    store.control.redis.hset(keyspace.run(state.run_id), "initial", json.dumps(beginning))
    counts = f"{len(others)} loaded, 1 fresh ({first}), 1 ignored (other)"
    again = f"version {newest + 1} is version {newest - 1} again"
    return [
        *("Initial weights", f"{file}.pt (abababababab), partial: {counts}"),
        *("Tags", f"approved = {newest}"),
        *("Branch", f"{again} (goes on from version {newest - 1})"),
    ]


def test_a_page_receives_everything_at_once(web: Web) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=20)
    connection.request("GET", "/api/v1/stream", headers=web.bearer)
    answer = connection.getresponse()
    lines = [answer.readline().decode() for _ in range(40)]
    connection.close()

    events = re.findall(r"event: (\w+)", "".join(lines))
    assert events[:1] == ["hello"]
    assert {"status", "runs", "clients", "history"} <= set(events)


class Stream:
    """An open page's messages."""

    def __init__(self, web: Web, run: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=60)
        self.connection.request("GET", f"/api/v1/stream?run={run}", headers=web.bearer)
        self.answer = self.connection.getresponse()

    def until(self, words: str) -> None:
        """Read on to a message that has these words; the socket's timeout fails the test."""
        while words not in self.answer.readline().decode():
            pass


def test_the_page_and_its_stream_outlive_a_restart_of_both_servers(
    web: Web, federation: Federation
) -> None:
    run = federation.finish(federation.begin("outlives", "round.cohort=2")).run_id
    stream = Stream(web, "outlives")
    stream.until("event: log")
    for role in ("control", "data"):
        federation.redis.kill(role)
    stream.until("Trying again")
    assert web.ask("GET", "/")[0] == 503
    assert web.ask("GET", "/api/v1/runs")[0] == 503
    assert web.ask("GET", "/", Accept="text/html")[0] == 200
    assert web.ask("GET", "/metrics")[2].splitlines()[-1] == "flq_up 0.0"

    for role in ("control", "data"):
        federation.redis.restart(role)

    stream.until('data: {"text":""}')
    federation.store.control.events.add(run, Healed(round=1, what="is back"))
    stream.until("is back")
    stream.connection.close()
    assert web.ask("GET", "/api/v1/runs/outlives")[0] == 200
    assert "flq_up 1.0" in web.ask("GET", "/metrics")[2].splitlines()
