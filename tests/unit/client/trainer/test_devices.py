"""A trainer of several processes, each with a device of its own (here: three on the CPU), beside one process."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rq.timeouts import JobTimeoutException
from torch import nn

from fl_queue.cli.worker import TrainerOptions
from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.client.trainer.group import Group
from fl_queue.client.trainer.others import Others
from fl_queue.client.trainer.protocol import Channel, Message
from fl_queue.client.trainer.serve import Reply
from fl_queue.common import processes
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, MessageError, RoundEnded, TrainingLost
from fl_queue.protocol.trainer_messages import Answer, Call
from fl_queue.training.determinism import Compute
from fl_queue.training.joint_norms import JointNorms
from fl_queue.training.ranks import Ranks
from tests.support.checkout import ROOT
from tests.support.federation import wait_for
from tests.support.site_rounds import Response, SiteRounds, settings_of
from tests.unit.client.trainer.test_fork_server import attempt_of
from workers import site_worker

MODULE = "tests.support.devices_task"
#: A rounding or two of float32.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}
#: The last batch has fewer samples than there are processes.
TRAIN = {"epochs": 1, "batch_size": 9, "learning_rate": 0.1, "evaluation_batch": 7}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerSettings]:
    """A worker with one fork server for all tests here, whose trainers are three processes."""
    made = settings_of(
        tmp_path_factory.mktemp("devices"),
        allow=(f"{MODULE}:*",),
        trainer_jobs=0,
        trainers=1,
        devices=("cpu", "cpu", "cpu"),
    )
    made.outbox.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.to_environ().items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setattr(site_worker, "_trainers", [])
        try:
            yield made
        finally:
            site_worker.trainers().close()


_runs = iter(range(1_000_000))


def rounds_of(site: WorkerSettings, task: str, **tables: Any) -> SiteRounds:
    """A run of its own on the site's devices, with version 0."""
    train = {**TRAIN, **tables.pop("train", {})}
    config = RunConfig.from_dict({"run": {"task": f"{MODULE}:{task}"}, "train": train, **tables})
    made = SiteRounds(site, config, site_worker.ask, f"run-{next(_runs):012d}")
    made.initialise()
    return made


def beside(made: SiteRounds, folder: Path) -> SiteRounds:
    """The same run in one process."""
    site = settings_of(folder, allow=(f"{MODULE}:*",))
    site.outbox.mkdir(parents=True, exist_ok=True)
    alone = SiteRounds(site, made.config, Resident(site).handle, made.run)
    alone.initialise()
    return alone


def numbers(response: Response) -> Any:
    return np.frombuffer(response.body, "<f4")


def are_close(found: Any, wanted: Any) -> bool:
    """Whether two tables of sums are equal, but for roundings of another product of matrices."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(
            are_close(found[key], wanted[key]) for key in wanted
        )
    return bool(np.allclose(np.array(found), np.array(wanted), rtol=1e-6))


def asked(made: SiteRounds, call: Call = Call.train) -> Answer:
    return made.ask(made.request(call, 1), lambda progress: None)


def descendants() -> set[int]:
    """Processes below this one, without the fork server."""
    left, found = {site_worker.trainers()._server.pid}, set()
    while left:
        pid = left.pop()
        tasks = Path(f"/proc/{pid}/task")
        with suppress(OSError):  # It has just ended.
            texts = [path.read_text() for path in tasks.glob("*/children")]
            below = {int(one) for text in texts for one in text.split()}
            found |= below
            left |= below
    return found


@pytest.mark.parametrize(
    ("task", "tables"),
    [
        ("Plain", {}),
        ("Plain", {"train": {"batch_size": 19, "momentum": 0.9, "schedule": "cosine", "ema": 0.5}}),
        (
            "Plain",
            {
                "train": {
                    "accumulate": 3,
                    "clip_norm": 0.5,
                    "momentum": 0.9,
                    "optimizer_state": "keep",
                }
            },
        ),
        ("Plain", {"aggregation": {"strategy": "scaffold", "weighting": "uniform"}}),
        ("Plain", {"aggregation": {"strategy": "ditto"}}),
        ("Amounts", {}),
        ("Normed", {}),
        ("Normed", {"train": {"accumulate": 2}}),
        ("Tokens", {}),
        ("Tokens", {"train": {"accumulate": 2, "batch_size": 1}}),
    ],
)
def test_an_update_is_that_of_the_whole_batch(
    site: WorkerSettings, tmp_path: Path, task: str, tables: Any
) -> None:
    made = rounds_of(site, task, **tables)
    alone = beside(made, tmp_path)

    # The second version is made of the first update, so it begins with other roundings.
    for number, close in ((1, CLOSE), (2, {"rtol": 1e-3, "atol": 1e-5})):
        found, wanted = made.train(number), alone.train(number)
        np.testing.assert_allclose(numbers(found), numbers(wanted), **close)
        sums = found.header.train_metrics["loss_sum"]
        assert sums == pytest.approx(wanted.header.train_metrics["loss_sum"], rel=1e-4)
        assert found.header.environment["devices"] == 3
        assert "devices" not in wanted.header.environment
        if number == 1:
            # Batches are evaluated as in one process, and added up in their order.
            assert are_close(found.header.metrics, wanted.header.metrics)
    assert found.header.num_examples == wanted.header.num_examples


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ("gpu,gpu", "'gpu' is not cpu or cuda:N"),
        ("cuda,cuda", "'cuda' is not cpu or cuda:N"),
        ("cuda:0,cpu", "two kinds"),
        ("cuda:1,cuda:0,cuda:1", "one twice"),
    ],
)
def test_devices_that_cannot_train_together_are_refused(listed: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainerOptions(2, 1, 0, listed).apply(WorkerSettings())


def test_devices_and_one_device_are_not_given_together() -> None:
    one = TrainerOptions(2, 1, 0, "cuda:1").apply(WorkerSettings())
    assert (one.device, one.devices) == ("cuda:1", ())
    both = TrainerOptions(2, 1, 0, "cuda:0, cuda:1").apply(WorkerSettings())
    assert (both.device, both.devices) == ("cuda:0", ("cuda:0", "cuda:1"))
    assert WorkerSettings.from_environ(both.to_environ()).devices == both.devices
    with pytest.raises(ConfigError, match="--device"):
        TrainerOptions(2, 1, 0, "cuda:0").apply(WorkerSettings(device="cuda:1"))


def test_as_many_devices_give_the_same_bits(site: WorkerSettings) -> None:
    found = []
    for _ in range(2):
        made = rounds_of(site, "Normed")
        made.run = "run-aaaaaaaaaaaa"
        found.append([made.train(1).without_time(), made.evaluate(2).without_time()])
        site_worker.trainers().end((made.run, 0))

    assert found[0] == found[1]


def test_one_trainer_serves_several_rounds(site: WorkerSettings) -> None:
    made = rounds_of(site, "Plain")
    assert made.facts().outcome == "done"
    pids = descendants()
    for number in (1, 2):
        made.train(number)
        made.evaluate(number)

    assert len(pids) == 3
    assert descendants() == pids


def test_nothing_listens_beyond_this_machine(site: WorkerSettings) -> None:
    rounds_of(site, "Plain").train(1)
    sockets = {
        os.readlink(path).partition("[")[2].rstrip("]")
        for pid in descendants()
        for path in Path(f"/proc/{pid}/fd").iterdir()
        if path.is_symlink() and os.readlink(path).startswith("socket:")
    }
    listening = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in sockets and fields[3] == "0A":
                listening.add(fields[1].partition(":")[0])

    assert listening == {"0100007F"}


@pytest.mark.parametrize("call", [Call.facts, Call.train])
def test_a_loop_of_a_tasks_own_is_refused(site: WorkerSettings, call: Call) -> None:
    answer = asked(rounds_of(site, "OwnLoop"), call)

    assert answer.outcome == "failed"
    assert answer.failure is not None
    assert "OwnLoop trains by a loop of its own" in answer.failure.public


def test_a_buffer_that_follows_the_samples_is_refused(site: WorkerSettings) -> None:
    answer = asked(rounds_of(site, "Remembers"))

    assert answer.outcome == "failed"
    assert answer.failure is not None
    assert "0.seen differs between the processes of --devices" in answer.failure.public


def test_the_failure_of_any_process_is_the_answer(site: WorkerSettings) -> None:
    made = rounds_of(site, "Fails")
    answer = asked(made)

    assert answer.outcome == "failed"
    assert answer.failure is not None
    assert answer.failure.kind == "ValueError"
    assert asked(made, Call.facts).outcome == "done"


def test_the_death_of_one_process_ends_all(site: WorkerSettings) -> None:
    made = rounds_of(site, "Dies")
    with pytest.raises(TrainingLost, match="signal 9"):
        asked(made)

    wait_for("the end of all", lambda: not descendants())
    assert asked(made, Call.facts).outcome == "done"


def test_the_end_of_a_round_and_a_timeout_end_all(site: WorkerSettings) -> None:
    made = rounds_of(site, "Sleeps")

    def stop_at(progress: Any) -> None:
        threading.Thread(target=site_worker.trainers().stop).start()

    # Before or after the first process waits for the sleeping one.
    with suppress(RoundEnded):
        assert made.ask(made.request(Call.train, 1), stop_at).outcome == "ended"
    wait_for("the end of all", lambda: not descendants())
    with pytest.raises(JobTimeoutException), attempt_of(1.0):
        asked(made)
    wait_for("the end of all", lambda: not descendants())
    assert processes.children() >= {site_worker.trainers()._server.pid}


@given(size=st.integers(1, 40), count=st.integers(2, 6))
def test_the_parts_of_a_batch_are_the_batch(size: int, count: int) -> None:
    rows = torch.arange(size)
    parts = [Ranks(rank, ("cpu",) * count, -1).part(rows) for rank in range(count)]

    assert torch.cat([part[:counted] for part, counted in parts]).tolist() == rows.tolist()
    assert all(len(part) for part, _ in parts)
    assert max(counted for _, counted in parts) - min(counted for _, counted in parts) <= 1


def test_a_batch_norm_with_a_forward_of_its_own_is_refused() -> None:
    class Own(nn.BatchNorm1d):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return batch

    with pytest.raises(ConfigError, match=r"1 is a BatchNorm with a forward of its own \(Own\)"):
        JointNorms(nn.Sequential(nn.Linear(2, 2), Own(2)), Ranks(0, ("cpu", "cpu"), -1))


def test_processes_that_come_to_different_ends_give_no_answer() -> None:
    group = Group(socket.socket(), 2)
    (mine, theirs) = group._pairs[0]
    others = Others([mine])
    others.ask(Message("request", "job/1", {}))
    Channel(theirs).send(Message("answer", "job/1", {"outcome": "needs_base"}))
    with pytest.raises(MessageError, match="differ"):
        others.joined(Message("request", "job/1", {}), Reply({"outcome": "done"}))
    group.close()


def test_a_device_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(ConfigError, match="--device: cuda:99 is not there: torch finds"),
        Compute("cuda:99").reproducible(1),
    ):
        pass
