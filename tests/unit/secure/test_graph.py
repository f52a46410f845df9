"""The graph: neighbours are mutual, and degree and threshold are those of the bounds."""

from __future__ import annotations

import pytest

from fl_queue.errors import ConfigError
from fl_queue.secure import graph
from fl_queue.secure.graph import Graph, Shape

CONTEXT = bytes(range(32))
CLIENTS = [f"client-{i}" for i in range(100)]


@pytest.mark.parametrize(
    ("cohort", "expected"), [(3, (2, 2)), (4, (3, 3)), (10, (9, 6)), (64, (63, 33))]
)
def test_a_small_cohort_has_the_complete_graph(cohort: int, expected: tuple[int, int]) -> None:
    assert graph.shape(cohort, 0.2, 0.1) == expected


@pytest.mark.parametrize(
    ("corrupt", "dropout", "table"),
    [
        (0.2, 0.1, {100: (32, 21), 200: (46, 30), 500: (60, 39), 1000: (68, 43), 10000: (80, 51)}),
        (0.05, 0.05, {100: (12, 6), 200: (20, 11), 500: (26, 15), 1000: (30, 17), 10000: (34, 20)}),
    ],
)
def test_degree_and_threshold_of_large_cohorts(
    corrupt: float, dropout: float, table: dict[int, tuple[int, int]]
) -> None:
    assert {cohort: tuple(graph.shape(cohort, corrupt, dropout)) for cohort in table} == table
    for cohort, chosen in table.items():
        assert graph.is_safe(cohort, Shape(*chosen), corrupt, dropout)
        assert not graph.is_safe(cohort, Shape(chosen[0], chosen[1] - 2), corrupt, dropout)
        assert cohort < 500 or not graph.is_safe(
            cohort, Shape(chosen[0] * 2, chosen[1]), corrupt, dropout
        )


def test_a_cohort_that_cannot_be_made_safe_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"secure\.max_corrupt"):
        graph.shape(100, 0.7, 0.4)


def test_a_small_graph_is_recorded_complete_and_with_a_majority() -> None:
    assert graph.is_safe(10, Shape(9, 6), 0.2, 0.1)
    assert graph.is_safe(10, Shape(9, 8), 0.2, 0.1)
    assert not graph.is_safe(10, Shape(9, 5), 0.2, 0.1)
    assert not graph.is_safe(10, Shape(8, 6), 0.2, 0.1)
    assert not graph.is_safe(10, Shape(9, 11), 0.2, 0.1)


@pytest.mark.parametrize(("cohort", "needed"), [(3, 3), (4, 3), (10, 7), (12, 9), (100, 67)])
def test_two_lists_cannot_both_have_the_signatures(cohort: int, needed: int) -> None:
    assert graph.confirmations_needed(cohort) == needed
    assert 2 * needed - cohort > cohort / 3


@pytest.mark.parametrize("degree", [12, 32, 98, 99])
def test_neighbours_are_mutual(degree: int) -> None:
    made = Graph(reversed(CLIENTS), degree, CONTEXT)

    assert all(len(made.neighbours(client)) == degree for client in CLIENTS)
    for client in CLIENTS:
        assert all(client in made.neighbours(other) for other in made.neighbours(client))
        assert list(made.neighbours(client)) == sorted(made.neighbours(client))
        assert client not in made.neighbours(client)
        assert set(made.holders(client)) == {client, *made.neighbours(client)}


def test_the_ring_follows_from_the_context() -> None:
    one, other = Graph(CLIENTS, 12, CONTEXT), Graph(CLIENTS, 12, bytes(32))

    assert graph.ring_order(CLIENTS, CONTEXT) == graph.ring_order(CLIENTS[::-1], CONTEXT)
    assert one.neighbours("client-7") != other.neighbours("client-7")


def test_only_those_of_a_roster_are_neighbours() -> None:
    made = Graph(CLIENTS, 99, CONTEXT)

    assert made.neighbours("client-1", {"client-1", "client-2", "client-50"}) == (
        "client-2",
        "client-50",
    )
    assert made.number("client-0") == 1
    assert sorted(made.number(client) for client in CLIENTS) == list(range(1, 101))


def test_two_runs_of_missing_neighbours_cut_the_ring() -> None:
    made = Graph(CLIENTS, 12, CONTEXT)
    ring = graph.ring_order(CLIENTS, CONTEXT)
    cut = {*ring[10:16], *ring[60:66]}

    assert made.is_connected(CLIENTS)
    assert made.is_connected(set(CLIENTS) - set(ring[10:16]))
    assert not made.is_connected(set(CLIENTS) - cut)
    assert not made.is_connected([])
    assert made.is_connected(ring[:1])
    assert Graph(CLIENTS, 99, CONTEXT).is_connected(ring[::30])
