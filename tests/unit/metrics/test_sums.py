"""Metrics: sums add up exactly, untrusted ones are checked, ratios are right."""

import itertools
import math

import numpy as np
import pytest

from fl_queue import metrics
from fl_queue.errors import MessageError
from fl_queue.metrics import (
    best_version,
    check,
    confusion,
    finish,
    logit_histograms,
    merge,
    merge_clients,
    stop_holds,
    told_by,
)


def part(examples, loss_sum, table=None, **extra):
    sums = {"num_examples": examples, "loss_sum": loss_sum, **extra}
    return sums | ({"confusion": table} if table else {})


def test_merge_is_bit_identical_in_any_order():
    parts = [
        part(1, 1e16, [[1, 0], [0, 0]], hits_sum=3),
        part(2, 1.0, [[0, 2], [0, 0]], hits_sum=0.5),
        part(3, -1e16, [[0, 0], [1, 2]], hits_sum=7),
        part(4, 0.1, [[1, 1], [1, 1]], hits_sum=0.1),
    ]
    merged = [merge(list(order)) for order in itertools.permutations(parts)]
    assert all(other == merged[0] for other in merged)
    # A running float sum gives 0.1 or 1.1 or 0.0, by order.
    assert merged[0]["loss_sum"] == 1.1
    assert merged[0]["num_examples"] == 10
    assert merged[0]["confusion"] == [[2, 3], [2, 3]]


def test_merge_passes_over_parts_without_examples_and_keys_not_everyone_has():
    merged = merge([part(2, 1.0, extra_sum=5), {"num_examples": 0, "loss_sum": 9.0}, part(2, 3.0)])
    assert merged == {"num_examples": 4, "loss_sum": 4.0}
    assert merge([]) == {"num_examples": 0}
    assert merge([{}]) == {"num_examples": 0}


def test_merge_of_different_shapes_names_the_key():
    with pytest.raises(MessageError, match="confusion"):
        merge([part(1, 0.0, [[1, 0], [0, 0]]), part(1, 0.0, [[1, 0, 0], [0, 0, 0], [0, 0, 0]])])


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        ({"num_examples": -1}, "num_examples"),
        ({"num_examples": True}, "num_examples"),
        ({"num_examples": 1.0}, "num_examples"),
        ({"num_examples": 2**41}, "num_examples"),
        ({"loss_sum": math.nan}, "loss_sum"),
        ({"loss_sum": math.inf}, "loss_sum"),
        ({"loss_sum": 1e201}, "loss_sum"),
        ({"loss_sum": 10**400}, "loss_sum"),
        ({"loss_sum": "1"}, "loss_sum"),
        ({"confusion": [[1, 2]]}, "confusion"),
        ({"confusion": []}, "confusion"),
        ({"confusion": [[1, -1], [0, 0]]}, "confusion"),
        ({"confusion": [[1, 1.0], [0, 0]]}, "confusion"),
        ({"confusion": [[0]] * 1001}, "confusion"),
        ({"confusion": {"a": 1}}, "confusion"),
        ({"score_histograms": [[0] * 1000]}, "score_histograms"),
        ({"score_histograms": [[0] * 1000, [0] * 999]}, "score_histograms"),
        ({"logit_histograms": [[0] * 1000, [0] * 999]}, "logit_histograms"),
        ({"over": {"loss_sum": [1, 1]}}, "over"),
        ({"accuracy": 1.0}, "accuracy"),
        ({1: 1.0}, "a key"),
        ({"a" * 101 + "_sum": 1.0}, "a key"),
        ({"a" * 65 + "_sum": 1.0}, "a name"),
        ({"_sum": 1.0}, "a name"),
        ({"[/]_sum": 1.0}, "a name"),
        ({"=cmd_sum": 1.0}, "a name"),
        ({"a$b_sum": 1.0}, "a name"),
        ({"../../evil_sum": 1.0}, "a name"),
        ({"dice\n_sum": 1.0}, "a name"),
        ({"\x1b]0;pwned\x07_sum": 1.0}, "a name"),
        ({"personal_[/]_sum": 1.0}, "a name"),
        ({f"{number}_sum": 1 for number in range(65)}, "65 keys"),
        ([1], "not a table"),
    ],
)
def test_check_names_what_is_wrong(bad, key):
    with pytest.raises(MessageError) as caught:
        check(bad)
    assert key in caught.value.reason
    assert caught.value.reason.isprintable()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss_sum", math.nan), ("loss_sum", "1"), ("confusion", [[1, 2]]), ("accuracy", 1.0),
        ("logit_histograms", [[0] * 1000, [0] * 999]), ("x.ratio.max", [1]), ("[/]_sum", 1.0),
        ("personal_loss_sum", math.inf), ("a" * 101 + "_sum", 1.0),
    ],
)  # fmt: skip
def test_a_key_with_a_bad_value_is_lost_alone(key, value):
    good = part(4, 2.0, [[3, 1], [0, 0]], own_sum=1, **metrics.beside("personal", part(2, 1.0)))
    kept, bad = metrics.sound(good | {key: value})
    check(kept)
    assert kept == {name: good[name] for name in good if name != key}
    assert [*bad] == [key[:100]]
    assert bad[key[:100]].isprintable()
    assert metrics.sound(good) == (good, {})


@pytest.mark.parametrize(
    ("bad", "left"),
    [
        ({"num_examples": -1}, {"personal_num_examples", "personal_loss_sum"}),
        ({"personal_num_examples": 0.5}, {"num_examples", "loss_sum", "loss_items_sum"}),
        ({"loss_items_sum": math.nan}, {"num_examples", "personal_num_examples", "personal_loss_sum"}),
        ({f"{number}_sum": 1 for number in range(65)}, set()),
    ],
)  # fmt: skip
def test_what_would_be_divided_by_a_bad_count_goes_with_it(bad, left):
    good = part(4, 2.0, loss_items_sum=40, **metrics.beside("personal", part(2, 1.0)))
    kept, why = metrics.sound(good | bad)
    assert set(kept) == left
    assert why
    assert metrics.sound([1]) == ({}, {"": "metrics: not a table of sums"})
    assert finish(merge_clients({"a": kept, "b": good})).keys() == finish(good).keys()


def test_check_takes_what_evaluation_makes():
    check({})
    histograms = [[0] * 1000, [1] * 1000]
    check(part(3, 0.5, [[1, 1], [0, 1]], logit_histograms=histograms, own_sum=-3))
    check({"num_examples": 3, "score_histograms": histograms})  # An earlier version's.
    check({"F1_sum": 1.0, "top-5.acc_sum": 0.5, "finetuned_own_sum": 1})


def test_two_class_ratios():
    finished = finish(part(10, 5.0, [[4, 1], [2, 3]], weight_sum=20))
    assert finished["loss"] == 0.5
    assert finished["accuracy"] == 0.7
    assert finished["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert finished["weight"] == 2.0


def test_macro_f1_is_over_the_classes_that_occur():
    finished = finish({"num_examples": 6, "confusion": [[2, 0, 0], [1, 3, 0], [0, 0, 0]]})
    assert finished["f1"] == pytest.approx((4 / 5 + 6 / 7) / 2)
    assert finish({"num_examples": 2, "confusion": [[2, 0], [0, 0]]})["f1"] == 0.0


def test_no_examples_have_no_ratios():
    assert finish({"num_examples": 0, "loss_sum": 0.0, "confusion": [[0, 0], [0, 0]]}) == {}
    assert finish({}) == {}


def exact_auc(scores, truth):
    """The share of (class 1, class 0) pairs in the right order, ties half, by ranks."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    positives = int(truth.sum())
    won = ranks[truth == 1].sum() - positives * (positives + 1) / 2
    return won / (positives * (len(truth) - positives))


@pytest.mark.parametrize("prevalence", [0.5, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("spread", [0.5, 1.0, 12.0, 400.0])
def test_auc_is_that_of_all_pairs_however_rare_a_class_and_however_sure_a_model(prevalence, spread):
    generator = np.random.default_rng(5)
    truth = (generator.random(200_000) < prevalence).astype(np.int64)
    odds = np.log(prevalence) - 2 + spread * (generator.normal(0, 1, len(truth)) + 2 * truth)
    halves = [logit_histograms(odds[side::2], truth[side::2]) for side in (0, 1)]
    sums = merge([{"num_examples": 100_000, "logit_histograms": half} for half in halves])
    check(sums)
    assert finish(sums)["auc"] == pytest.approx(exact_auc(odds, truth), abs=2e-3)


def test_auc_of_extremes():
    ends = logit_histograms(np.array([-np.inf, np.inf]), np.array([0, 1]))
    assert finish({"num_examples": 2, "logit_histograms": ends})["auc"] == 1.0
    assert finish({"num_examples": 2, "logit_histograms": ends[::-1]})["auc"] == 0.0
    same = logit_histograms(np.array([0.5, 0.5]), np.array([0, 1]))
    assert finish({"num_examples": 2, "logit_histograms": same})["auc"] == 0.5
    one_class = logit_histograms(np.array([0.5, np.nan]), np.array([1, 1]))
    assert finish({"num_examples": 2, "logit_histograms": one_class}) == {}
    assert sum(map(sum, one_class)) == 2


def test_histograms_of_an_earlier_version_still_have_an_auc():
    old = [[1] + [0] * 999, [0] * 999 + [1]]
    assert finish({"num_examples": 2, "score_histograms": old}) == {"auc": 1.0}
    new = logit_histograms(np.array([1.0, 1.0]), np.array([0, 1]))
    parts = {
        "a": {"num_examples": 2, "score_histograms": old},
        "b": {"num_examples": 5, "logit_histograms": new},
    }
    merged = merge_clients(parts)
    assert finish(merged) == {"auc": 0.5}
    assert told_by(merged) == {"auc": (1, 5)}


def test_clients_with_nothing_held_out_take_nothing_from_the_others():
    full = part(5, 2.0, [[2, 1], [0, 2]])
    alone = finish(full)
    for empty in ({"num_examples": 0}, {}, part(0, 9.0)):
        for most in (1, 60):
            found = merge_clients({"z": full} | {f"c{n}": empty for n in range(most)})
            assert finish(found) == alone
            assert told_by(found) == dict.fromkeys(("accuracy", "f1", "loss"), (1, 5))
    assert merge_clients({"a": {"num_examples": 0}, "b": {}}) == {}


def test_each_metric_is_merged_over_the_clients_that_have_it():
    found = merge_clients(
        {
            "a": part(4, 2.0, [[2, 0], [1, 1]], extra_sum=8),
            "b": {"num_examples": 6, "confusion": [[3, 0], [0, 3]]},  # Its loss is not finite.
            "c": part(10, 1.5, [[1, 0, 0], [0, 4, 0], [0, 0, 5]]),  # Another number of classes.
            "d": {"num_examples": 0},
        }
    )
    assert finish(found) == {
        "loss": 3.5 / 14,
        "accuracy": 0.9,
        "f1": pytest.approx(8 / 9),
        "extra": 2.0,
    }
    assert told_by(found) == {
        "loss": (2, 14),
        "accuracy": (2, 10),
        "f1": (2, 10),
        "extra": (1, 4),
    }
    assert found["num_examples"] == 20


def test_what_is_beside_the_version_has_examples_of_its_own():
    own = metrics.beside("personal", part(2, 1.0, [[1, 0], [0, 1]]))
    found = merge_clients({"a": part(2, 3.0) | own, "b": part(6, 1.0), "c": {"num_examples": 0}})
    assert finish(found) == {
        "loss": 0.5,
        "personal_loss": 0.5,
        "personal_accuracy": 1.0,
        "personal_f1": 1.0,
    }
    assert told_by(found)["personal_accuracy"] == (1, 2)
    assert told_by(found)["loss"] == (2, 8)


def test_confusion_rows_are_the_true_class():
    table = confusion(np.array([0, 0, 1, 2]), np.array([0, 2, 1, 2]), 3)
    assert table == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert all(type(cell) is int for row in table for cell in row)


def test_best_version_is_the_earliest_of_equals():
    found = {3: {"accuracy": 0.9}, 1: {"accuracy": 0.8}, 5: {"accuracy": 0.9}, 0: {"loss": 1.0}}
    assert best_version("accuracy:max", found) == 3
    assert best_version("accuracy:min", found) == 1
    assert best_version("f1:max", found) is None
    assert best_version("f1:max", {}) is None


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("accuracy >= 0.97", True),
        ("accuracy>0.97", False),
        ("loss <= 1e-1", True),
        ("loss < 0.1", False),
        ("auc >= 0.1", False),
        ("", False),
    ],
)
def test_stop_condition(condition, holds):
    assert stop_holds(condition, {"accuracy": 0.97, "loss": 0.1}) is holds


def test_limits_leave_room_for_adding_up():
    assert metrics.MAX_COUNT * 2**22 < 2**63
    assert math.isfinite(metrics.MAX_SUM * 1e100)


@pytest.mark.parametrize(
    ("most", "one"),
    [
        ({"dice.macro.max": [[1.0], [2.0]]}, {"dice.ratio.max": [99, 1]}),
        ({"dice.ratio.max": [1, 2]}, {"dice.root.max": [99, 1]}),
        ({"dice.ratio.max": [1, 2]}, {"dice_sum": 99.0}),
        ({"dice_sum": 0.5}, {"dice.ratio.max": [99, 1]}),
        ({"confusion": [[1, 1], [1, 1]]}, {"accuracy.ratio.max": [1e9, 1]}),
        ({"confusion": [[1, 1], [1, 1]]}, {"accuracy_sum": 1e9, "f1_sum": 1e9}),
        ({"loss_sum": 0.5}, {"loss.ratio.min": [-1e9, 1]}),
        ({"loss_sum": 0.5, "loss_items_sum": 1}, {"loss.ratio.min": [-1e9, 1]}),
        (
            {"score_histograms": [[5] * 1000, [5] * 1000]},
            {"logit_histograms": [[1] + [0] * 999, [0] * 999 + [1]]},
        ),
        ({"logit_histograms": [[5] * 1000, [5] * 1000]}, {"auc.ratio.max": [99, 1]}),
    ],
)
@pytest.mark.parametrize("part_of", ["", "personal_"])
def test_one_client_replaces_no_metric_of_the_others(most, one, part_of):
    def under(sums, examples):
        check(sums)
        return {"num_examples": 1} | {
            f"{part_of}{key}": value for key, value in ({"num_examples": examples} | sums).items()
        }

    honest = {f"c{number}": under(most, 1) for number in range(50)}
    alone = merge_clients(honest)
    # Neither its number of examples nor its name, first or last, gives it a right.
    for name in ("a", "z"):
        found = merge_clients(honest | {name: under(one, 10**9)})
        assert finish(found) == finish(alone)
        assert told_by(found) == told_by(alone)
        assert set(finish(found)) == set(told_by(found))


def test_of_keys_of_equally_many_clients_the_one_of_more_examples_counts():
    parts = {
        "a": {"num_examples": 3, "dice.ratio.max": [1, 4]},
        "b": {"num_examples": 4, "dice.macro.max": [[3], [4]]},
    }
    assert finish(merge_clients(parts)) == {"dice": 0.75}
    assert told_by(merge_clients(parts)) == {"dice": (1, 4)}


def test_a_sum_of_its_own_name_goes_before_the_tables_where_all_have_both():
    both = part(2, 1.0, [[1, 0], [1, 0]], accuracy_sum=2.0, **{"f1.ratio.max": [1, 4]})
    expected = {"loss": 0.5, "accuracy": 1.0, "f1": 0.25}
    assert finish(both) == expected
    assert finish(merge_clients({"a": both, "b": both})) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([math.inf, -math.inf], math.nan),
        ([1e308, 1e308], math.nan),
        ([math.nan, 1.0], math.nan),
        ([math.inf, 1.0], math.inf),
    ],
)
def test_sums_that_are_not_finite_are_merged_without_an_error(values, expected):
    for order in (values, values[::-1]):
        found = merge([{"num_examples": 1, "loss_sum": value} for value in order])
        assert found["loss_sum"] == pytest.approx(expected, nan_ok=True)
        form = [{"num_examples": 1, "x.ratio.max": [value, 1]} for value in order]
        assert merge(form)["x.ratio.max"][0] == pytest.approx(expected, nan_ok=True)
