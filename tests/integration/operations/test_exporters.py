"""A run's numbers in other tools' files, read back by those tools."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import pytest

from fl_queue.protocol.events import RunCompleted

pytest.importorskip("tensorboard", reason="an extra")

from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fl_queue.cli import cli
from fl_queue.config import loading
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError, DataError
from fl_queue.reporting import curves, exporters
from fl_queue.store import RunState, Store, keyspace
from tests.support.recorded_rounds import abandoned, add_rounds, add_score, closing, record

#: Not imported here: that takes a second, in each process of the suite.
pytestmark = pytest.mark.skipif(find_spec("mlflow") is None, reason="an extra")


def closed(store: Store, run: str) -> None:
    store.control.redis.hset(keyspace.run(run), "state", "completed")
    store.control.events.add(run, RunCompleted(reason="", version=None))


@pytest.fixture
def run(store: Store) -> RunState:
    """Two rounds and an abandoned one, with validation, and a tested version."""
    state = runs.start_run(store, "exported", loading.load("mnist-3v7", environ={}), 3)
    add_rounds(
        store,
        state.run_id,
        record(1, 0, opened_at=1000.0, train={"num_examples": 4, "loss_sum": 2.0}),
        abandoned(2, 1, opened_at=2000.0),
        record(3, 1, opened_at=3000.0),
    )
    add_score(store, state.run_id, 1, 0.75)
    return state


def scalars(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Tag -> (step, value, wall time), as TensorBoard reads a folder."""
    read = EventAccumulator(str(folder))
    read.Reload()
    return {
        tag: [(event.step, event.value, event.wall_time) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def export(store: Store, state: RunState, kind: str, folder: Path) -> int:
    """As a new process would."""
    return exporters.export(store, state, exporters.open_sink(kind, folder, state.run_id))


def test_points_are_of_the_version_they_judge_and_have_its_time(
    store: Store, run: RunState
) -> None:
    numbers = exporters.numbers_of(store, run.run_id)
    found = {(point.curve, point.step): point for point in numbers.points}

    assert len(found) == len(numbers.points)
    assert found["test/accuracy", 1] == curves.Point("test/accuracy", 1, 0.75, 1012.34)
    assert found["validation/accuracy", 1].value == 0.8
    assert found["validation/accuracy", 0].at == 1000.0
    assert found["client/hospital-a/accuracy", 0].value == 0.7
    assert found["train/loss", 1] == curves.Point("train/loss", 1, 0.5, 1012.34)
    assert [found["round/committed", number].value for number in (1, 2, 3)] == [1, 0, 1]
    assert found["round/accepted", 2].value == 1


def test_virtual_clients_have_no_curves_of_their_own() -> None:
    one = record(1, 0, client_validation={"sim-001": {"accuracy": 0.1}})

    assert not [point for point in curves.points([one], {}) if point.curve.startswith("client/")]


def test_tensorboard_reads_every_point_once(store: Store, run: RunState, tmp_path: Path) -> None:
    written = export(store, run, "tensorboard", tmp_path)

    points = exporters.numbers_of(store, run.run_id).points
    assert written == len(points)
    read = scalars(tmp_path / run.run_id)
    assert sum(map(len, read.values())) == len(points)
    assert read["test/accuracy"] == [(1, 0.75, pytest.approx(1012.34))]
    assert [step for step, _, _ in read["round/seconds"]] == [1, 2, 3]

    before = [path.read_bytes() for path in (tmp_path / run.run_id).iterdir()]
    assert export(store, run, "tensorboard", tmp_path) == 0
    assert [path.read_bytes() for path in (tmp_path / run.run_id).iterdir()] == before


def test_tensorboard_file_of_a_killed_writer_is_gone_on_with(
    store: Store, run: RunState, tmp_path: Path
) -> None:
    export(store, run, "tensorboard", tmp_path)
    (file,) = (tmp_path / run.run_id).iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])

    assert export(store, run, "tensorboard", tmp_path) == 1
    assert file.read_bytes() == whole

    add_score(store, run.run_id, 2, 0.875)
    assert export(store, run, "tensorboard", tmp_path) == 1
    assert [value for _, value, _ in scalars(tmp_path / run.run_id)["test/accuracy"]] == [
        0.75,
        0.875,
    ]


def test_mlflow_has_one_run_with_every_point_once(
    store: Store, run: RunState, tmp_path: Path
) -> None:
    written = export(store, run, "mlflow", tmp_path)
    assert export(store, run, "mlflow", tmp_path) == 0
    add_score(store, run.run_id, 2, 0.875)
    assert export(store, run, "mlflow", tmp_path) == 1

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tmp_path.as_uri())
    experiment = client.get_experiment_by_name("fl-queue")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("exported", "RUNNING")
    history = client.get_metric_history(found.info.run_id, "test/accuracy")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.75), (2, 0.875)]
    assert history[0].timestamp == 1012340
    logged = [
        metric
        for name in found.data.metrics
        for metric in client.get_metric_history(found.info.run_id, name)
    ]
    assert len(logged) == written + 1

    closed(store, run.run_id)
    export(store, runs.find_run(store, "exported"), "mlflow", tmp_path)
    assert client.get_run(found.info.run_id).info.status == "FINISHED"


def test_csv_and_jsonl_have_the_rounds_and_the_points(
    store: Store, run: RunState, tmp_path: Path
) -> None:
    for kind in ("csv", "jsonl"):
        count = len(exporters.numbers_of(store, run.run_id).points)
        assert export(store, run, kind, tmp_path) == count
        assert export(store, run, kind, tmp_path) == 0

    folder = tmp_path / run.run_id
    with (folder / "rounds.csv").open() as file:
        assert [row["outcome"] for row in csv.DictReader(file)] == [
            "committed",
            "abandoned",
            "committed",
        ]
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [row["accuracy"] for row in rounds] == [0.75, None, None]
    points = [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
    assert points == [asdict(point) for point in exporters.numbers_of(store, run.run_id).points]


def test_following_writes_as_rounds_end_and_stops_with_the_run(
    store: Store, run: RunState, tmp_path: Path
) -> None:
    sink = exporters.open_sink("csv", tmp_path, run.run_id)
    counts: list[int] = []
    seen = threading.Semaphore(0)

    def watch() -> None:
        for count in exporters.follow(store, run, sink):
            counts.append(count)
            seen.release()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert seen.acquire(timeout=20)
    add_rounds(store, run.run_id, closing(4, 2, opened_at=4000.0))
    assert seen.acquire(timeout=20)
    add_score(store, run.run_id, 2, 0.875)
    assert seen.acquire(timeout=20)
    closed(store, run.run_id)
    watcher.join(20)

    assert not watcher.is_alive()
    assert counts[0] > 20
    assert all(counts[1:3])
    assert (tmp_path / run.run_id / "rounds.csv").read_text().count("0.875") == 1


def test_the_command_reports_what_was_new(
    store: Store, run: RunState, tmp_path: Path, redis_urls: tuple[str, str]
) -> None:
    where = ["--redis-url", redis_urls[0], "--blob-url", redis_urls[1]]
    closed(store, run.run_id)

    command = ["metrics", "exported", str(tmp_path), "--to", "csv", *where]
    assert "new numbers of exported" in CliRunner().invoke(cli, command).output
    followed = CliRunner().invoke(cli, [*command, "--follow"])
    assert (followed.exit_code, followed.output) == (0, "")


def test_bad_places_and_kinds_name_the_fix(store: Store, run: RunState, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.*name another folder"):
        exporters.open_sink("csv", tmp_path / "file", run.run_id)
    with pytest.raises(ConfigError, match="tensorboard, mlflow, csv, jsonl"):
        exporters.open_sink("excel", tmp_path, run.run_id)


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in [
        name for name in sys.modules if name.startswith("fl_queue.reporting.exporters.")
    ]:
        monkeypatch.delitem(sys.modules, module)
    needed = {
        "tensorboard": "tensorboard.summary.writer.record_writer",
        "mlflow": "mlflow.tracking",
    }
    for kind, module in needed.items():
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match=rf'pip install "\S+\[{kind}\]"'):
            exporters.open_sink(kind, tmp_path, "r")


def test_no_exporter_imports_torch() -> None:
    code = (
        "import sys, fl_queue.reporting.exporters.tensorboard, fl_queue.reporting.exporters.mlflow,"
        " fl_queue.reporting.exporters.prometheus; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
