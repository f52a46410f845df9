"""Conditions of ``task.where``: how they are written, what they hold for, and which a policy lets in."""

from __future__ import annotations

import pandas as pd
import pytest

from fl_queue.analyses import filters
from fl_queue.analyses.filters import Condition
from fl_queue.errors import ConfigError, DataError

AGES = ["17", "18", "18.0", "18,5", "1e2", "-3"]
DAYS = ["2023-12-31", "2024-01-01", "2024-02-29 12:30:00"]


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">=", "=", "!="])
def test_numbers_are_compared_as_pandas_does(sign: str) -> None:
    """However they are written."""
    ages = pd.Series([17, 18, 18, 18.5, 100, -3])
    compared = {
        "=": ages.eq,
        "!=": ages.ne,
        "<": ages.lt,
        "<=": ages.le,
        ">": ages.gt,
        ">=": ages.ge,
    }
    found = Condition.of_text(f"age {sign} 18").holds(AGES)
    assert found.tolist() == compared[sign](18).tolist()


def test_texts_and_days() -> None:
    """A day is that of a time, too."""
    assert Condition.of_text("sex = F").holds(["F", "M", "f"]).tolist() == [True, False, False]
    assert Condition.of_text("sex != F").holds(["F", "M"]).tolist() == [False, True]
    assert Condition.of_text("seen >= 2024-01-01").holds(DAYS).tolist() == [False, True, True]
    for text, cells, kind in (
        ("age < 5", ["3", "old"], "numbers"),
        ("seen < 2024-01-01", ["3"], "dates"),
    ):
        with pytest.raises(DataError, match=f"compares {kind}, and not all cells are") as refused:
            Condition.of_text(text).holds(cells)
        assert "old" not in str(refused.value)


def test_one_condition_is_written_in_one_way() -> None:
    """The ledger knows it again."""
    wanted = ("age >= 18", "blood type = 0")
    assert tuple(one.text for one in filters.of_texts(["blood type=0", " age >=18.0 "])) == wanted


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["age"], "is no condition"),
        (["age >= "], "is no condition"),
        (["sex == F"], "is no condition"),
        (["18 <= age < 30"], "neither a number nor a date"),
        (["age >= old"], "neither a number nor a date"),
        (["age < nan"], "neither a number nor a date"),
        (["age < 1_0"], "neither a number nor a date"),
        (["age < *"], "is for a site's policy"),
        (["age < 5", "age<5.0"], "stands twice"),
        ([f"a = {place}" for place in range(9)], "has 9 conditions; 8 at most"),
    ],
)
def test_what_is_no_condition(texts: list[str], problem: str) -> None:
    """Each with the field."""
    with pytest.raises(ConfigError, match=problem) as refused:
        filters.of_texts(texts)
    assert refused.value.field == "task.where"


@pytest.mark.parametrize(
    ("condition", "pattern", "is_let_in"),
    [
        ("sex = F", "sex", True),
        ("sex != F", "sex", True),
        ("sex = F", "age", False),
        ("age < 5", "age", False),
        ("age >= 18", "age >= 18.0", True),
        ("age >= 19", "age >= 18", False),
        ("age < 19", "age < *", True),
        ("age <= 19", "age < *", False),
        ("sex = F", "sex = *", True),
    ],
)
def test_what_a_policy_lets_in(condition: str, pattern: str, is_let_in: bool) -> None:
    """A name stands for equality, a star for any value."""
    assert Condition.of_text(condition).is_let_in(pattern) == is_let_in
    assert filters.problem([pattern]) is None


@pytest.mark.parametrize("pattern", ["", "age <", "age < old"])
def test_what_is_no_pattern(pattern: str) -> None:
    """It would let in nothing, without a word."""
    assert filters.problem([pattern]) is not None
