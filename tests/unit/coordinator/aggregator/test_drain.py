"""When the results list counts as empty, though more keeps coming."""

from __future__ import annotations

import pytest

from fl_queue.coordinator.aggregator import drain
from fl_queue.coordinator.aggregator.drain import QueueDrain


@pytest.mark.parametrize("has_quorum", [False, True])
def test_what_waited_when_the_round_was_due_is_looked_at_and_no_more(has_quorum: bool) -> None:
    made = QueueDrain()
    assert not made.is_over(has_quorum)
    made.begin(100)
    made.record_processed(64, 0.1)
    assert not made.is_over(has_quorum)
    made.record_processed(36, 0.1)
    assert made.is_over(has_quorum)


def test_garbage_takes_no_longer_than_a_bound_once_the_quorum_is_in() -> None:
    made = QueueDrain()
    made.begin(10**6)
    made.record_processed(64, drain.MAX_WASTED_S + 0.1)

    assert made.is_over(has_quorum=True)
    # To abandon a round, all that had come must have been looked at.
    assert not made.is_over(has_quorum=False)
    made.stop()
    assert not made.is_over(has_quorum=True)


def test_nothing_is_asked_while_it_counts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "CHECK_S", 0.0)
    made = QueueDrain()
    assert made.should_check()
    made.begin(5)

    assert not made.should_check()
