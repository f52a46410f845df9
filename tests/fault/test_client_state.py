"""What clients keep, in rounds that end without their update: late, abandoned, killed before the push."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.federation import Federation, wait_for

pytestmark = pytest.mark.slow(reason="rounds that wait for their deadline")

#: A task that fails for a client in a round, where its folder has a file of that name.
TASK = """
import os
from pathlib import Path
from fl_queue.tasks.mnist import ThreesAndSevens

class Failing(ThreesAndSevens):
    def train(self, model, data, context, on_epoch):
        if Path(os.environ["FAILING"], f"{context.client}_{context.round}").exists():
            raise ValueError("fails on purpose")
        return super().train(model, data, context, on_epoch)
"""
#: What clients keep: in all but the last the versions depend on it, in the first the server's state, too.
KINDS = {
    "control variates and private tensors": (
        "aggregation.strategy=scaffold", "aggregation.weighting=uniform", 'model.private=["bias"]',
    ),
    "residuals and private tensors": (
        'model.private=["bias"]', "update.codec=topk", "update.fraction=0.1", "update.error_feedback=true",
    ),
    "means of gradients and private tensors": (
        "train.optimizer=adam", "train.learning_rate=0.01", "train.optimizer_state=keep", 'model.private=["bias"]',
    ),
    # Each epoch is one of two models.
    "personal models": ("aggregation.strategy=ditto", "train.epochs=150"),
}  # fmt: skip
STATEFUL = (
    "run.task=failing:Failing",
    "train.epochs=300",
    "round.cohort=2",
    "round.grace_s=60.0",
    "round.deadline_s=8.0",
    "redis.inline_bytes=0",
    "run.evaluate_every=0",
)
SITES = ("site-1", "site-2")
ALLOW = "failing:Failing"
EVALUATOR = False


def environment(folder: Path) -> dict[str, str]:
    (folder / "failing.py").write_text(TASK)
    (folder / "failing").mkdir()
    return {"PYTHONPATH": str(folder), "FAILING": str(folder / "failing")}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Settings by which clients keep something of a kind."""
    return KINDS[request.param]


def undisturbed(federation: Federation, *overrides: str) -> list[object]:
    """Digests of a run in which site-1 reports a failure in round 2 and sends no update."""
    file = federation.folder / "failing/site-1_2"
    file.write_text("")
    try:
        run = federation.begin("states", *STATEFUL, *overrides)
        assert federation.finish(run).state == "completed"
    finally:
        file.unlink()
    return what_was_made(federation, run)


def what_was_made(federation: Federation, run: str) -> list[object]:
    """Accepted sets, versions and server states by round, and the bits of what each client keeps."""
    made: list[object] = [
        (
            r.round,
            r.outcome,
            r.accepted if r.outcome == "committed" else {},
            r.digest,
            r.server_state,
        )
        for r in federation.store.control.history.records(run)
        if r.purpose == "train"
    ]
    for client in SITES:
        found = federation.store.control.receipts.accepted(run, client)
        assert found is not None
        folder = federation.redis.state_dir / f"client-state/{run}/{client}/{found[0]}_{found[1]}"
        (path,) = folder.glob("*.safetensors")
        made.append((client, *found, path.stem))
    federation.free(run)
    return made


@contextmanager
def held(federation: Federation, point: str, *overrides: str) -> Iterator[str]:
    """A run whose site-1 stands still at a point of round 2 meanwhile; yields the run id."""
    run = federation.begin("states", *STATEFUL, *overrides)
    federation.reach(run, 1)
    wait_for("round 1 to be trained", lambda: federation.trained_in(run, 1) >= 2)
    federation.reach(run, 2)
    fired = federation.arm(point, "stop", "site-1_")
    wait_for(point, fired.exists)
    horse = int(fired.read_text())
    # Its worker stands still, too: it would end the job of a round that has ended.
    worker = int(Path(f"/proc/{horse}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGSTOP)
    try:
        yield run
    finally:
        for pid in (horse, worker):
            os.kill(pid, signal.SIGCONT)


def test_a_late_update_advances_no_state(federation: Federation, kind: tuple[str, ...]) -> None:
    quorum = (*kind, "round.quorum=1", "run.rounds=3")
    calm = undisturbed(federation, *quorum)
    with held(federation, "chunks.pushed", *quorum) as run:
        federation.reach(run, 3)
    assert federation.finish(run).state == "completed"
    wait_for(
        "the late update", lambda: federation.store.control.receipts.late_counts(run).get(2), 30
    )
    assert what_was_made(federation, run) == calm
    accepted = [set(item[2]) for item in calm[:3]]  # type: ignore[index]
    assert accepted == [set(SITES), {"site-2"}, set(SITES)]


def test_an_abandoned_round_advances_no_state(
    federation: Federation, kind: tuple[str, ...]
) -> None:
    both = (*kind, "round.quorum=2", "run.rounds=3")
    calm = undisturbed(federation, *both)
    with held(federation, "client.trained", *both) as run:
        federation.reach(run, 3)
    assert federation.finish(run).state == "completed"
    assert what_was_made(federation, run) == calm
    outcomes = [item[1] for item in calm[:4]]  # type: ignore[index]
    assert outcomes == ["committed", "abandoned", "committed", "committed"]


def test_a_client_killed_between_its_training_and_its_push_changes_no_bit(
    federation: Federation, kind: tuple[str, ...]
) -> None:
    rounds = (*kind, "run.rounds=3")
    calm = federation.begin("killed", *STATEFUL, *rounds)
    federation.finish(calm)
    expected = what_was_made(federation, calm)
    run = federation.begin("killed", *STATEFUL, *rounds, "round.deadline_s=60.0")
    federation.reach(run, 2)
    fired = [
        federation.arm(point, "kill", f"{client}_")
        for point, client in (("client.trained", "site-1"), ("outbox.written", "site-2"))
    ]
    assert federation.finish(run).state == "completed"
    assert [path.exists() for path in fired] == [True, True]
    assert what_was_made(federation, run) == expected
