"""Messages of a worker and its trainer: read as they were written, and refused by the name of a field otherwise."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_queue.common import safe_json
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import MessageError
from fl_queue.protocol.trainer_messages import (
    Answer,
    Call,
    Failure,
    InitialFile,
    KeptState,
    ModelFile,
    Progress,
    Request,
)

REQUEST = Request(
    call=Call.train,
    run="run-0123456789ab",
    name="beans",
    segment=2,
    config=RunConfig.from_dict({}).to_dict(),
    client="a",
    round=3,
    base_version=2,
    base_digest="0" * 64,
    token="t",
    share=1,
    shares=4,
    exponent=-2,
    model=ModelFile(manifest='{"tensors":[]}', place="cache/r/d", server_state={"c": "cache/r/e"}),
    state=KeptState(place="client-state/r/a/2_d", states=("control",), note="of round 2"),
    initial=InitialFile(place="cache/r/f", record={"tensors": [["w", "<f4", [2, 3]]]}),
)
FAILURE = Failure(
    kind="DataError", field="data.dir", public="line 3", line="line 2 of own", lasts=True
)
MESSAGES = [
    REQUEST,
    Request(call=Call.facts, run="r", name="n", config={}, client="a"),
    Progress(epoch=0, epochs=3),
    Progress(epoch=1, epochs=3, finished={"accuracy": 0.5}, logged={"gap": 2.0}),
    Answer(outcome="done", num_examples=7, metrics={"confusion": [[1, 2], [3, 4]]}),
    Answer(outcome="failed", failure=FAILURE),
    Answer(outcome="done", facts={"classes": "2: cat, dog"}),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_read_as_it_was_written(message: Any) -> None:
    text = safe_json.dumps(message.to_dict())

    assert type(message).from_dict(json.loads(text)) == message


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"call": "push"}, "call"),
        ({"run": 7}, "run"),
        ({"config": []}, "config"),
        ({"round": -1}, "round"),
        ({"exponent": 0.5}, "exponent"),
        ({"allow": ["own:Task"]}, "allow"),
        ({"data_dir": "/etc"}, "data_dir"),
        ({"model": {"manifest": "", "place": "/etc/passwd"}}, "model.place"),
        ({"model": {"manifest": "", "place": ""}}, "model.place"),
        ({"model": {"manifest": "", "place": "a", "server_state": {"c": "/b"}}}, "model.server_"),
        ({"state": {"place": "a//b"}}, "state.place"),
        ({"state": {"states": "control"}}, "state.states"),
    ],
)
def test_a_request_that_is_not_one_names_its_field(change: dict[str, Any], place: str) -> None:
    raw = json.loads(safe_json.dumps(REQUEST.to_dict())) | change

    with pytest.raises(MessageError, match=rf"field {place}"):
        Request.from_dict(raw)


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        {},
        {"outcome": "pushed"},
        {"outcome": "done", "num_examples": True},
        {"outcome": "done", "facts": {"classes": "x" * 1001}},
        {"outcome": "failed", "failure": {"kind": "x" * 65}},
        {"outcome": "failed", "failure": {"kind": "E", "public": "x" * 4097}},
        {
            "outcome": "done",
            "metrics": {"loss_sum": "cell of a table", "x": {"y": {"z": {}}} | {"w": [[[[1]]]]}},
        },
    ],
)
def test_an_answer_that_is_not_one_is_refused(raw: Any) -> None:
    with pytest.raises(MessageError):
        Answer.from_dict(raw)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([Request, Progress, Answer]), plain, st.data())
def test_whatever_is_sent_gives_a_message_or_an_error(kind: Any, value: Any, data: Any) -> None:
    whole = next(message for message in MESSAGES if type(message) is kind).to_dict()
    raw = whole | {data.draw(st.sampled_from(sorted(whole))): value}

    for sent in (value, json.loads(json.dumps(raw))):
        with suppress(MessageError):
            assert type(kind.from_dict(sent)) is kind


def test_a_message_is_not_changed_once_it_is_made() -> None:
    with pytest.raises(AttributeError):
        REQUEST.run = "other"  # type: ignore[misc]
    assert replace(REQUEST, run="other").config is REQUEST.config
