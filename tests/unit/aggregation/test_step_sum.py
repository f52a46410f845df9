"""The sum of the words of a step, as the aggregator adds and ``verify`` adds again."""

from __future__ import annotations

import numpy as np
import pytest

from fl_queue.aggregation.step_sum import StepSum
from fl_queue.analyses.base import MAX_SITES, Limits, SiteRows
from fl_queue.analyses.statistics import Statistics
from fl_queue.client import approval, disclosure
from fl_queue.errors import MessageError
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.header import Header

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
