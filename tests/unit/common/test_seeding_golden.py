"""Seeds and cohorts as literal values: a change here changes every recorded run."""

import pytest

from fl_queue.common.seeding import seed_for, select_cohort

CLIENTS = [f"client-{number}" for number in range(10)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0,), 3229673090972834898),
        ((0, "demo", 1, "hospital-a", "train"), 7109776514538946658),
        ((42, "partition", "iid"), 2150693505050145915),
        ((2**63 - 1, "é", -1, ""), 3806892717693361366),
    ],
)
def test_seed_values(arguments, expected):
    assert seed_for(*arguments) == expected


@pytest.mark.parametrize(
    ("seed", "round_number", "expected"),
    [(0, 1, [1, 2, 3, 7]), (0, 2, [0, 2, 3, 5]), (7, 1, [0, 1, 2, 6])],
)
def test_cohort_values(seed, round_number, expected):
    chosen = select_cohort(seed, round_number, CLIENTS, 4)
    assert chosen == [f"client-{number}" for number in expected]
