"""Partitions: every sample is in at most one share, whatever the labels and parameters."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_queue.config.data_section import PARTITIONS, DataSection
from fl_queue.data.partition import client_split, partition_indices
from fl_queue.data.partitioners import LEAST_SAMPLES, dirichlet_hsu
from fl_queue.data.sized_shares import FORMULAS
from fl_queue.errors import ConfigError

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=200).map(
    lambda values: np.array(values, dtype=np.int64)
)
SEEDS = st.integers(0, 2**63 - 1)
ALPHAS = st.sampled_from([5e-324, 1.7e308]) | st.floats(min_value=1e-3, max_value=1e3)
DATA = DataSection(
    shards_per_client=1, samples_per_client=1, labels_per_client=1, validation_fraction=0.2
)


@pytest.mark.parametrize(
    "kind",
    [
        "iid",
        "shards",
        "dirichlet_label",
        "dirichlet_balanced",
        "quantity_dirichlet",
        "quantity_power",
        "natural",
    ],
)
@given(labels=LABELS, seed=SEEDS, alpha=ALPHAS, data=st.data())
def test_every_sample_is_in_exactly_one_share(kind, labels, seed, alpha, data):
    shares = data.draw(st.integers(1, len(labels)))
    shards = data.draw(st.integers(1, len(labels) // shares))
    options = {
        "alpha": alpha,
        "shards_per_client": shards,
        "exponent": data.draw(st.floats(0.0, 10.0)),
    }
    owners = np.arange(len(labels)) % data.draw(st.integers(shares, len(labels)))
    section = DataSection(partition=kind, **options)
    parts = partition_indices(section, labels, shares, seed, owners)
    assert len(parts) == shares
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))


@given(labels=LABELS, seed=SEEDS, alpha=ALPHAS, data=st.data())
def test_dirichlet_hsu_gives_disjoint_shares_of_equal_size(labels, seed, alpha, data):
    shares = data.draw(st.integers(1, len(labels)))
    size = data.draw(st.integers(1, len(labels) // shares))
    parts = dirichlet_hsu(labels, shares, seed, alpha, size)
    assert [len(part) for part in parts] == [size] * shares
    joined = np.concatenate(parts)
    assert len(set(joined.tolist())) == len(joined)
    assert set(joined.tolist()) <= set(range(len(labels)))


@given(labels=LABELS, seed=SEEDS, data=st.data())
def test_label_count_gives_disjoint_shares_of_so_many_classes_or_an_error(labels, seed, data):
    shares = data.draw(st.integers(1, len(labels)))
    wanted = data.draw(st.integers(1, 7))
    section = DataSection(partition="label_count", labels_per_client=wanted)
    classes = len(np.unique(labels))
    if wanted > classes:
        with pytest.raises(ConfigError, match=r"data\.labels_per_client"):
            partition_indices(section, labels, shares, seed)
        return
    try:
        parts = partition_indices(section, labels, shares, seed)
    except ConfigError as error:
        refused = error.field
        parts = []
    else:
        refused = ""
    assert refused == ("" if parts else "data.shares")
    if refused:
        return
    joined = np.concatenate(parts).tolist()
    assert len(set(joined)) == len(joined)
    assert all(1 <= len(np.unique(labels[part])) <= wanted for part in parts)
    assert all((np.diff(part) > 0).all() for part in parts)


@given(labels=LABELS, seed=SEEDS, data=st.data())
def test_no_share_has_too_few(labels, seed, data):
    shares = data.draw(st.integers(1, len(labels)))
    for kind in ("quantity_dirichlet", "quantity_power"):
        section = DataSection(partition=kind, alpha=0.01, exponent=10.0)
        sizes = [len(part) for part in partition_indices(section, labels, shares, seed)]
        assert min(sizes) >= max(1, min(LEAST_SAMPLES, len(labels) // (2 * shares)))
    sizes = [len(part) for part in partition_indices(DataSection(), labels, shares, seed)]
    assert max(sizes) - min(sizes) <= 1
    for kind in ("dirichlet_label", "dirichlet_balanced"):
        section = DataSection(partition=kind, alpha=0.01)
        sizes = [len(part) for part in partition_indices(section, labels, shares, seed)]
        assert min(sizes) >= min(LEAST_SAMPLES, len(labels) // shares)


@given(labels=LABELS, seed=SEEDS, data=st.data())
def test_given_sizes_are_the_sizes_of_disjoint_shares(labels, seed, data):
    sizes = tuple(data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=8)))
    section = DataSection(partition="quantity_sizes", sizes=sizes)
    if sum(sizes) > len(labels):
        with pytest.raises(ConfigError, match=r"data\.(sizes|shares)"):
            partition_indices(section, labels, len(sizes), seed)
        return
    parts = partition_indices(section, labels, len(sizes), seed)
    assert tuple(map(len, parts)) == sizes
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert len(set(np.concatenate(parts).tolist())) == sum(sizes)


@given(labels=LABELS, seed=SEEDS, kind=st.sampled_from(sorted(FORMULAS)), data=st.data())
def test_sizes_by_a_formula_use_every_sample_or_the_shares_are_too_many(labels, seed, kind, data):
    shares = data.draw(st.integers(1, len(labels)))
    section = DataSection(partition=kind)
    try:
        parts = partition_indices(section, labels, shares, seed)
    except ConfigError as error:
        refused = error.field
        parts = []
    else:
        refused = ""
    assert refused == ("" if parts else "data.shares")
    if not refused:
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
        assert [len(part) for part in parts] == sorted(map(len, parts))


@settings(max_examples=50)
@given(labels=LABELS, seed=SEEDS, kind=st.sampled_from(PARTITIONS))
def test_equal_arguments_give_equal_shares(labels, seed, kind):
    options = {
        "shards_per_client": 1,
        "samples_per_client": 1,
        "labels_per_client": 1,
        "sizes": (1,),
    }
    section, owners = DataSection(partition=kind, **options), np.arange(len(labels))
    first = partition_indices(section, labels, 1, seed, owners)
    again = partition_indices(section, labels, 1, seed, owners)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@given(
    labels=LABELS,
    seed=SEEDS,
    train_span=st.sampled_from([(), (1, 1), (3, 8), (50, 90)]),
    held_span=st.sampled_from([(), (1, 1), (2, 5), (40, 60)]),
    fraction=st.floats(0.0, 0.9),
    data=st.data(),
)
def test_training_and_validation_are_disjoint_and_inside_the_share(
    labels, seed, train_span, held_span, fraction, data
):
    shares = data.draw(st.integers(1, len(labels)))
    config = replace(
        DATA,
        train_per_class=train_span,
        validation_per_class=held_span,
        validation_fraction=fraction,
    )
    parts = partition_indices(config, labels, shares, seed)
    for share, part in enumerate(parts):
        train, held = client_split(
            labels, config, seed=seed, client="a", share=share, shares=shares
        )
        both = train.tolist() + held.tolist()
        assert len(set(both)) == len(both)
        assert set(both) <= set(part.tolist())
        assert len(train) > 0


@given(labels=LABELS, extra=st.integers(1, 5))
def test_more_shares_than_samples_names_the_field(labels, extra):
    with pytest.raises(ConfigError) as caught:
        partition_indices(DataSection(), labels, len(labels) + extra, 0)
    assert caught.value.field == "data.shares"


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_owner_is_in_training_and_in_validation(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 200))
    owners = np.array(data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)))
    fraction = data.draw(st.floats(0.0, 0.9))
    options = replace(DATA, partition="site", validation_fraction=fraction)
    labels = np.zeros(count, np.int64)
    arguments = {"seed": 1, "client": "a", "share": 0, "shares": 1, "owners": owners}
    train, held = client_split(labels, options, **arguments)
    assert sorted([*train, *held]) == list(range(count))
    assert len(train) > 0
    if len(np.unique(owners)) > 1:
        assert not set(owners[train]) & set(owners[held])
        assert len(held) <= max(fraction * count, count / 4)
        smallest = np.unique(owners, return_counts=True)[1].min()
        assert (len(held) > 0) == (
            int(fraction * count) > 0 and smallest <= max(int(fraction * count), count / 4)
        )
