"""Each purpose of a round has a text; a training round's is the caller's."""

from __future__ import annotations

from fl_queue.protocol.records import Purpose
from fl_queue.reporting.purposes import in_words


def test_each_purpose_has_its_own_text() -> None:
    texts = {purpose: in_words(purpose, "round 3") for purpose in Purpose}

    assert texts["train"] == "round 3"
    assert texts["initialise"] == "making version 0"
    assert len(set(texts.values())) == len(texts) == 5
