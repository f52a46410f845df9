"""Events are written as they always were, and read as their classes declare them."""

from __future__ import annotations

from typing import Any

import pytest

from fl_queue.common.safe_json import dumps
from fl_queue.protocol import events
from fl_queue.protocol.records import Outcome


def read(event: dict[str, Any]) -> dict[str, Any]:
    return events.event_of({b"event": dumps(event).encode()})


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            events.RoundOpened(round=1, purpose="train", clients=1, cohort=("a",)),
            '{"clients":1,"cohort":["a"],"event":"round_opened","purpose":"train","round":1}',
        ),
        (
            events.RoundOpened(round=1, purpose="train", clients=1, cohort=("a",), carried=[]),
            '{"carried":[],"clients":1,"cohort":["a"],"event":"round_opened","purpose":"train","round":1}',
        ),
        (
            events.RunFailed(reason="", version=None),
            '{"event":"run_failed","reason":"","version":null}',
        ),
        (
            events.RunCancelled(reason="x", version=3, by="token"),
            '{"by":"token","event":"run_cancelled","reason":"x","version":3}',
        ),
        (
            events.UpdateReceived(round=2, client="a"),
            '{"client":"a","event":"update_received","round":2}',
        ),
        (
            events.UpdateReceived(round=2, client="a", staleness=1, clients=4),
            '{"client":"a","clients":4,"event":"update_received","round":2,"staleness":1}',
        ),
        (
            events.UpdateReceived(round=2, client="a", reason="left out: x"),
            '{"client":"a","event":"update_received","reason":"left out: x","round":2}',
        ),
        (
            events.EpochFinished(run="r-1", round=1, epoch=1, epochs=2),
            '{"epoch":1,"epochs":2,"event":"epoch","round":1,"run":"r-1"}',
        ),
        (
            events.EpochFinished(
                run="r", round=1, epoch=1, epochs=2, accuracy=0.0, logged={"x": 1}
            ),
            '{"accuracy":0.0,"epoch":1,"epochs":2,"event":"epoch","logged":{"x":1},"round":1,"run":"r"}',
        ),
        (
            events.JobRefusedEvent(job="j", reason="x", by=""),
            '{"by":"","event":"job_refused","job":"j","reason":"x"}',
        ),
    ],
)
def test_an_event_is_written_and_read_with_the_bytes_of_before(
    event: events.Event, text: str
) -> None:
    assert dumps(event.to_dict()) == text
    assert dumps(events.event_of({b"event": text.encode()})) == text


def test_each_outcome_of_a_round_has_its_event() -> None:
    assert {made.kind for made in events.ROUND_ENDS.values()} == {f"round_{o}" for o in Outcome}


def test_clients_that_joined_are_read() -> None:
    event = events.ClientsJoined(round=1, clients=["a", "b"]).to_dict()

    assert read(event) == event


@pytest.mark.parametrize("kind", ["epoch", "healed", "of a newer version"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("client", ["a"]), ("reason", 1), ("round", "1"), ("round", 2**53 + 1), ("round", True),
        ("accuracy", "0.5"), ("accuracy", None), ("loss", 2**60), ("version", "1"), ("logged", [1]),
        ("logged", {"x": "y"}), ("cohort", "a"), ("cohort", [1]), ("left_out", {"a": 1}),
    ],
)  # fmt: skip
def test_a_field_of_another_type_makes_an_entry_unreadable(
    kind: str, name: str, value: object
) -> None:
    assert read({"event": kind, name: value})["event"] == "unreadable"


def test_fields_and_kinds_of_a_newer_version_are_read() -> None:
    event = {"event": "of a newer version", "round": 1, "also": [1, {"x": None}]}

    assert read(event) == event


@pytest.mark.parametrize("clients", [3, ["a"]])
def test_a_field_with_two_types_may_have_either_in_an_unknown_kind(clients: object) -> None:
    event = {"event": "of a newer version", "clients": clients}

    assert read(event) == event
