"""When a run has waited long enough for a better version: a function of its history alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_queue.config import loading
from fl_queue.coordinator.rounds import stopping
from fl_queue.errors import ConfigError
from fl_queue.protocol.records import Outcome, Purpose, RoundRecord
from tests.support.recorded_rounds import abandoned, closing, record, sums


def rounds(*correct: int) -> list[RoundRecord]:
    """Committed rounds, each with the clients' hits of ten on its base version."""
    return [
        record(number + 1, number, validation=sums(hits, 10 - hits))
        for number, hits in enumerate(correct)
    ]


def why(records: list[RoundRecord], patience: int = 2, select: str = "", since: int = 0) -> str:
    return stopping.out_of_patience(select, patience, records, since)


def test_a_run_waits_for_as_many_versions_as_it_has_patience() -> None:
    assert why(rounds(5, 8, 7)) == ""
    assert why(rounds(5, 8, 7, 8)) == "no version has been better than 1 by accuracy for 2 versions"
    assert why(rounds(5, 8, 7, 9)) == ""


def test_the_metric_and_its_direction_are_those_of_run_select() -> None:
    given = [
        record(n + 1, n, validation={"num_examples": 4, "loss_sum": loss})
        for n, loss in enumerate((8.0, 2.0, 4.0, 3.0))
    ]
    assert "better than 1 by loss" in why(given)
    assert "better than 1 by loss" in why(given, select="loss:min")
    assert why(given, select="f1:max") == ""


def test_only_committed_rounds_from_the_start_on_count() -> None:
    given = rounds(9, 5, 6, 5)
    assert why(given)
    assert why(given, since=1) == ""  # The run was continued at version 1, and 2 is better than it.
    assert why([*given, record(5, 4, validation=sums(5, 5))], since=1)
    judged = rounds(9, 5)
    assert why([*judged, abandoned(3, 2), closing(4, 2, validation=sums(1, 9))]) == ""
    assert why([record(1, 0, validation={}), record(2, 1, validation={})]) == ""


@given(st.lists(st.integers(0, 10), max_size=12), st.integers(1, 5))
def test_it_ends_at_the_first_version_that_is_so_many_after_the_best(
    hits: list[int], patience: int
) -> None:
    stopped = next((n for n in range(len(hits) + 1) if why(rounds(*hits[:n]), patience)), None)
    expected, best, at = None, -1, 0
    for index, value in enumerate(hits):
        if value > best:
            best, at = value, index
        elif index - at >= patience:
            expected = index + 1
            break
    assert stopped == expected


def test_a_line_that_was_given_up_stops_nothing() -> None:
    given = rounds(5, 10)
    back = record(3, 0, purpose=Purpose.restore, outcome=Outcome.restored, version=3, validation={})
    assert stopping.has_reached("accuracy >= 0.9", given)
    assert not stopping.has_reached("accuracy >= 0.9", [*given, back])
    assert not stopping.has_reached("accuracy >= 0.9", [*given, back, *rounds(5)])
    assert stopping.has_reached("accuracy >= 0.9", [*given, abandoned(4, 2)])


def test_a_config_without_them_has_the_digest_it_had() -> None:
    plain = loading.load("mnist-3v7", (), {})
    assert "patience" not in plain.record()["run"]
    assert "restore_best" not in plain.record()["run"]
    given_up = loading.load("mnist-3v7", ("run.patience=3", "run.restore_best=true"), {})
    assert given_up.record()["run"]["patience"] == 3
    assert given_up.digest != plain.digest
    with pytest.raises(ConfigError) as caught:
        loading.load("mnist-3v7", ("run.patience=-1",), {})
    assert caught.value.field == "run.patience"
