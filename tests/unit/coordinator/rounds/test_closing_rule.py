"""The closing rule, case by case."""

from __future__ import annotations

import pytest

from fl_queue.coordinator.rounds.lifecycle import closing_rule
from fl_queue.store import RoundState

ROUND = RoundState(
    number=1,
    state="open",
    purpose="train",
    cohort=("a", "b", "c", "d"),
    eligible=("a", "b", "c", "d"),
    quorum=3,
    deadline_s=60.0,
    grace_s=5.0,
    elapsed_s=0.0,
    quorum_at_s=None,
    opened_at=0.0,
    base_version=0,
    base_digest="",
    fence=1,
    data_server="",
    w_max=1,
    scales={},
    segment=0,
    reason="",
)


@pytest.mark.parametrize(
    ("received", "pending", "elapsed_s", "quorum_at_s", "drained", "outcome"),
    [
        (4, 0, 1.0, 1.0, False, "committed"),
        (3, 0, 1.0, 1.0, True, "committed"),
        (3, 1, 1.0, 1.0, True, None),
        (3, 1, 5.9, 1.0, True, None),
        (3, 1, 6.0, 1.0, True, "committed"),
        (3, 1, 60.0, 59.0, True, "committed"),
        (2, 2, 59.9, None, True, None),
        (2, 2, 60.0, None, True, "abandoned"),
        (2, 2, 60.0, None, False, None),
        (2, 0, 1.0, None, True, "abandoned"),
        (1, 1, 1.0, None, True, "abandoned"),
        (0, 4, 0.0, None, True, None),
    ],
)
def test_a_round_ends_by_its_rule(
    received: int,
    pending: int,
    elapsed_s: float,
    quorum_at_s: float | None,
    drained: bool,
    outcome: str | None,
) -> None:
    ending = closing_rule(ROUND, received, pending, elapsed_s, quorum_at_s, drained)

    assert (ending.outcome if ending else None) == outcome
    assert ending is None or f"{received} of 4" in ending.reason
