"""Runs that begin with a file: the same version 0 from each maker, killed or not, and the list of its tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from fl_queue.cli import cli
from fl_queue.common.files import Mapped
from fl_queue.config import loading
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.experiments import launching
from fl_queue.models import initial
from fl_queue.models.checkpoint import checkpoint_folder
from fl_queue.models.host_cache import HostCache
from fl_queue.reporting import run_status
from fl_queue.store import Store, keyspace
from fl_queue.store.embedded.server_pair import start
from tests.support.federation import QUICK, Federation, wait_for
from tests.support.manual_run import ManualRun
from tests.support.server_binaries import chosen_server

WEIGHTS = torch.linspace(-1, 1, 784, dtype=torch.bfloat16).reshape(1, 784)
PARTIAL = (
    "model.initial_mode=partial",
    'model.initial_fresh=["bias"]',
    'model.initial_map=["module. -> "]',
)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Federation]:
    """An aggregator, an evaluator and two clients."""
    folder = tmp_path_factory.mktemp("beginning")
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(redis, folder, 2, forked=True)
        try:
            yield made
        finally:
            made.close()


def begun(sites: Federation, name: str, *overrides: str) -> str:
    """A run that begins with a part of a torch file, until it is over; returns its id."""
    path = sites.folder / "weights.pt"
    torch.save(
        {"module.weight": WEIGHTS, "module.bias": torch.ones(7), "module.pool": torch.ones(3)}, path
    )
    wanted = (*QUICK, *PARTIAL, "round.cohort=2", "run.rounds=1", f"model.initial={path}")
    config = loading.load("mnist-3v7", (*wanted, *overrides))
    run = launching.begin(sites.store, name, config)
    lifecycle.advance(sites.store, run)
    return run


def test_version_0_is_the_same_from_each_maker_and_after_kills(sites: Federation) -> None:
    # The evaluator makes it; its job is killed before the answer is on its disk, and once more after it.
    fired = [sites.arm("client.trained", "kill"), sites.arm("outbox.written", "kill")]
    run = begun(sites, "begun")
    assert sites.finish(run).state == "completed"
    assert all(flag.exists() for flag in fired)
    versions = sites.store.control.versions.all(run)
    made = load_file(
        checkpoint_folder(sites.redis.state_dir, run) / f"{versions[0]['digest']}.safetensors"
    )
    assert made["weight"].tobytes() == WEIGHTS.float().numpy().tobytes()
    assert 0 < abs(made["bias"]).max() < 1  # As the task builds it from the seed.

    status = run_status.run_status(sites.store, runs.find_run(sites.store, run))
    assert status.initial is not None
    assert (status.initial.file, status.initial.mode) == ("weights.pt", "partial")
    assert status.initial.loaded == ("weight",)
    assert (status.initial.fresh, status.initial.ignored) == (("bias",), ("pool",))
    streams = {keyspace.events(run): "0-0"}
    events = [event for _, _, event in sites.store.control.events.read(streams, None)]
    (first,) = (event for event in events if event["event"] == "round_initialised")
    assert first["reason"].endswith("1 loaded, 1 fresh (bias), 1 ignored (pool)")

    card = sites.folder / "README.md"
    options = [f"--redis-url={sites.redis.url}", f"--blob-url={sites.redis.blob_url}"]
    options += [f"--state-dir={sites.redis.state_dir}"]
    export = ["export", run, "-o", str(sites.folder / "m.safetensors"), f"--card={card}"]
    done = CliRunner().invoke(cli, [*export, *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "| tensors fresh | 1: bias |" in card.read_text()
    shown = CliRunner().invoke(cli, ["status", run, "--json", *options], catch_exceptions=False)
    assert json.loads(shown.stdout)["initial"]["fresh"] == ["bias"]

    sites.stop("evaluator")
    sites.free(run)
    again = begun(sites, "begun")  # A client makes it, as there is no evaluator.
    assert sites.finish(again).state == "completed"
    assert sites.store.control.versions.get(again, 0)["digest"] == versions[0]["digest"]


def test_a_file_that_does_not_fit_fails_the_run_with_the_tensor_and_the_fix(
    sites: Federation,
) -> None:
    run = begun(sites, "unfit", "model.initial_fresh=[]")
    state = sites.finish(run)
    assert state.state == "failed"
    reason = "model.initial: bias has shape (7,), the model's (1,); name it in model.initial_fresh"
    assert reason in state.reason


SCAFFOLD = (
    "aggregation.strategy=scaffold",
    "aggregation.weighting=uniform",
    'model.private=["bias"]',
    "model.keep_updates=true",
    "run.preflight=off",
)


def test_a_run_of_workers_goes_back_and_what_clients_kept_since_is_not_used(
    sites: Federation,
) -> None:
    def command(*words: str) -> Any:
        options = [f"--redis-url={sites.redis.url}", f"--blob-url={sites.redis.blob_url}"]
        options += [f"--state-dir={sites.redis.state_dir}"]
        done = CliRunner().invoke(cli, [*words, *options], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    wanted = (*QUICK, *SCAFFOLD, "round.cohort=2", "run.rounds=2", "model.keep_versions=0")
    run = sites.begin("back", *wanted)
    assert sites.finish(run).state == "completed"
    settings = [word for override in wanted for word in ("--set", override)]
    start = ["start-round", "mnist-3v7", "--run", "back", "--rounds", "2", "--no-wait", *settings]
    command(*start, "--from-version", "1")
    begun = sites.store.control.runs.get(run)
    assert begun is not None
    back = begun.state_since
    # Later rounds remove them.
    first, second = (_receipts(sites, run, back + number) for number in (1, 2))
    state = sites.finish(run)
    assert (state.state, state.version) == ("completed", 5)

    versions = sites.store.control.versions.all(run)
    assert versions[3]["digest"] == versions[1]["digest"]
    assert "server_state" in versions[1]
    assert "server_state" not in versions[3]  # Its other half is at the clients, who begin anew.
    assert versions[3]["round"] == back == state.state_since
    for receipt in first:
        assert receipt.environment["client_state"].startswith(f"zero again since round {back}")
    assert {receipt.environment["client_state"] for receipt in second} == {f"of round {back + 1}"}
    verdicts = json.loads(command("verify", "back", "--json"))
    assert {verdict["result"] for verdict in verdicts} == {"same"}
    assert len(verdicts) == 5
    rows = json.loads(command("history", "back", "--json"))["rounds"]
    assert [row["outcome"] for row in rows].count("restored") == 1


def _receipts(sites: Federation, run: str, number: int) -> list[Any]:
    """The receipts of both clients of a round, once they are there."""

    def both() -> list[Any]:
        found = [*sites.store.control.receipts.of_round(run, number).values()]
        return found if len(found) == 2 else []

    return wait_for(f"receipts of round {number}", both)


def test_the_maker_reads_what_the_operator_has_published(store: Store, tmp_path: Path) -> None:
    hand = ManualRun(store, tmp_path, "ab", 3, ready=False)
    path = tmp_path / "w.safetensors"
    tensors: dict[str, Any] = {"x.w": np.array([1, 2, 3], np.float16), "x.n": np.array([4])}
    save_file(tensors, path)
    config = loading.load("mnist-3v7", (*PARTIAL[:1], 'model.initial_map=["x. -> "]'), {})
    record = initial.publish_initial(store, path, 1 << 20, config.model)
    built = {"w": np.zeros(3, np.float32), "n": np.zeros(1, np.int64)}
    cache = HostCache(store, tmp_path / "cache", hand.run, hand.config.redis.chunk_bytes)
    body = Mapped(initial.fetch_initial(cache, record)).view
    found = initial.initial_arrays(body, hand.run, record, hand.manifest, built)
    assert found["w"].tolist() == [1, 2, 3]
    assert found["n"].tolist() == [4]
    # A worker of an older release reads the same where it can, and refuses the rest.
    older = {key: value for key, value in record.items() if key not in ("source", "partial")}
    again = initial.initial_arrays(body, hand.run, older, hand.manifest)
    assert {name: array.tobytes() for name, array in again.items()} == {
        name: array.tobytes() for name, array in found.items()
    }
