"""Commands for models, at a run of an analysis: one line that names the command to use instead."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from starlette.testclient import TestClient

from fl_queue import Run
from fl_queue.cli import cli
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.errors import ConfigError, RunStateError
from fl_queue.experiments import launching, sweeps
from fl_queue.protocol.events import RunCompleted
from fl_queue.protocol.records import Purpose
from fl_queue.protocol.state import RunPhase
from fl_queue.store import RunState, Store, keyspace
from fl_queue.web import view_model
from fl_queue.web.access import Access
from fl_queue.web.connection import Connection
from fl_queue.web.launch import Configs
from fl_queue.web.server import build
from tests.support.recorded_rounds import add_rounds, record

TASKS = {
    "survey": {"run": {"task": "statistics"}, "task": {"file": "t.csv", "numbers": ["age"]}},
    "fit": {
        "run": {"task": "regression"},
        "task": {"file": "t.csv", "family": "linear", "target": "y", "features": "age"},
    },
}
LINES = {
    "statistics": 'file = "t.csv"\nnumbers = ["age"]\n',
    "regression": 'file = "t.csv"\nfamily = "linear"\ntarget = "y"\nfeatures = "age"\n',
}
SENTENCE = "is an analysis of tables; see `fl-queue result asked`"


@pytest.fixture(params=sorted(TASKS))
def config(request: pytest.FixtureRequest) -> RunConfig:
    """Of an analysis."""
    return RunConfig.from_dict(TASKS[request.param])


@pytest.fixture
def state(store: Store, config: RunConfig) -> RunState:
    """A run of it, ended after a step."""
    made = runs.start_run(store, "asked", config, 1)
    add_rounds(store, made.run_id, record(1, 0, purpose=Purpose.sums, validation={}))
    assert runs.set_state(store, made, RunPhase.completed, "", RunCompleted)
    return runs.find_run(store, made.run_id)


def command(urls: tuple[str, str], *words: str) -> Result:
    """Run a command on the servers of the test."""
    return CliRunner().invoke(cli, [*words, "--redis-url", urls[0]])


def check_refusal(done: Result) -> None:
    """It is the error of one line that names the result."""
    assert isinstance(done.exception, RunStateError)
    assert str(done.exception) == f"run asked: {SENTENCE}"


@pytest.mark.parametrize(
    "words",
    [
        ("plot", "asked", "-o", "curve.png"),
        ("metrics", "asked", "numbers", "--to", "csv"),
        ("compare", "asked"),
        ("evaluate", "asked"),
    ],
    ids=lambda words: words[0],
)
def test_commands_for_models_refuse_it(
    state: RunState, redis_urls: tuple[str, str], tmp_path: Path, words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = command(redis_urls, *words)
    assert done.stdout == ""
    check_refusal(done)
    assert sorted(tmp_path.iterdir()) == before


def test_its_history_has_no_loss_and_no_accuracy(
    state: RunState, redis_urls: tuple[str, str]
) -> None:
    done = command(redis_urls, "history", "asked")
    assert done.exit_code == 0
    assert "Version" in done.stdout
    assert "Seconds" in done.stdout
    assert "Loss" not in done.stdout
    assert "Accuracy" not in done.stdout


def test_resume_and_best_name_the_result(
    store: Store, state: RunState, redis_urls: tuple[str, str]
) -> None:
    done = command(redis_urls, "resume", "asked")
    assert isinstance(done.exception, RunStateError)
    assert str(done.exception).endswith("; see `fl-queue result asked`")
    check_refusal(command(redis_urls, "tag", "asked", "best", "first"))


def test_it_does_not_go_back_whether_or_not_the_version_is_there(
    store: Store, state: RunState, config: RunConfig
) -> None:
    with pytest.raises(RunStateError, match="does not go back to an earlier step"):
        launching.begin(store, "asked", config, None, from_version=7)


def test_going_on_adds_no_steps(store: Store, state: RunState, config: RunConfig) -> None:
    """The event has as many rounds as the run still wants."""
    runs.start_run(store, "asked", config, 5)
    stream = store.control.events.newest(keyspace.events(state.run_id), 1)
    [(_, event)] = stream
    assert (event["event"], event["rounds"]) == ("run_continued", state.rounds_wanted)


def test_the_python_api_names_result(store: Store, state: RunState, tmp_path: Path) -> None:
    run = Run(store, state.run_id, tmp_path, ExitStack())
    for refused in (
        lambda: run.plot(tmp_path / "curve.png"),
        lambda: run.write_metrics("csv", tmp_path / "numbers"),
        run.model,
    ):
        with pytest.raises(RunStateError, match=SENTENCE):
            refused()
    with pytest.raises(RunStateError, match="has no result yet"):
        run.result()
    assert not list(tmp_path.glob("numbers"))


@pytest.mark.parametrize("task", ["statistics", "regression"])
def test_no_sweep_of_an_analysis(tmp_path: Path, task: str) -> None:
    path = tmp_path / "asked.toml"
    path.write_text(f'[run]\ntask = "{task}"\n[task]\n{LINES[task]}')
    with pytest.raises(ConfigError, match=f"{task} trains no model; see `fl-queue {task} --help`"):
        sweeps.members(str(path), "asked", 2, ())


def test_the_page_shows_steps_and_no_curves(store: Store, config: RunConfig) -> None:
    store.control.leases.hold(keyspace.client_holder("a"), "t", 60, {})
    made = runs.start_run(store, "asked", replace(config, round=replace(config.round, cohort=1)), 1)
    lifecycle.advance(store, made.run_id)
    state = runs.find_run(store, made.run_id)
    first = store.control.rounds.newest_open(state)
    assert first is not None
    step = replace(first, purpose=Purpose.sums, number=1)
    most = state.rounds_wanted
    line = f"Run asked, step 1 of at most {most}: 0 of 1 updates in, quorum {first.quorum}"
    assert view_model.headline(store, state, step, "") == line
    assert view_model.parts(store, "asked")["status"]["is_analysis"]
    runs.start_run(store, "trained", loading.load("mnist-3v7"), 1)
    assert not view_model.parts(store, "trained")["status"]["is_analysis"]


@pytest.mark.parametrize("path", ["result", "result.txt"])
def test_a_result_is_for_the_full_token(
    store: Store, state: RunState, redis_urls: tuple[str, str], tmp_path: Path, path: str
) -> None:
    connection = Connection(lambda: Store.open(*redis_urls, tmp_path), tmp_path)
    access = Access("f" * 20, frozenset({"testserver"}), read_token="r" * 20)
    with TestClient(build(connection, Configs(None), access)) as client:
        for token, status in (("r", 403), ("f", 409)):
            headers = {"Authorization": f"Bearer {token * 20}"}
            answer = client.get(f"/api/v1/runs/asked/{path}", headers=headers)
            assert answer.status_code == status, answer.text
