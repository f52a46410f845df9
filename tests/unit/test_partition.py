"""Partitions: what each kind means, and what a client holds out."""

import numpy as np
import pytest

from fl_queue.config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.partition import (
    _kept_split,
    client_split,
    dirichlet_hsu,
    dirichlet_label,
    iid,
    shards,
    split,
)

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
    ],
)
def test_an_impossible_split_names_the_field(kind, options, field):
    with pytest.raises(ConfigError) as caught:
        split(kind, TEN_CLASSES[:60], seed=0, **options)
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


@pytest.mark.parametrize("kind", ["iid", "shards", "dirichlet_label", "dirichlet_hsu"])
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
