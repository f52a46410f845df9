"""The sum of the words of a step, as the aggregator adds and ``verify`` adds again."""

from __future__ import annotations

import numpy as np
import pytest

from fl_queue.aggregation.step_sum import StepSum
from fl_queue.analyses.base import MAX_SITES, Limits, SiteRows
from fl_queue.analyses.statistics import Statistics
from fl_queue.client import approval, disclosure
from fl_queue.errors import AnalysisError, MessageError
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.header import Header
from tests.support.tiny_fit import TinyFit

ANALYSIS = Statistics(
    {
        "numbers": ("age",),
        "quantiles": (0.5,),
        "levels": {},
        "groups": (),
        "tables": (),
        "correlation": (),
    }
)
START = ANALYSIS.initial()


def words_of(ages: list[float]) -> np.ndarray:
    """A site's words of the first step."""
    table = SiteRows(len(ages), {"age": np.array(ages, np.float64)}, {})
    return ANALYSIS.local(START, table, Limits())


def message(words: np.ndarray) -> tuple[Header, bytes]:
    """Words as they travel."""
    body = words.astype("<i8").tobytes()
    header = Header(
        kind="sums",
        run="r",
        round=1,
        client="a",
        tensors=tensor_layout.entries(ANALYSIS.layout(START).manifest),
        body_bytes=len(body),
        body_digest=tensor_layout.body_digest(body),
    )
    return header, body


def test_the_state_is_that_of_all_rows() -> None:
    """Whether vectors or partial sums are added, and in whatever order."""
    sites = [[20.0, 30.5], [1e9, 0.1, 0.1], [-7.0]]
    pooled = StepSum(ANALYSIS, START)
    pooled.add(*message(words_of([age for ages in sites for age in ages])))
    one, rest = StepSum(ANALYSIS, START), StepSum(ANALYSIS, START)
    rest.add(*message(words_of(sites[2])))
    rest.add(*message(words_of(sites[0])))
    one.add(*message(words_of(sites[1])))
    [body] = rest.pieces()
    one.add_sum(tensor_layout.views(one.layout, bytes(body)), rest.total_weight, rest.count)
    assert one.count == 3
    found, wanted = one.next_state(), pooled.next_state()
    assert found[1] == 3
    found[1] = 1  # The number of sites.
    assert np.array_equal(found, wanted)


def test_words_beyond_a_limit_are_not_added() -> None:
    """The sum stays as it was."""
    step, words = StepSum(ANALYSIS, START), words_of([1.0])
    words[1] = -1
    with pytest.raises(MessageError, match="outside its limits"):
        step.add(*message(words))
    assert (step.count, int(np.abs(step.total).sum())) == (0, 0)


def test_a_body_that_is_not_that_of_its_header() -> None:
    """Damaged on its way."""
    header, body = message(words_of([1.0]))
    with pytest.raises(MessageError):
        StepSum(ANALYSIS, START).add(header, body[:-8] + b"\1" * 8)


def test_words_of_another_step_are_refused_before_their_body_is_read() -> None:
    """Their layout is another one."""
    step = StepSum(ANALYSIS, START)
    header, body = message(words_of([1.0]))
    step.check(header)
    step.add(header, body)
    after = StepSum.of_body(ANALYSIS, step.next_state().astype("<i8").tobytes())
    with pytest.raises(MessageError):
        after.check(header)


def test_no_more_sites_than_the_words_have_room_for() -> None:
    """A sum cannot wrap around."""
    step = StepSum(ANALYSIS, START)
    step.count = MAX_SITES
    with pytest.raises(MessageError, match="more than 1024 sites"):
        step.add(*message(words_of([1.0])))


def test_a_state_of_another_analysis_is_refused() -> None:
    """It has another number of words."""
    other = replace_quantiles(())
    with pytest.raises(MessageError):
        StepSum.of_body(ANALYSIS, other.initial().tobytes())


def replace_quantiles(quantiles: tuple[float, ...]) -> Statistics:
    """The same questions with other quantiles."""
    return Statistics({**ANALYSIS.options, "quantiles": quantiles})


def test_words_wait_for_approval_and_are_shown_there() -> None:
    """A site that decides on each answer decides on sums of its rows, too."""
    header, body = message(words_of([20.0, 30.0]))
    assert approval.needed(header)
    found = disclosure.describe_update(header, memoryview(body))
    [tensor] = found["tensors"]
    assert (tensor["name"], tensor["dtype"], tensor["nbytes"]) == ("words", "int64", len(body))


@pytest.mark.parametrize(
    ("bound", "left", "wanted"), [(100.0, 3, True), (100.0, 0, True), (1.0, 3, False)]
)
def test_a_fit_ends_with_its_first_result(bound: float, left: int, wanted: bool) -> None:
    """Whatever number of steps is left."""
    fit = TinyFit({"column": "age", "most": 5, "bound": bound, "fails_at": 0})
    state = fit.initial()
    for _ in range(2):
        table = SiteRows(2, {"age": np.array([20.0, 30.0])}, {})
        state = fit.advance(state, fit.local(state, table, Limits()))
    assert StepSum(fit, fit.initial()).is_last(state, left) is wanted


def test_a_fit_without_a_result_after_its_last_step() -> None:
    """An error, whose sentence ends the run; statistics end with their last step."""
    fit = TinyFit({"column": "age", "most": 5, "bound": 1.0, "fails_at": 0})
    with pytest.raises(AnalysisError, match=r"^no result in 5 steps$"):
        StepSum(fit, fit.initial()).is_last(fit.initial(), 0)
    step = StepSum(ANALYSIS, START)
    assert [step.is_last(START, left) for left in (1, 0)] == [False, True]
