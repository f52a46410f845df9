"""Seeds and cohorts: determinism, independence of order, dependence on seed and round."""

from fl_queue.common.seeding import seed_for, select_cohort

CLIENTS = [f"client-{number}" for number in range(20)]


def test_seed_is_in_range_and_repeatable():
    seeds = {seed_for(seed, "run", 1, "a", "train") for seed in range(500)}
    assert len(seeds) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_for(2**63 - 1, "run") == seed_for(2**63 - 1, "run")


def test_seed_encoding_is_unambiguous():
    lists = [("ab", "c"), ("a", "bc"), ("abc",), ("ab", "c", ""), (1, 2), (12,), ("1", 2), ("é",)]
    assert len({seed_for(0, *parts) for parts in lists}) == len(lists)


def test_cohort_ignores_order_and_repeats():
    chosen = select_cohort(3, 5, CLIENTS, 7)
    assert chosen == select_cohort(3, 5, CLIENTS[::-1] + CLIENTS, 7)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 7


def test_cohort_changes_with_seed_and_round():
    assert select_cohort(0, 1, CLIENTS, 5) != select_cohort(1, 1, CLIENTS, 5)
    assert select_cohort(0, 1, CLIENTS, 5) != select_cohort(0, 2, CLIENTS, 5)


def test_cohort_is_all_clients_when_more_are_wanted_and_empty_when_none():
    assert select_cohort(0, 1, CLIENTS[::-1], 99) == sorted(CLIENTS)
    assert select_cohort(0, 1, CLIENTS, 0) == []
    assert select_cohort(0, 1, [], 3) == []


def test_every_client_is_selected_about_equally_often():
    counts = dict.fromkeys(CLIENTS, 0)
    for round_number in range(1, 2001):
        for client in select_cohort(0, round_number, CLIENTS, 5):
            counts[client] += 1
    # Binomial(2000, 1/4): mean 500, standard deviation 19.4; five of them either side.
    assert all(400 < count < 600 for count in counts.values())
