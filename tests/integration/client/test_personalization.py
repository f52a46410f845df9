"""Personalised models in whole runs: sites and pool alike, killed or not, and their metrics."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from safetensors.numpy import load_file

from fl_queue.config import loading
from fl_queue.coordinator.operations import verification
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError
from fl_queue.models import selection
from fl_queue.protocol.records import RoundRecord
from fl_queue.reporting import comparison, curves, model_export, rounds_table
from fl_queue.store import RunState, Store, keyspace
from fl_queue.store.embedded.server_pair import start
from tests.support.checkout import ROOT
from tests.support.federation import Federation, wait_for
from tests.support.server_binaries import chosen_server

#: A perceptron with BatchNorm, whose layers have names without it.
TASK = """
from torch import nn
from fl_queue.tasks.mnist import ThreesAndSevens

class Normed(ThreesAndSevens):
    def build_model(self):
        return nn.Sequential(nn.Linear(784, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
"""
#: Images read one at a time, with noise; the first process beside a training that reads one is killed.
READ = """
import os, signal
from pathlib import Path
import torch
from torch.utils.data import Dataset, get_worker_info
from fl_queue.tasks import ClientData
from fl_queue.tasks.mnist import ThreesAndSevens

class Noisy(Dataset):
    def __init__(self, whole, flag):
        self.whole, self.flag = whole, flag
    def __len__(self):
        return len(self.whole)
    def __getitem__(self, index):
        if self.flag.exists() and get_worker_info():
            self.flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        pixels, target = self.whole[index]
        return pixels + 0.1 * torch.rand(784), target

class Read(ThreesAndSevens):
    def client_data(self, context):
        data, flag = super().client_data(context), Path(self.options["flag"])
        return ClientData(Noisy(data.train, flag), data.validation)
"""
BATCH_NORM = ["1.bias", "1.num_batches_tracked", "1.running_mean", "1.running_var", "1.weight"]
SKEWED = ("data.rotation=180.0", "run.task=normed:Normed", "round.cohort=2", "run.rounds=2")
FEDBN = (*SKEWED, 'model.private=["@batch_norm"]', "train.finetune_epochs=1")
DITTO = (*SKEWED, "aggregation.strategy=ditto", "strategy.lambda=0.5")
LORA = (
    "run.task=lora:Adapted",
    "round.cohort=2",
    "run.rounds=2",
    "aggregation.strategy=scaffold",
    "aggregation.weighting=uniform",
)
POOL = ("clients.kind=simulation", "clients.count=2", "clients.processes=1")
CLIENTS = ("sim-1", "sim-2")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Federation]:
    """An aggregator, an evaluator, a pool process, and a site worker for each virtual client."""
    folder = tmp_path_factory.mktemp("personal")
    (folder / "normed.py").write_text(TASK)
    (folder / "reading.py").write_text(READ)
    shutil.copy(ROOT / "examples/lora.py", folder)
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(
            redis,
            folder,
            0,
            {"PYTHONPATH": str(folder)},
            "normed:Normed,lora:Adapted,reading:Read",
            forked=True,
        )
        try:
            made.start("pool", "--processes", "1")
            for client in CLIENTS:
                made.start(client, "--loader-workers", "2")
            wait_for("workers", lambda: len(made.store.control.workers.living()) == 5, 120)
            yield made
        finally:
            made.close()


def finished(both: Federation, name: str, *overrides: str) -> str:
    """A run that went well; its name is free again."""
    run = both.begin(name, *overrides)
    assert both.finish(run).state == "completed"
    both.free(run)
    return run


@pytest.fixture(scope="module")
def calm(both: Federation) -> str:
    """A run with private BatchNorm, by site workers, whose updates are kept."""
    return finished(both, "own", *FEDBN, "model.keep_updates=true")


def states(both: Federation, run: str) -> dict[str, str]:
    """Client -> digest of what it keeps, of its newest accepted update."""
    found = {}
    for client in CLIENTS:
        number, update = both.store.control.receipts.accepted(run, client) or (0, "")
        folder = both.redis.state_dir / f"client-state/{run}/{client}/{number}_{update}"
        (path,) = folder.glob("*.safetensors")
        found[client] = path.stem
    return found


def private_of(both: Federation, run: str, client: str) -> dict[str, bytes]:
    (path,) = (both.redis.state_dir / f"client-state/{run}/{client}").rglob(
        f"{states(both, run)[client]}.safetensors"
    )
    return {name: array.tobytes() for name, array in load_file(path).items()}


def what_was_made(records: list[RoundRecord]) -> list[object]:
    return [(r.purpose, r.digest, r.accepted, r.client_validation, r.validation) for r in records]


def test_batch_norm_stays_with_the_client_that_has_it(both: Federation, calm: str) -> None:
    own = {client: private_of(both, calm, client) for client in CLIENTS}
    for tensors in own.values():
        assert sorted(tensors) == [f"private/{name}" for name in BATCH_NORM]
    differing = {name for name in own["sim-1"] if own["sim-1"][name] != own["sim-2"][name]}
    assert differing == {f"private/{n}" for n in BATCH_NORM if n != "1.num_batches_tracked"}

    # What was pushed has neither a place for them nor their bytes.
    pushed = [
        path.read_bytes()
        for path in (both.redis.state_dir / "updates" / calm).rglob("*")
        if path.is_file()
    ]
    assert len(pushed) == 4
    for body in pushed:
        assert b"0.weight" in body
        for tensors in own.values():
            for name, values in tensors.items():
                assert name.partition("/")[2].encode() not in body
                assert len(values) < 16 or values not in body
    # And every version has those of version 0.
    versions = both.store.control.versions.all(calm)
    folder = both.redis.state_dir / "checkpoints" / calm
    ends = [load_file(folder / f"{versions[number]['digest']}.safetensors") for number in (0, 2)]
    for name in ends[0]:
        same = ends[0][name].tobytes() == ends[1][name].tobytes()
        assert same == (name in BATCH_NORM), name


def test_a_pool_and_killed_clients_make_the_same_bits(both: Federation, calm: str) -> None:
    records = both.store.control.history.records(calm)
    virtual = finished(both, "own", *FEDBN, *POOL)
    fired = [
        both.arm("client.trained", "kill", "sim-1"),
        both.arm("outbox.written", "kill", "sim-2"),
    ]
    killed = finished(both, "own", *FEDBN)

    assert [path.exists() for path in fired] == [True, True]
    for run in (virtual, killed):
        assert what_was_made(both.store.control.history.records(run)) == what_was_made(records)
        assert states(both, run) == states(both, calm)


def test_dittos_versions_are_those_of_fedavg_and_each_client_has_a_model_of_its_own(
    both: Federation,
) -> None:
    ditto = finished(both, "ditto", *DITTO)
    plain = finished(both, "ditto", *SKEWED)
    digests = [
        [v["digest"] for v in both.store.control.versions.all(r).values()] for r in (ditto, plain)
    ]
    assert digests[0] == digests[1]
    assert len(set(states(both, ditto).values())) == 2
    last = both.store.control.history.records(ditto)[-1]
    assert last.purpose == "evaluate"
    for client, found in last.client_validation.items():
        assert found["personal_loss"] != found["loss"], client
    receipts = both.store.control.receipts.of_round(ditto, last.round)
    assert {r.environment["client_state"] for r in receipts.values()} == {"of round 2"}


def test_a_run_that_goes_on_goes_on_with_what_clients_keep(both: Federation) -> None:
    one = (*DITTO, "run.rounds=1", "run.evaluate_every=0")
    run = both.begin("goes-on", *one)
    both.finish(run)
    with pytest.raises(ConfigError) as caught:
        both.begin("goes-on", *SKEWED)
    assert caught.value.field == "aggregation.strategy"
    state = both.store.control.runs.get(run)
    assert state is not None
    both.begin("goes-on", *one)
    both.finish(run)
    receipts = both.store.control.receipts.of_round(run, both.committed(run)[-1].round)
    assert {r.environment["client_state"] for r in receipts.values()} == {"of round 1"}
    both.free(run)


def exported(federation: Federation, state: RunState, version: int) -> dict[str, Any]:
    path = federation.folder / f"lora-{version}.safetensors"
    request = model_export.ExportRequest(path, version=version)
    model_export.export_version(federation.store, state, federation.redis.state_dir, request)
    return load_file(path)


def test_adapters_are_trained_and_nothing_of_their_frozen_base_is_sent(both: Federation) -> None:
    run = finished(both, "lora", *LORA, "model.keep_updates=true")

    store, state = both.store, both.store.control.runs.get(run)
    assert state is not None
    manifest = store.control.versions.manifest(run)
    assert manifest is not None
    layers = ("hidden1", "hidden2", "output")
    assert manifest.base is not None
    assert manifest.base.names == {f"{x}.base.{y}" for x in layers for y in ("weight", "bias")}
    # Twice, as SCAFFOLD has controls beside the changes: 6,376 numbers of 205,586.
    newest = both.committed(run)[-1].round  # Receipts live two rounds.
    sizes = {r.nbytes for r in store.control.receipts.of_round(run, newest).values()}
    assert sizes == {2 * 4 * 6376}
    verdicts = verification.verify(store, state, both.redis.state_dir)
    assert [verdict.result for verdict in verdicts] == ["same", "same"]
    folder = both.redis.state_dir / "checkpoints" / run
    versions = store.control.versions.all(run)
    bases = [path.stat().st_size for path in folder.glob("base-*")]
    assert len(bases) == 1
    assert bases[0] > 4 * 199210
    adapters = [folder / f"{versions[number]['digest']}.safetensors" for number in range(3)]
    assert all(path.stat().st_size < 4 * 6376 + 4096 for path in adapters)
    first, last = (exported(both, state, number) for number in (0, 2))
    assert first.keys() == last.keys()
    changed = {name for name in first if first[name].tobytes() != last[name].tobytes()}
    assert changed == {f"{x}.{y}" for x in layers for y in "ab"}

    records = store.control.history.records(run)
    again = finished(both, "lora", *LORA, *POOL)
    assert what_was_made(store.control.history.records(again)) == what_was_made(records)


def test_processes_that_read_samples_change_no_bit_and_may_be_killed(both: Federation) -> None:
    flag = both.folder / "kill-a-reader"
    read = (
        "run.task=reading:Read",
        "round.cohort=2",
        "run.rounds=2",
        "train.batch_size=10",
        f'task.flag="{flag}"',
    )
    alone = finished(both, "reading", *read, *POOL)
    flag.touch()
    beside = finished(both, "reading", *read)

    assert not flag.exists()
    histories = [both.store.control.history.records(run) for run in (alone, beside)]
    assert what_was_made(histories[0]) == what_was_made(histories[1])


def test_every_reader_has_the_personalised_metrics(both: Federation, calm: str) -> None:
    store, records = both.store, both.store.control.history.records(calm)
    tested = selection.test_metrics(store, calm)
    rows = rounds_table.rows(records, tested, {})
    assert {row.source for row in rows} == {"test"}
    assert all(row.personal_accuracy and row.finetuned_accuracy for row in rows)
    console = Console(width=150, file=io.StringIO(), record=True)
    console.print(rounds_table.table(rows))
    assert "Personal" in console.export_text()

    last = records[-1]
    counts = {c: found["personal_accuracy"] for c, found in last.client_validation.items()}
    assert sorted(counts) == list(CLIENTS)
    assert min(counts.values()) <= rows[-1].personal_accuracy <= max(counts.values())
    named = {point.curve for point in curves.points(records, tested)}
    assert {"validation/personal_accuracy", "validation/finetuned_loss"} <= named

    state = store.control.runs.get(calm)
    assert state is not None
    (found,) = comparison.compare(store, [state], "personal_accuracy")
    assert found.value == rows[-1].personal_accuracy
    (plain,) = comparison.compare(store, [state], "accuracy")
    assert plain.value == tested[2]["accuracy"]


def test_a_pattern_that_matches_nothing_ends_the_run_and_names_near_ones(
    both: Federation,
) -> None:
    run = both.begin("nothing", *SKEWED, 'model.private=["2.weight"]', "round.max_abandoned=1")
    state = both.finish(run)
    assert state.state == "failed"
    events = both.store.control.events.read({keyspace.events(run): "0-0"}, None)
    # One or several were asked for version 0; all report the same.
    reasons = {e["reason"] for _, _, e in events if e["event"] == "update_rejected"}
    assert len(reasons) == 1
    # Names of tensors stay where version 0 was tried: what is near stands in the log there.
    assert "model.private: 2.weight matches no tensor of the model" in reasons.pop()
    logs = [both.folder / f"{name}.log" for name in ("evaluator", *CLIENTS)]
    assert any("'2.weight' matches no tensor; did you mean" in log.read_text() for log in logs)
    both.free(run)


def test_what_may_change_when_a_run_is_continued(store: Store) -> None:
    first = ("aggregation.strategy=ditto", "strategy.lambda=0.5")

    def begin(*overrides: str) -> str:
        loaded = loading.load("mnist-3v7", overrides, {})
        return runs.start_run(store, "steady", loaded, 1).run_id

    run = begin(*first)

    def end() -> None:
        store.control.redis.hset(keyspace.run(run), mapping={"state": "completed", "round": "1"})

    end()
    for overrides, field in (
        (("aggregation.strategy=fedavg",), "aggregation.strategy"),
        (("aggregation.strategy=fedavg", "model.private=['bias']"), "aggregation.strategy"),
    ):
        with pytest.raises(ConfigError, match="keeps the value it was created with") as caught:
            begin(*overrides)
        assert caught.value.field == field
    assert begin(first[0], "strategy.lambda=2.0", "train.finetune_epochs=3") == run
    segments = store.control.runs.config_segments(run)
    assert [segment["from_round"] for segment in segments] == [0, 2]
    assert [segment["config"]["strategy"]["lambda"] for segment in segments] == [0.5, 2.0]
    events = [
        event for _, _, event in store.control.events.read({keyspace.events(run): "0-0"}, None)
    ]
    assert events[-1]["changed"] == ["strategy.lambda", "train.finetune_epochs"]

    other = runs.start_run(
        store, "private", loading.load("mnist-3v7", ("model.private=['bias']",), {}), 1
    )
    store.control.redis.hset(keyspace.run(other.run_id), "state", "completed")
    with pytest.raises(ConfigError) as caught:
        runs.start_run(store, "private", loading.load("mnist-3v7", (), {}), 1)
    assert caught.value.field == "model.private"
