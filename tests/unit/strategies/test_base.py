"""The base class of strategies: its example runs, and old names of members work for one release."""

from __future__ import annotations

import doctest
import warnings

import pytest

from fl_queue.strategies import Strategy, base, get_strategy
from fl_queue.strategies.renamed_members import RENAMED


def test_the_example_in_the_documentation_runs() -> None:
    found = doctest.DocTestFinder(recurse=False).find(
        base.Strategy, "Strategy", module=base, globs={}
    )
    assert len(found) == 1
    assert len(found[0].examples) >= 3
    result = doctest.DocTestRunner().run(found[0])
    assert (result.failed, result.attempted) == (0, len(found[0].examples))


def test_an_own_strategy_with_the_old_names_works_and_warns() -> None:
    with pytest.warns(DeprecationWarning, match="of a strategy is") as warned:

        class Old(Strategy):
            takes_stale = True

            def fewest(self) -> int:
                return super().fewest() + 2  # type: ignore[misc, no-any-return]

            def pull(self) -> float:
                return 0.5

    texts = [str(each.message) for each in warned]
    assert len(texts) == len(RENAMED)
    assert all(
        any(f"{old} of a strategy is {new} now" in t for t in texts) for old, new in RENAMED.items()
    )
    strategy = Old()
    assert strategy.supports_async
    assert (strategy.min_updates(), strategy.proximal_strength()) == (3, 0.5)
    assert (Strategy().min_updates(), Strategy().supports_async) == (1, False)
    assert warned[0].filename == __file__


def test_the_new_names_do_not_warn_and_win() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class New(Strategy):
            supports_async = True
            takes_stale = False

            def min_updates(self) -> int:
                return 4

    assert New.supports_async
    assert New().min_updates() == 4


def test_a_class_derived_from_an_old_one_keeps_what_it_inherits() -> None:
    with pytest.warns(DeprecationWarning, match="min_updates"):

        class Old(Strategy):
            def fewest(self) -> int:
                return 7

    class Further(Old):
        pass

    assert Further().min_updates() == 7
    assert get_strategy("krum").min_updates() > 1
