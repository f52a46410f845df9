"""Whole runs of strategies that keep something, calm and killed."""

from __future__ import annotations

from pathlib import Path

from fl_queue import backup, names, verify
from fl_queue.records import RoundRecord
from tests.federation import Federation, wait_for

CLIENTS = 2
COHORT = ("round.cohort=2", "run.evaluate_every=0")
ADAM = (*COHORT, "aggregation.strategy=fedadam", "strategy.server_learning_rate=0.01")
OWN = """
from fl_queue.fields import Field
from fl_queue.strategies.base import Strategy

class Half(Strategy):
    OPTIONS = {"share": Field("float", 0.5, "part of the mean that is added", above=0)}
    server_state = ("last",)

    def step(self, block):
        mean = block.mean()
        block.state["last"] = mean
        return block.x + self.number("share") * mean
"""


def environment(folder: Path) -> dict[str, str]:
    (folder / "mine.py").write_text(OWN)
    return {"PYTHONPATH": str(folder)}


def what_was_made(records: list[RoundRecord]) -> list[tuple[str | None, dict[str, str]]]:
    """Digests of each round's version, and of what the strategy keeps with it."""
    return [(record.digest, record.server_state) for record in records]


def test_a_killed_aggregator_changes_no_bit_of_what_the_server_keeps(
    federation: Federation,
) -> None:
    run = federation.begin("adam", *ADAM)
    federation.finish(run)
    calm = what_was_made(federation.committed(run))
    federation.free(run)
    assert [set(state) for _, state in calm] == [{"m", "v"}] * 3

    fired = federation.arm("model.published", "kill")
    killed = federation.begin("adam", *ADAM, "model.keep_updates=true")
    federation.finish(killed)

    assert fired.exists()
    records = federation.committed(killed)
    assert what_was_made(records) == calm
    assert [r.base_server_state for r in records] == [{}, *(state for _, state in calm[:-1])]
    state_dir = federation.redis.state_dir
    state = federation.store.control.run(killed)
    assert state is not None
    assert state.server_state == calm[-1][1]
    verdicts = list(verify.verify(federation.store, state, state_dir))
    assert [verdict.result for verdict in verdicts] == ["same"] * 3


def test_a_backup_has_what_the_server_keeps(federation: Federation, tmp_path: Path) -> None:
    rounds = "run.rounds=2"
    run = federation.begin("saved", *ADAM, rounds)
    federation.finish(run)
    first = what_was_made(federation.committed(run))
    backup.write(federation.store, run, tmp_path / "saved.zip", federation.redis.state_dir)
    federation.begin("saved", *ADAM, "run.rounds=1")
    federation.finish(run)
    whole = what_was_made(federation.committed(run))
    assert whole[:2] == first
    federation.free(run)

    restored = backup.restore(federation.store, tmp_path / "saved.zip", federation.redis.state_dir)
    # The data server loses it all, and this machine has the checkpoints.
    for digest in restored.server_state.values():
        federation.store.data.drop_chunks(restored.run_id, digest, 1)
    federation.begin("saved", *ADAM, "run.rounds=1")
    federation.finish(restored.run_id)

    assert what_was_made(federation.committed(restored.run_id)) == whole


def test_an_own_strategy_runs_where_it_is_allowed_and_says_so_where_not(
    federation: Federation,
) -> None:
    own = (*COHORT, "aggregation.strategy=mine:Half", "round.max_abandoned=1", "run.rounds=1")
    refused = federation.begin("refused", *own)
    state = federation.finish(refused)
    assert (state.state, "--strategy-allow mine:Half" in state.reason) == ("failed", True)

    federation.stop("aggregator")
    federation.start("aggregator", "--strategy-allow", "mine:Half")
    role = names.AGGREGATOR
    wait_for("the aggregator", lambda: federation.store.control.role_alive(role))
    run = federation.begin("allowed", *own, "strategy.share=0.25")
    assert federation.finish(run).state == "completed"
    assert [set(record.server_state) for record in federation.committed(run)] == [{"last"}]
