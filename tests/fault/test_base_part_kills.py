"""Processes killed while a run's base part is written, published and fetched, and its loss from the data server."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_queue.models.checkpoint import file_name
from fl_queue.protocol.base_part import BasePart
from fl_queue.store import keyspace
from fl_queue.store.embedded.server_pair import start
from tests.fault.test_kill_points import BASE_PART
from tests.support.federation import Federation, wait_for
from tests.support.server_binaries import chosen_server

#: Sites build other frozen values than the evaluator, which makes version 0: they have to fetch its base part.
TASK = """
import os
import torch
from torch import nn
from fl_queue.tasks.mnist import ThreesAndSevens

class Frozen(ThreesAndSevens):
    def build_model(self):
        model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 1))
        model[0].to(torch.bfloat16).requires_grad_(False)
        if os.environ.get("FLQ_SITE_WORKER", "").startswith("site"):
            with torch.no_grad():
                model[0].weight.add_(1)
        return Joined(model)

class Joined(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers
    def forward(self, pixels):
        hidden = self.layers[0](pixels.to(torch.bfloat16)).float()
        return self.layers[2](self.layers[1](hidden))
"""
RUN = ("run.task=frozen:Frozen", "run.rounds=2", "round.cohort=2", "train.epochs=1")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("base-part")
    (folder / "frozen.py").write_text(TASK)
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(redis, folder, 2, {"PYTHONPATH": str(folder)}, "frozen:Frozen")
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def calm(tuned: Federation) -> list[str]:
    """Digests of the undisturbed run; what it fetched is forgotten."""
    found = tuned.digests_of("frozen", *RUN)
    shutil.rmtree(tuned.redis.state_dir / "cache", ignore_errors=True)
    return found


def base_of(federation: Federation, run: str) -> BasePart:
    manifest = federation.store.control.versions.manifest(run)
    assert manifest is not None
    assert manifest.base is not None
    return manifest.base


def is_published(federation: Federation, run: str) -> bool:
    base = base_of(federation, run)
    chunk = keyspace.chunk(keyspace.model_blob(run, base.digest), 0)
    redis = federation.store.data.redis
    # -1: it does not expire, even if the aggregator was killed at once after the commit.
    return bool(redis.strlen(chunk) == base.nbytes and redis.ttl(chunk) == -1)


def written(federation: Federation, run: str) -> list[str]:
    folder: Path = federation.redis.state_dir / "checkpoints" / run
    return [path.name for path in folder.glob("base-*")]


@pytest.mark.parametrize("point", BASE_PART)
def test_a_process_killed_at(tuned: Federation, calm: list[str], point: str) -> None:
    fired = tuned.arm(point, "kill", "site-1_" if point == "base.fetched" else "aggregator-")
    run = tuned.begin("frozen", *RUN)
    wait_for("a site or an aggregator", lambda: fired.exists() or not is_open(tuned, run))

    assert tuned.finish(run).state == "completed"
    base = base_of(tuned, run)
    assert tuned.free(run) == calm
    assert is_published(tuned, run)
    assert written(tuned, run) == [file_name(base.digest, base)]
    cached = list((tuned.redis.state_dir / "cache/base_parts").glob("*"))
    assert [path.name for path in cached if path.name != ".lock"] == [base.digest]
    assert point == "base.fetched" or fired.exists()
    (tuned.faults / point).unlink(missing_ok=True)


def is_open(federation: Federation, run: str) -> bool:
    state = federation.store.control.runs.get(run)
    return state is not None and state.active


def test_a_second_run_of_the_same_base_fetches_nothing(tuned: Federation, calm: list[str]) -> None:
    first = tuned.begin("frozen", *RUN)
    assert tuned.finish(first).state == "completed"
    tuned.free(first)
    fired = tuned.arm("base.fetched", "kill")
    second = tuned.begin("frozen", *RUN, "train.learning_rate=0.05")
    assert tuned.finish(second).state == "completed"
    tuned.free(second)

    assert not fired.exists()
    (tuned.faults / "base.fetched").unlink()
    assert base_of(tuned, first) == base_of(tuned, second)


def test_a_data_server_that_lost_the_base_part_gets_it_back_from_disk(
    tuned: Federation, calm: list[str]
) -> None:
    held = tuned.arm("client.started", "stop", "site-1_")
    run = tuned.begin("frozen", *RUN)
    wait_for("a site", held.exists)
    number = tuned.round_of(run)
    receipts = tuned.store.control.receipts
    # Otherwise its training process may have been given the name of a file that is removed here.
    wait_for("the other site", lambda: "site-2" in receipts.of_round(run, number))
    tuned.redis.kill("data")
    shutil.rmtree(tuned.redis.state_dir / "cache", ignore_errors=True)
    tuned.redis.restart("data")
    os.kill(int(held.read_text()), signal.SIGCONT)

    assert tuned.finish(run, 120).state == "completed"
    assert tuned.free(run) == calm
    assert is_published(tuned, run)
