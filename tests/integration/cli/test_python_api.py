"""Runs from Python, as a notebook has them: one simulation, looked at from all sides."""

from __future__ import annotations

import math
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from fl_queue import Run
from fl_queue.cli import cli
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import (
    ConfigError,
    DataError,
    RunFailed,
    RunStateError,
    StoreUnavailable,
    UnknownRun,
)
from fl_queue.reporting import model_card as cards
from fl_queue.store.embedded import server_pair
from tests.support.checkout import ROOT

SETTINGS = {
    "clients.kind": "simulation",
    "clients.count": 4,
    "clients.processes": 1,
    "run.evaluate_every": 0,
    "train.epochs": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def run(folder: Path, no_process_left: None) -> Iterator[Run]:
    """A run of two rounds that has been waited for; what it needs is still running."""
    with Run.start(
        "mnist-3v7", name="book", rounds=2, settings=SETTINGS, state_dir=folder, quiet=True
    ) as made:
        assert made.wait(quiet=True) is made
        yield made
    assert server_pair.running(folder) is None


def test_history_is_rows_and_curves_are_numbers(run: Run) -> None:
    assert (run.state.state, run.state.version) == ("completed", 2)
    rows = run.history()
    assert [(row["round"], row["version"], row["accepted"]) for row in rows] == [
        (1, 1, 4),
        (2, 2, 4),
    ]
    assert rows[-1]["accuracy"] > 0.8
    by_curve = {(point["curve"], point["step"]): point["value"] for point in run.curves()}
    assert by_curve["validation/accuracy", 2] == rows[-1]["accuracy"]
    events = [event["event"] for event in run.events()]
    assert (events[0], events[-1]) == ("run_created", "run_completed")


def test_pandas_takes_the_rows(run: Run) -> None:
    pandas = pytest.importorskip("pandas", reason="not needed by anything else")

    frame = pandas.DataFrame(run.history()).set_index("round")
    assert frame["seconds"].dtype == float
    wide = pandas.DataFrame(run.curves()).pivot(index="step", columns="curve", values="value")
    assert wide.loc[2, "validation/accuracy"] == frame.loc[2, "accuracy"]


def test_the_model_is_a_state_dict_that_the_task_loads(run: Run, tmp_path: Path) -> None:
    newest, first = run.model(), run.model(version=0)
    model = torch.nn.Linear(784, 1)
    model.load_state_dict(newest, strict=True)

    assert not torch.equal(newest["weight"], first["weight"])
    newest["weight"].zero_()  # It is the caller's own.
    assert run.model()["weight"].abs().sum() > 0
    assert run.export(tmp_path / "m.safetensors", best=True) in {
        row["digest"] for row in run.history()
    }
    assert set(load_file(tmp_path / "m.safetensors")) == set(newest)
    with pytest.raises(ConfigError, match="cannot be used with a version"):
        run.model(1, best=True)


def test_the_model_goes_elsewhere_with_its_card(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run.export(tmp_path / "m.pt") == run.history()[-1]["digest"]
    found = torch.load(tmp_path / "m.pt", weights_only=True)
    assert torch.equal(found["weight"], run.model()["weight"])

    card = tmp_path / "README.md"
    command = ["export", "book", "-o", str(tmp_path / "m.onnx"), "--card", str(card)]
    command += ["--state-dir", str(folder)]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)

    assert f"{card}: its model card" in done.output
    batch = torch.rand(3, 784)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    model = torch.nn.Linear(784, 1)
    model.load_state_dict(found)
    (computed,) = session.run(["output"], {"input": batch.numpy()})
    assert abs(computed - model(batch).detach().numpy()).max() < 1e-5
    text = card.read_text()
    row = run.history()[-1]
    weights = run.store.control.history.records(run.run_id)[0].weights
    for part in (
        "# book, version 2",
        'onnxruntime.InferenceSession("m.onnx")',
        "Classes: 0: 7, 1: 3",
        f"clients' validation, merged | {row['accuracy']:.4f}",
        f"4 clients took part, with {sum(weights.values())} training examples",
        f"| sim-1 | {weights['sim-1']} |",
        row["digest"],
        f"| torch | {torch.__version__} |",
        "The clients were simulated",
    ):
        assert part in text
    assert str(folder) not in text
    assert "redis" not in text
    (tmp_path / "NOTES.md").write_text("Mine.")
    facts = cards.gather(run.store, run.state, runs.current_config(run.store, run.run_id), 2, None)
    with pytest.raises(DataError, match="no model card; name another file"):
        cards.write(tmp_path / "NOTES.md", facts, "m.pt", "torch")
    assert (tmp_path / "NOTES.md").read_text() == "Mine."


def test_attaching_sees_the_same_and_leaves_it_running(run: Run, folder: Path) -> None:
    with Run.attach("book", state_dir=folder) as other:
        assert other.run_id == run.run_id
        assert other.history() == run.history()
        other.wait(quiet=True)
    assert run.state.state == "completed"
    with pytest.raises(UnknownRun, match="book"):
        Run.attach("absent", state_dir=folder)


def test_numbers_and_curves_are_written(run: Run, tmp_path: Path) -> None:
    assert run.write_metrics("csv", tmp_path) == len(run.curves())
    assert run.write_metrics("csv", tmp_path) == 0
    run.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_that_goes_on_is_waited_for_so_long_and_cancelled(run: Run, folder: Path) -> None:
    """Continued by 1,000,000 epochs a round."""
    endless = {**SETTINGS, "train.epochs": 1_000_000}
    with Run.start(
        "mnist-3v7", name="endless", settings=endless, state_dir=folder, quiet=True
    ) as other:
        with pytest.raises(TimeoutError, match="run endless is training"):
            other.wait(0.5, quiet=True)
        with pytest.raises(RunStateError, match="no version has been evaluated"):
            other.model(best=True)
        other.cancel()
        with pytest.raises(RunFailed, match="cancelled"):
            other.wait(quiet=True)
    # What the first one started serves on: the second needed nothing of its own.
    assert server_pair.running(folder) is not None
    assert run.state.version == 2


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        Run.start("demo", settings={"train.epoch": 3})
    with pytest.raises(ConfigError, match="whole number"):
        Run.start("demo", settings={"train.epochs": math.pi})
    with pytest.raises(StoreUnavailable, match="fl-queue redis"):
        Run.start("demo", state_dir=tmp_path)
    with pytest.raises(StoreUnavailable):
        Run.attach("demo", state_dir=tmp_path)


def test_the_package_imports_nothing_until_a_run_is_asked_for() -> None:
    code = (
        "import sys, fl_queue; early = set(sys.modules); fl_queue.Run;"
        "sys.exit(bool({'numpy', 'redis', 'rich'} & early) or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_draws_its_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = str(ROOT / "examples/curve.py")
    monkeypatch.setattr(sys, "argv", [example, str(tmp_path / "curve.png")])

    runpy.run_path(example, run_name="__main__")

    first, *_, model = capsys.readouterr().out.splitlines()
    assert first.startswith("1 1 0.")
    assert model == "{'bias': (1,), 'weight': (1, 784)}"
    assert (tmp_path / "curve.png").stat().st_size > 10_000
