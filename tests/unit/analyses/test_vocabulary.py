"""Names of levels come back from a sum over sites, and from nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_queue.analyses import vocabulary
from fl_queue.analyses.base import Layout, Limits, SiteRows
from fl_queue.analyses.statistics import Statistics
from fl_queue.errors import ConfigError, PolicyRefusal

NAMES = st.text(min_size=1, max_size=20).filter(vocabulary.can_be_named)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(NAMES, max_size=30, unique=True), min_size=1, max_size=6))
def test_the_names_of_all_sites_are_found_in_the_sum(sites: list[list[str]]) -> None:
    layout = Layout([vocabulary.block("names")])
    words = [layout.packed({"names": vocabulary.words_of(names)}) for names in sites]
    for one in words:
        layout.check(one)
    total = layout.view(sum(words[1:], words[0]), "names")
    assert vocabulary.names_of(total) == sorted({name for names in sites for name in names})


def test_as_many_names_as_promised_are_found_and_too_many_are_none() -> None:
    names = [f"level {number}" for number in range(vocabulary.MAX_NAMES)]
    total = vocabulary.words_of(names) + vocabulary.words_of(names[::2])
    assert vocabulary.names_of(total) == sorted(names)
    assert vocabulary.names_of(vocabulary.words_of(map(str, range(2000)))) is None
    assert vocabulary.names_of(vocabulary.words_of([])) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([2, 2**31, 2**41]))
def test_words_that_are_no_names_are_none(seed: int, cells: int, high: int) -> None:
    """A site may send anything within the limits."""
    drawn = np.random.default_rng(seed)
    total = vocabulary.words_of(["I", "II"])
    at = drawn.integers(0, len(total), cells)
    total[at] += drawn.integers(1, high, total[at].shape)
    assert vocabulary.names_of(total) is None


@pytest.mark.parametrize("text", ["", "a" * 65, "é" * 33, "a\nb", "a\0"])
def test_what_is_too_long_or_not_printed_is_not_named(text: str) -> None:
    assert not vocabulary.can_be_named(text)


def asked(**limits: int) -> dict[str, list[str] | None]:
    analysis = Statistics({**EMPTY, "vocabulary": ("stage",)})
    texts = {"stage": {"I": 40, "II": 10, "rare": 9, "x" * 80: 30}}
    table = SiteRows(89, {}, {}, texts=texts)
    words = analysis.local(analysis.initial(), table, Limits(**limits))
    analysis.first.check(words)
    found = analysis.result(analysis.advance(analysis.initial(), words))
    assert found is not None
    assert analysis.columns.names == ("stage",)
    assert list(analysis.questions()) == ["names of the levels of stage"]
    return dict(found["vocabulary"])


EMPTY = {
    "numbers": (),
    "quantiles": (),
    "levels": {},
    "groups": (),
    "tables": (),
    "correlation": (),
}


def test_a_site_names_levels_with_rows_enough_and_no_more_than_it_shows() -> None:
    assert asked(min_cell=10) == {"stage": ["I", "II"]}
    assert asked() == {"stage": ["I", "II", "rare"]}
    assert asked(min_cell=41) == {"stage": []}
    assert asked(min_cell=10, max_names=3) == {"stage": ["I", "II"]}
    with pytest.raises(PolicyRefusal, match="stage has more levels than are shown"):
        asked(min_cell=10, max_names=2)
    with pytest.raises(PolicyRefusal, match="shows no names of levels"):
        asked(max_names=0)


def test_a_category_is_asked_about_in_one_way() -> None:
    with pytest.raises(ConfigError, match=r"task\.vocabulary: stage is asked about otherwise"):
        Statistics({**EMPTY, "vocabulary": ("stage",), "levels": {"stage": ("I",)}}).asked  # noqa: B018
