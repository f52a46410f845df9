"""The context differs whenever two parties see anything of a round differently."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fl_queue.aggregation.scales import Scale
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.secure import context
from tests.support.secure_vectors import RUN_KEYS, VIEW

OTHER = {
    "run": "demo-3f2a9d", "number": 4, "purpose": "evaluate", "fetched": "3" * 64, "base_version": 3,
    "config": "3" * 64, "layout": "3" * 64, "bits": 64, "threshold": 3, "degree": 3, "min_cohort": 4,
}  # fmt: skip


@pytest.mark.parametrize("field", [*OTHER, "run_keys"])
def test_a_change_of_one_field_is_another_context(field: str) -> None:
    changed = [OTHER.get(field)]
    if field == "run_keys":
        fewer = {client: RUN_KEYS[client] for client in "ab"}
        changed = [
            fewer, {**RUN_KEYS, "d": RUN_KEYS["c"]}, {**RUN_KEYS, "c": RUN_KEYS["a"]},
            {**fewer, "d": RUN_KEYS["c"]},
        ]  # fmt: skip
    found = {VIEW.digest()} | {replace(VIEW, **{field: value}).digest() for value in changed}

    assert len(found) == 1 + len(changed)


def test_the_order_in_which_keys_came_makes_no_difference() -> None:
    assert replace(VIEW, run_keys=dict(reversed(RUN_KEYS.items()))).digest() == VIEW.digest()
    assert VIEW.cohort == ("a", "b", "c")


def test_parts_cannot_be_moved_between_fields() -> None:
    one = replace(VIEW, run="demo-3f2a9c", purpose="train")
    other = replace(VIEW, run="demo-3f2a9ct", purpose="rain")

    assert one.digest() != other.digest()


def test_the_layout_names_all_that_numbers_mean() -> None:
    sent = Manifest((TensorSpec("w", (2, 3), "parameter"),))
    scales = {"parameter": Scale(22, 64.0)}
    tail = (("weight", 1), ("validation", 5))
    base = (sent, scales, 10, 3, tail, {"velocity": "1" * 64})
    others = [
        (Manifest((TensorSpec("w", (3, 2), "parameter"),)), *base[1:]),
        (sent, {"parameter": Scale(21, 64.0)}, *base[2:]),
        (sent, scales, 11, *base[3:]),
        (*base[:3], 4, *base[4:]),
        (*base[:4], (("weight", 1), ("validation", 4)), base[5]),
        (*base[:5], {"velocity": "2" * 64}),
    ]

    assert len({context.layout_digest(*arguments) for arguments in (base, *others)}) == 7


def test_what_is_signed_names_its_purpose_and_its_round() -> None:
    key, view = bytes(32), VIEW.digest()

    assert context.run_key_statement("r", "a", key) == b"fl-queue run key v1\0r\0a\0" + key
    assert (
        context.mask_key_statement(view, "a", key)
        == b"fl-queue mask key v1\0" + view + b"a\0" + key
    )
    assert context.confirm_statement(view, "1" * 64) == (
        b"fl-queue confirm v1\0" + view + bytes.fromhex("1" * 64)
    )
