"""Partitions: what each kind means, and what a client holds out."""

import numpy as np
import pytest

from fl_queue.config.data_section import FLWR_PARTITIONERS, DataSection
from fl_queue.config.run_config import RunConfig, changed_fields
from fl_queue.data.partition import _kept_split, client_split, partition_indices
from fl_queue.data.partitioners import (
    dirichlet_balanced,
    dirichlet_hsu,
    dirichlet_label,
    iid,
    label_count,
    natural,
    quantity_dirichlet,
    quantity_power,
    shards,
)
from fl_queue.errors import ConfigError

TEN_CLASSES = np.tile(np.arange(10), 600)


def classes_in(parts):
    return [len(np.unique(TEN_CLASSES[part])) for part in parts]


def data_section(**values):
    return RunConfig.from_dict({"data": values}).data


def test_iid_shares_have_every_class_and_differ_by_seed():
    first, other = iid(TEN_CLASSES, 10, 0), iid(TEN_CLASSES, 10, 1)
    assert classes_in(first) == [10] * 10
    assert not np.array_equal(first[0], other[0])


def test_two_shards_a_client_are_at_most_two_classes():
    parts = shards(TEN_CLASSES, 100, 0, 2)
    assert {len(part) for part in parts} == {60}
    assert max(classes_in(parts)) == 2
    assert parts[0].tolist() != shards(TEN_CLASSES, 100, 1, 2)[0].tolist()


def test_small_alpha_is_skewed_and_large_alpha_is_not():
    def largest_class_part(parts):
        return np.mean([np.bincount(TEN_CLASSES[part]).max() / len(part) for part in parts])

    for kind in (dirichlet_label, lambda *args: dirichlet_hsu(*args, 100)):
        skewed = largest_class_part(kind(TEN_CLASSES, 20, 0, 0.05))
        even = largest_class_part(kind(TEN_CLASSES, 20, 0, 1000.0))
        assert skewed > 0.5
        assert even < 0.25


def test_the_largest_alpha_there_is_splits_evenly():
    sizes = [len(part) for part in dirichlet_label(TEN_CLASSES, 4, 0, 1.7e308)]
    assert min(sizes) > 1400


def test_dirichlet_label_ends_where_redrawing_never_would():
    # 450 clients at alpha 0.01: no draw ever gives each of them ten samples.
    sizes = [len(part) for part in dirichlet_label(TEN_CLASSES, 450, 0, 0.01)]
    assert min(sizes) >= 10
    assert sum(sizes) == 6000


def test_dirichlet_hsu_uses_other_classes_when_one_runs_out():
    labels = np.array([0] * 95 + [1] * 5)
    parts = dirichlet_hsu(labels, 10, 0, 1e-9, 10)
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))


@pytest.mark.parametrize(
    ("kind", "options", "field"),
    [
        ("iid", {"shares": 61}, "data.shares"),
        ("iid", {"shares": 0}, "data.shares"),
        ("shards", {"shares": 40, "shards_per_client": 2}, "data.shards_per_client"),
        ("dirichlet_hsu", {"shares": 7, "samples_per_client": 10}, "data.samples_per_client"),
        ("site", {"shares": 2}, "data.partition"),
        ("natural", {"shares": 2}, "data.partition"),
        ("natural", {"shares": 4, "owners": np.arange(60) % 3}, "data.shares"),
        ("label_count", {"shares": 2, "labels_per_client": 11}, "data.labels_per_client"),
        ("quantity_sizes", {"shares": 2, "sizes": (20, 41)}, "data.sizes"),
        ("quantity_sizes", {"shares": 3, "sizes": (20, 20)}, "data.sizes"),
        ("quantity_linear", {"shares": 12}, "data.shares"),
        ("quantity_exponential", {"shares": 6}, "data.shares"),
    ],
)
def test_an_impossible_split_names_the_field(kind, options, field):
    options = dict(options)
    shares, owners = options.pop("shares"), options.pop("owners", None)
    data = DataSection(partition=kind, **options)
    with pytest.raises(ConfigError) as caught:
        partition_indices(data, TEN_CLASSES[:60], shares, 0, owners)
    assert caught.value.field == field


def test_a_share_that_does_not_exist_names_the_field():
    data = data_section(partition="iid")
    for share in (-1, 4, 5):
        with pytest.raises(ConfigError) as caught:
            client_split(TEN_CLASSES, data, seed=0, client="a", share=share, shares=4)
        assert caught.value.field == "data.shares"


def test_site_uses_all_samples_whatever_the_share():
    data = data_section(partition="site", validation_fraction=0.25)
    train, held = client_split(TEN_CLASSES, data, seed=0, client="a", share=9, shares=3)
    assert (len(train), len(held)) == (4500, 1500)


def test_a_client_draws_its_numbers_per_class_from_the_ranges():
    data = data_section(train_per_class=[20, 30], validation_per_class=[10, 20])
    seen = set()
    for client in ("a", "b", "c", "d", "e"):
        train, held = client_split(TEN_CLASSES, data, seed=0, client=client, share=0, shares=2)
        trains = np.bincount(TEN_CLASSES[train], minlength=10)
        helds = np.bincount(TEN_CLASSES[held], minlength=10)
        assert ((trains >= 20) & (trains <= 30)).all()
        assert ((helds >= 10) & (helds <= 20)).all()
        seen |= {tuple(trains)}
    assert len(seen) == 5


def test_a_class_with_too_few_samples_is_shared_out_in_proportion():
    labels = np.array([3] * 8 + [7] * 100)
    data = data_section(partition="site", train_per_class=[30, 30], validation_per_class=[10, 10])
    train, held = client_split(labels, data, seed=0, client="a", share=0, shares=1)
    assert np.bincount(labels[train])[[3, 7]].tolist() == [6, 30]
    assert np.bincount(labels[held])[[3, 7]].tolist() == [2, 10]


def test_label_count_gives_each_share_so_many_classes_in_equal_parts():
    for wanted in (1, 2, 3, 10):
        parts = label_count(TEN_CLASSES, 25, 0, wanted)
        assert classes_in(parts) == [wanted] * 25
        assert sorted(np.concatenate(parts).tolist()) == list(range(6000))
        for label in range(10):
            counts = [int((TEN_CLASSES[part] == label).sum()) for part in parts]
            having = [count for count in counts if count]
            assert max(having) - min(having) <= 1


def test_label_count_leaves_unassigned_samples_over():
    parts = label_count(TEN_CLASSES, 3, 0, 1)
    assert [set(TEN_CLASSES[part].tolist()) for part in parts] == [{0}, {1}, {2}]
    assert [len(part) for part in parts] == [600] * 3


def test_label_count_that_leaves_a_share_empty_is_refused():
    with pytest.raises(ConfigError, match="without samples") as caught:
        label_count(np.array([0] * 9 + [1]), 4, 0, 1)
    assert caught.value.field == "data.shares"


def test_quantity_power_sizes_are_those_of_the_formula():
    sizes = sorted((len(part) for part in quantity_power(TEN_CLASSES, 4, 0, 1.0)), reverse=True)
    # 10 each, and of the other 5960: 12, 6, 4 and 3 parts of 25.
    assert np.allclose(sizes, [10 + 5960 * part / 25 for part in (12, 6, 4, 3)], atol=1.0)
    even = [len(part) for part in quantity_power(TEN_CLASSES, 7, 0, 0.0)]
    assert max(even) - min(even) <= 1
    assert min(len(part) for part in quantity_power(TEN_CLASSES, 300, 0, 10.0)) == 10
    # Half of the mean at most, or nothing would be left to skew.
    assert max(len(part) for part in quantity_power(TEN_CLASSES, 600, 0, 10.0)) > 2900


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        # Of 6000 as flwr-datasets computes them: rounded down, and what is left to the last.
        ("LinearPartitioner", [600, 1200, 1800, 2400]),
        ("SquarePartitioner", [200, 800, 1800, 3200]),
        ("ExponentialPartitioner", [192, 522, 1421, 3865]),
    ],
)
def test_sizes_by_a_formula_are_those_of_flwr_datasets(kind, sizes):
    parts = partition_indices(data_section(partition=kind), TEN_CLASSES, 4, 0)
    assert [len(part) for part in parts] == sizes


def test_a_balanced_dirichlet_share_gets_no_class_beyond_the_mean():
    skewed = [len(part) for part in dirichlet_label(TEN_CLASSES, 6, 0, 0.05)]
    balanced = [len(part) for part in dirichlet_balanced(TEN_CLASSES, 6, 0, 0.05)]
    # The class with which it passes the mean is its last: 1000 and at most the 600 of that class.
    assert max(balanced) <= 1600 < max(skewed)
    assert sum(balanced) == 6000


@pytest.mark.parametrize(("theirs", "ours"), FLWR_PARTITIONERS.items())
def test_a_name_of_flwr_datasets_is_recorded_as_ours(theirs, ours):
    given, settings = {"sizes": [10, 20]} if ours == "quantity_sizes" else {}, {"task": "csv"}
    rest = {"run": settings, "task": {"owner": "clinic"}}
    named, plain = (
        RunConfig.from_dict(rest | {"data": {"partition": name, **given}})
        for name in (theirs, ours)
    )
    assert named == plain
    assert named.digest == plain.digest
    assert named.data.partition == ours


def test_quantity_dirichlet_skews_sizes_and_not_labels():
    parts = quantity_dirichlet(TEN_CLASSES, 10, 0, 0.5)
    sizes = [len(part) for part in parts]
    largest = parts[int(np.argmax(sizes))]
    assert max(sizes) > 3 * min(sizes)
    assert np.allclose(np.bincount(TEN_CLASSES[largest]) / len(largest), 0.1, atol=0.05)
    sizes = [len(part) for part in quantity_dirichlet(TEN_CLASSES, 450, 0, 0.01)]
    assert (min(sizes), sum(sizes)) == (6, 6000)


def test_natural_gives_all_of_an_owner_to_one_share_and_deals_owners_evenly():
    owners = np.array([f"writer-{number % 7}" for number in range(6000)])
    parts = natural(TEN_CLASSES, 3, 0, owners)
    hands = [set(owners[part]) for part in parts]
    assert sorted(len(hand) for hand in hands) == [2, 2, 3]
    assert len(set.union(*hands)) == 7
    assert sorted(np.concatenate(parts).tolist()) == list(range(6000))
    assert [set(owners[part]) for part in natural(TEN_CLASSES, 3, 1, owners)] != hands


@pytest.mark.parametrize(
    ("config", "field", "fix"),
    [
        ({"partition": "label_count", "labels_per_client": 11}, "data.labels_per_client", "lower"),
        ({"partition": "natural"}, "data.partition", "csv"),
        (
            {"partition": "shards", "shards_per_client": 101},
            "data.shards_per_client",
            "at most 100",
        ),
        ({"partition": "dirichlet_hsu"}, "data.samples_per_client", "at most 100"),
        ({"shares": 10_001}, "data.shares", "full"),
        ({"labels_per_client": 0}, "data.labels_per_client", "at least 1"),
        ({"exponent": 11.0}, "data.exponent", "at most 10"),
        ({"exponent": -1.0}, "data.exponent", "at least 0"),
        ({"alpha": 0.0}, "data.alpha", "more than 0"),
        ({"partition": "quantity_sizes"}, "data.sizes", "is empty"),
        (
            {"partition": "iid", "sizes": [10, 20]},
            "data.sizes",
            "is for data.partition = quantity_sizes, and it is iid",
        ),
        ({"partition": "SizePartitioner", "sizes": [5] * 99}, "data.sizes", "100 shares"),
        ({"partition": "quantity_sizes", "sizes": [101] * 100}, "data.sizes", "full"),
        ({"partition": "quantity_sizes", "sizes": [0]}, "data.sizes", "at least 1"),
        (
            {"partition": "LinearPartitoner"},
            "data.partition",
            "near LinearPartitioner|did you mean",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_when_the_config_is_read(config, field, fix):
    raw = {"clients": {"kind": "simulation", "count": 100}, "data": config}
    with pytest.raises(ConfigError, match=fix) as caught:
        RunConfig.from_dict(raw)
    assert caught.value.field == field


def test_natural_with_a_table_needs_the_column_of_owners():
    raw = {"run": {"task": "csv"}, "data": {"partition": "natural"}}
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(raw)
    assert caught.value.field == "task.owner"
    assert RunConfig.from_dict(raw | {"task": {"owner": "clinic"}}).task["owner"] == "clinic"


def test_a_run_made_before_a_field_there_is_now_has_its_default():
    old = RunConfig.from_dict({}).record()
    del old["data"]["exponent"]
    assert changed_fields(old, RunConfig.from_dict({}).record()) == []
    other = RunConfig.from_dict({"data": {"exponent": 2.0}}).record()
    assert changed_fields(old, other) == ["data.exponent"]


@pytest.mark.parametrize(
    "kind",
    ["iid", "shards", "label_count", "dirichlet_label", "dirichlet_hsu", "quantity_dirichlet",
     "quantity_power"],
)  # fmt: skip
def test_labels_that_cannot_change_are_split_once_into_the_same_shares(kind):
    fixed, other = TEN_CLASSES.copy(), np.sort(TEN_CLASSES)
    for labels in (fixed, other):
        labels.setflags(write=False)
    data = data_section(partition=kind, samples_per_client=50)

    def share_of(labels, share, seed=0):
        return client_split(labels, data, seed=seed, client="a", share=share, shares=20)

    before = _kept_split.cache_info().misses
    for share in range(20):
        for mine, theirs in zip(share_of(fixed, share), share_of(TEN_CLASSES, share), strict=True):
            assert np.array_equal(mine, theirs)
    assert _kept_split.cache_info().misses == before + 1
    assert not np.array_equal(share_of(fixed, 3, seed=1)[0], share_of(fixed, 3)[0])
    assert np.array_equal(share_of(other, 3)[0], share_of(other.copy(), 3)[0])
