"""`fl-queue partition`: what each client gets, as a table, JSON and a picture; bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fl_queue.config.data_section import DataSection
from fl_queue.config.run_config import RunConfig
from fl_queue.data.partition import partition_indices
from fl_queue.errors import ConfigError, FLQueueError
from fl_queue.experiments import partition_preview
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task

OWN = """
import numpy as np
from fl_queue.tasks import Task

class Own(Task):
    def build_model(self): ...
    def client_data(self, context):
        print("words of a task's own")
        labels = np.arange(60) % 3
        if self.options["how"] == "fails":
            raise ValueError("no such disk")
        if self.options["how"] == "natural":
            self.split(labels, context, np.arange(60) // 6)
        return None
"""


def fl_queue(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fl_queue", "partition", *arguments],
        capture_output=True, text=True, timeout=120, cwd=cwd, check=False,
    )  # fmt: skip


def config_of(**sections: dict[str, object]) -> RunConfig:
    return RunConfig.from_dict(sections)


def test_the_command_shows_what_the_clients_get(tmp_path: Path) -> None:
    plot = tmp_path / "shares.png"
    done = fl_queue(
        "demo", "--set", "data.partition=shards", "--clients", "5", "-o", str(plot), "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    config = config_of(data={"partition": "shards"})
    task = load_task("mnist-2nn", config)
    for portion in found["clients"]:
        data = task.client_data(
            ClientContext.of(
                config, client="a", run="r", round_number=1, share=portion["share"], shares=5
            )
        )
        targets = np.concatenate([data.train.tensors[1], data.validation.tensors[1]])
        assert np.bincount(targets, minlength=10).tolist() == portion["counts"]
    assert (found["left_over"], sum(found["counts"])) == (0, 10_000)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_numbers_of_a_portion() -> None:
    labels = np.array([3] * 6 + [7] * 2)
    one = partition_preview._mix(
        "iid", labels, [np.array([6, 7]), np.array([0, 1, 2, 6])], ["sim-1"]
    )
    first, second = one.portions
    assert (first.client, first.examples, first.counts, first.labels) == ("sim-1", 2, (0, 2), 1)
    assert (first.entropy, first.distance) == (0.0, 0.75)
    assert second.entropy == pytest.approx(0.8112781, abs=1e-6)
    assert (second.distance, second.client) == (0.0, "")
    assert partition_preview.summary(one)["examples"] == {
        "least": 2.0, "10%": 2.2, "median": 3.0, "90%": 3.8, "most": 4.0, "mean": 3.0,
    }  # fmt: skip


def test_many_clients_are_summarised_and_drawn(tmp_path: Path) -> None:
    labels = np.arange(6000) % 30
    many = partition_preview._mix(
        "iid", labels, partition_indices(DataSection(), labels, 1000, 0), []
    )
    assert partition_preview.table(many).row_count == 4
    few = partition_preview._mix("iid", labels, partition_indices(DataSection(), labels, 40, 0), [])
    assert partition_preview.table(few).row_count == 40
    partition_preview.plot(tmp_path / "many.png", many, "many")
    assert (tmp_path / "many.png").stat().st_size > 1000


def test_an_own_task_is_read_with_its_owners_or_refused_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)

    def found(how: str) -> partition_preview.PartitionPreview:
        config = config_of(
            run={"task": "own:Own"}, data={"partition": "natural", "shares": 10}, task={"how": how}
        )
        return partition_preview.preview_partition(config)

    assert [portion.examples for portion in found("natural").portions] == [6] * 10
    with pytest.raises(FLQueueError, match="no such disk"):
        found("fails")
    with pytest.raises(ConfigError, match=r"does not call self\.split"):
        found("nothing")


def test_the_number_of_clients_is_given_once() -> None:
    with pytest.raises(ConfigError, match="--clients") as caught:
        partition_preview.preview_partition(config_of())
    assert caught.value.field == "data.shares"
    with pytest.raises(ConfigError, match="leave it out") as caught:
        partition_preview.preview_partition(config_of(data={"shares": 4}), clients=5)
    assert caught.value.field == "--clients"
