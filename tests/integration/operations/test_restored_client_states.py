"""What clients keep is found again by a run that was restored from a backup: the same bits as undisturbed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_queue.coordinator.operations import backup, controls
from fl_queue.store import keyspace
from fl_queue.store.embedded.server_pair import start
from tests.conftest import chosen_server
from tests.support.federation import Federation, wait_for

#: What clients keep; but for personal models, the versions depend on it.
KINDS = {
    "control variates and private tensors": (
        "aggregation.strategy=scaffold", "aggregation.weighting=uniform", 'model.private=["bias"]',
    ),
    "personal models and residuals": (
        "aggregation.strategy=ditto",
        *("update.codec=topk", "update.fraction=0.1", "update.error_feedback=true"),
    ),
    "gradients of FedDyn": ("aggregation.strategy=feddyn", "aggregation.weighting=uniform"),
}  # fmt: skip
COMMON = ("run.rounds=5", "round.cohort=2", "run.evaluate_every=0")
SITES = ("site-1", "site-2")


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, no_process_left: None
) -> Iterator[Federation]:
    """An aggregator and two sites."""
    folder = tmp_path_factory.mktemp("restored")
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(redis, folder, 2, evaluator=False, forked=True)
        try:
            yield made
        finally:
            made.close()


def what_was_made(federation: Federation, run: str) -> list[object]:
    """Versions with the server's states, and what each client keeps of its newest accepted update."""
    store = federation.store
    made: list[object] = [
        (entry["digest"], entry.get("server_state"))
        for entry in store.control.versions.all(run).values()
    ]
    for client in SITES:
        found = store.control.receipts.accepted(run, client)
        assert found is not None
        folder = federation.redis.state_dir / f"client-state/{run}/{client}/{found[0]}_{found[1]}"
        (path,) = folder.glob("*.safetensors")
        made.append((client, *found, path.stem))
    return made


def backed_up(federation: Federation, run: str, version: int, file: Path) -> None:
    """A backup of a run at a version or later, after which it goes on for some rounds and all is lost."""
    store = federation.store
    wait_for(
        f"version {version}",
        lambda: (store.control.runs.get(run).version or 0) >= version,  # type: ignore[union-attr]
        120,
    )
    made = backup.write(store, run, file, federation.redis.state_dir)
    wait_for(
        "the run to go on",
        lambda: (
            not (state := store.control.runs.get(run))
            or not state.active
            or (state.version or 0) > made.version + 1
        ),
        120,
    )
    if store.control.runs.get(run).active:  # type: ignore[union-attr]
        controls.cancel(store, run)
    store.control.redis.flushall()
    store.data.redis.flushall()


@pytest.mark.parametrize(
    "kind",
    [
        *list(KINDS)[:2],
        pytest.param(list(KINDS)[2], marks=pytest.mark.slow(reason="one more run, restored twice")),
    ],
)
def test_a_run_that_is_restored_twice_goes_on_with_what_clients_keep(
    federation: Federation, kind: str, tmp_path: Path
) -> None:
    settings, store, state_dir = (
        (*COMMON, *KINDS[kind]),
        federation.store,
        federation.redis.state_dir,
    )
    calm = federation.begin("restored", *settings)
    assert federation.finish(calm).state == "completed"
    expected = what_was_made(federation, calm)
    federation.free(calm)

    run, runs = federation.begin("restored", *settings), []
    for version in (1, 3):
        runs.append(run)
        backed_up(federation, run, version, tmp_path / "a.zip")
        run = backup.restore(store, tmp_path / "a.zip", state_dir).run_id
        controls.resume(store, run, state_dir)
    assert federation.finish(run, 120).state == "completed"

    assert what_was_made(federation, run) == expected
    state = store.control.runs.get(run)
    assert state is not None
    assert list(state.restored_from) == runs[::-1]
    events = store.control.events.read({keyspace.events(run): "0-0"}, None)
    assert [e for _, _, e in events if e["event"] == "client_state_missing"] == []
    for client in SITES:
        events = federation.client_events(client)
        assert [e for e in events if e["event"] == "client_state_missing"] == []
    federation.free(run)
