"""What the page shows of a run's beginning, its tags and its branches."""

from __future__ import annotations

from typing import Any

import pytest

from fl_queue.models.initial import Beginning
from fl_queue.protocol.records import Outcome, Purpose, RoundRecord
from fl_queue.reporting.run_status import RunStatus
from fl_queue.web import view_model

DIGEST = "ab" * 32
PARTIAL = Beginning("w.pt", DIGEST, "partial", ("a", "b"), ("head",), ("x", "y"))


def status(version: int | None = 3, **known: Any) -> RunStatus:
    return RunStatus(
        name="demo",
        run_id="demo-1",
        state="training",
        reason="",
        version=version,
        digest="",
        round=3,
        rounds_wanted=5,
        doing="is training",
        waiting_for=[],
        floods=[],
        data_server="",
        config_digest="",
        **known,
    )


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            status(initial=PARTIAL),
            "w.pt (abababababab), partial: 2 loaded, 1 fresh (head), 2 ignored (x, y)",
        ),
        (
            status(initial=Beginning("w.pt", DIGEST, "exact", ("a", "b"))),
            "w.pt (abababababab), exact: 2 loaded, 0 fresh, 0 ignored",
        ),
        (
            status(None, initial=Beginning("w.pt", DIGEST, "exact")),
            "w.pt (abababababab), exact: tensors are counted with version 0",
        ),
        (
            status(initial=Beginning("", "", "exact", ("a",))),
            "a file, exact: 1 loaded, 0 fresh, 0 ignored",
        ),
    ],
    ids=["partial", "exact", "before version 0", "of an older release"],
)
def test_the_initial_weights_are_shown_with_their_mode_and_counts(
    found: RunStatus, text: str
) -> None:
    assert view_model.facts(found) == [("Initial weights", text)]


def test_facts_are_those_that_the_run_has_in_one_order() -> None:
    assert view_model.facts(status()) == []
    base = "abababababab, 1,024 bytes, published"
    found = view_model.facts(
        status(tags={"approved": 2, "trial": 1}, base_part=base, initial=PARTIAL)
    )
    assert [name for name, _ in found] == ["Initial weights", "Base part", "Tags"]
    assert found[1:] == [("Base part", base), ("Tags", "approved = 2, trial = 1")]


def test_the_newest_branches_are_shown_and_rounds_are_none() -> None:
    def record(number: int, outcome: Outcome, purpose: Purpose) -> RoundRecord:
        return RoundRecord(
            round=number,
            purpose=purpose,
            outcome=outcome,
            reason=f"reason {number}",
            base_version=number - 2,
            base_digest=DIGEST,
            version=number,
        )

    trained = [record(n, Outcome.committed, Purpose.train) for n in range(2, 5)]
    restored = [record(n, Outcome.restored, Purpose.restore) for n in range(5, 17)]
    assert view_model.branches(trained) == []
    found = view_model.branches([*trained, *restored])
    assert len(found) == view_model.BRANCHES_SHOWN
    assert found[0] == ("Branch", "version 16 is version 14 again (reason 16)")
    assert found[-1] == ("Branch", "version 7 is version 5 again (reason 7)")
