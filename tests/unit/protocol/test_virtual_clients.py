"""Virtual clients: their names and shares, groups that cut any cohort, and their config fields."""

from __future__ import annotations

import pytest

from fl_queue.config import loading
from fl_queue.errors import ConfigError
from fl_queue.protocol import virtual_clients

SIMULATED = (
    "clients.kind=simulation",
    "clients.count=100",
    "round.cohort=10",
    "data.shares=0",
)


@pytest.mark.parametrize("count", [1, 9, 10, 1234])
def test_virtual_clients_are_sorted_by_number_and_recorded_as_one_entry(count: int) -> None:
    clients = virtual_clients.clients(count)

    assert clients == sorted(clients)
    assert len(set(clients)) == count
    assert clients[-1] == f"sim-{count}"
    assert virtual_clients.compact(count) == [f"{clients[0]}..{clients[-1]}"]


def test_the_share_of_a_virtual_client_is_its_place() -> None:
    population = virtual_clients.compact(120)

    assert [virtual_clients.share_of(c, population) for c in virtual_clients.clients(120)] == [
        *range(120)
    ]
    for stranger in ("sim-121", "sim-000", "sim-1", "sim-0001", "site-001"):
        assert virtual_clients.share_of(stranger, population) == 120


def test_the_share_of_a_site_is_its_place_in_the_order_of_arrival() -> None:
    assert virtual_clients.share_of("b", ["c", "b"]) == 1
    assert virtual_clients.share_of("sim-1", ["sim-1"]) == 0
    assert virtual_clients.share_of("a", ["c", "b"]) == 2
    assert virtual_clients.share_of("a", []) == 0


@pytest.mark.parametrize("size", [*range(1, 40), 1000])
@pytest.mark.parametrize("processes", [1, 2, 3, 16])
def test_groups_cut_a_cohort_into_balanced_parts(size: int, processes: int) -> None:
    cohort = virtual_clients.clients(size)
    groups = virtual_clients.group_count(size, processes)
    parts = [virtual_clients.members(cohort, groups, number) for number in range(groups)]

    assert [client for part in parts for client in part] == cohort
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert min(map(len, parts)) >= 1
    assert max(map(len, parts)) <= virtual_clients.GROUP_SIZE
    for number, part in enumerate(parts):
        jobs = {virtual_clients.job_of(client, cohort, groups) for client in part}
        assert jobs == {virtual_clients.group(number)}
        assert virtual_clients.answerable(virtual_clients.group(number), cohort, groups) == part


def test_a_small_cohort_is_one_group_for_each_process() -> None:
    assert virtual_clients.group_count(10, 2) == 2
    assert virtual_clients.group_count(1, 2) == 1
    assert virtual_clients.group_count(1000, 2) == 64


def test_the_ticket_of_a_member_is_its_groups_and_of_a_site_its_own() -> None:
    cohort = virtual_clients.clients(4)

    assert virtual_clients.ticket_of("sim-3", {"group-0": "a", "group-1": "b"}, cohort, 2) == "b"
    assert virtual_clients.ticket_of("site-1", {"site-1": "a"}, ["site-1"], 0) == "a"
    assert virtual_clients.ticket_of("site-1", {"group-0": "a"}, cohort, 2) is None
    assert virtual_clients.answerable("group-0", ["group-0"], 0) == ["group-0"]


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (("clients.kind=simulation",), "clients.count"),
        ((*SIMULATED, "round.cohort=101"), "round.cohort"),
        ((*SIMULATED, "data.shares=99"), "data.shares"),
        (("clients.kind=real",), "clients.kind"),
        (("run.evaluate_every=-1",), "run.evaluate_every"),
    ],
)
def test_a_simulation_that_cannot_be_is_refused_by_field(
    overrides: tuple[str, ...], field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loading.load("mnist-2nn", overrides, {})

    assert caught.value.field == field


def test_updates_are_merged_before_they_travel_unless_each_is_needed() -> None:
    assert loading.load("mnist-2nn", SIMULATED, {}).premerges
    kept = (*SIMULATED, "model.keep_updates=true")
    assert not loading.load("mnist-2nn", kept, {}).premerges
    median = ("aggregation.strategy=median", "aggregation.weighting=uniform")
    assert not loading.load("mnist-2nn", (*SIMULATED, *median), {}).premerges
