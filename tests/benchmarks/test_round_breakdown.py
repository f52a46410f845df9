"""The breakdown of a round counts every step once, and follows the code it measures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.cases import round_breakdown
from benchmarks.cases.round_breakdown import Cost, Stopwatch


class Clock:
    """Stands still but for what is spent on it, half of it by the processor."""

    def __init__(self) -> None:
        self.at = Cost()

    def __call__(self) -> Cost:
        return self.at

    def spend(self, seconds: float) -> None:
        self.at = self.at.plus(Cost(seconds, seconds / 2))


def test_what_is_spent_in_an_inner_step_counts_for_it_alone() -> None:
    clock = Clock()
    watch = Stopwatch(clock)

    with watch.step("outer"):
        clock.spend(1)
        with watch.step("inner"):
            clock.spend(4)
        with watch.step("inner"):
            clock.spend(8)
        clock.spend(2)

    assert watch.costs == {"inner": Cost(12, 6), "outer": Cost(3, 1.5)}


def test_making_items_is_counted_and_not_what_is_done_with_them() -> None:
    clock = Clock()
    watch = Stopwatch(clock)

    def items() -> Iterator[int]:
        for number in range(3):
            clock.spend(1)
            yield number

    taken = []
    for item in watch.timed("made", items)():
        clock.spend(10)
        taken.append(item)

    assert taken == [0, 1, 2]
    assert watch.costs == {"made": Cost(3, 1.5)}


def test_entering_is_counted_and_not_the_block() -> None:
    clock = Clock()
    watch = Stopwatch(clock)

    @contextmanager
    def entered() -> Iterator[str]:
        clock.spend(1)
        yield "inside"

    with watch.timed("entered", entered)() as value:
        clock.spend(10)

    assert value == "inside"
    assert watch.costs == {"entered": Cost(1, 0.5)}


def test_every_step_is_met_in_a_round() -> None:
    found = round_breakdown.walked(300_000, clients=2, count=1)

    met = {label for costs in found.values() for label in costs}
    assert met == {label for label, _ in round_breakdown.STEPS} | {
        round_breakdown.HASH,
        round_breakdown.REST,
    }
    assert round_breakdown.steps_table(found, 1_200_000, 2).count("\n") == len(met) + 4
