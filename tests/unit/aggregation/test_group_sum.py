"""Sums of a group's updates: the bits of adding them one by one, and who may send one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fl_queue.aggregation import group_sum
from fl_queue.aggregation.group_sum import GroupSum
from fl_queue.aggregation.merge import UpdateMerger
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import MessageError
from fl_queue.protocol import message, tensor_layout, virtual_clients
from fl_queue.protocol.header import Header
from tests.support import exact_sums
from tests.support.group_updates import (
    COHORT,
    CONFIG,
    FIRST,
    MANIFEST,
    ROUND,
    SECOND,
    bits,
    update,
)


def failure(client: str) -> tuple[Header, bytes]:
    header = Header(kind="failure", run="many-3f2a9c", round=1, client=client, reason="no data")
    return header, b""


def element(number: int, *answers: tuple[Header, bytes | bytearray]) -> tuple[Header, memoryview]:
    total = GroupSum(MANIFEST, CONFIG, ROUND)
    for header, body in answers:
        total.take(header, body)
    common = Header(
        kind="group",
        run="many-3f2a9c",
        round=1,
        client=virtual_clients.group(number),
        base_digest="0" * 64,
    )
    return total.element(common)


def merge() -> UpdateMerger:
    return UpdateMerger(MANIFEST, CONFIG.aggregation, ROUND.scales, ROUND.w_max)


def test_sums_of_groups_have_the_bits_of_the_updates_one_by_one() -> None:
    single, grouped = merge(), merge()
    for client in COHORT:
        single.add(*update(client))
    for number, clients in enumerate((FIRST, SECOND)):
        header, body = element(number, *map(update, clients))
        group_sum.check(header, ROUND, CONFIG)
        found, inline = message.unpack(message.pack(header, body), max_body_bytes=1 << 20)
        group_sum.check_layout(found, grouped)
        group_sum.add(found, inline, grouped)

    assert bits(grouped) == bits(single)
    assert bits(single)[2] == 5
    assert np.abs(exact_sums.mean(single.total, "weight_var")).min() > 1e-14


def test_the_headers_behind_a_group_are_the_clients_own() -> None:
    answers = [update(client) for client in FIRST]
    header, _ = element(0, *answers)

    own = [replace(header, tensors=()) for header, _ in answers]
    assert list(group_sum.headers(header)) == [(one, "received", "") for one in own]
    assert list(group_sum.headers(answers[0][0])) == [(answers[0][0], "received", "")]


def test_a_client_that_failed_or_sent_too_much_is_named_and_not_in_the_sum() -> None:
    header, bad = update(SECOND[1])
    bad[8:12] = np.float32(np.nan).tobytes()
    bad_header = replace(header, body_digest=tensor_layout.body_digest(bad))
    whole, body = element(1, update(SECOND[0]), (bad_header, bad), failure(SECOND[2]))
    total, single = merge(), merge()
    group_sum.check(whole, ROUND, CONFIG)
    group_sum.add(whole, body, total)
    single.add(*update(SECOND[0]))

    assert bits(total) == bits(single)
    assert [member.status for member in whole.members] == ["received", "invalid", "failed"]
    assert "'weight' holds nan" in whole.members[1].reason
    assert whole.members[2].reason == "no data"


def test_a_member_loses_a_metric_that_cannot_be_used_and_the_group_is_in() -> None:
    bad = {"num_examples": 3, "loss_sum": float("nan"), "x_sum": 1.0}
    whole, _ = element(0, update(FIRST[0], metrics=bad, train_metrics=bad), update(FIRST[1]))
    group_sum.check(replace(whole, members=whole.members[:2]), ROUND, CONFIG)

    (first, _, reason), (_, _, none) = group_sum.headers(whole)
    assert first.metrics == first.train_metrics == {"num_examples": 3, "x_sum": 1.0}
    assert (reason, none) == ("left out: metrics.loss_sum: is not a finite number", "")


def keeping(config: RunConfig) -> RunConfig:
    return replace(config, model=replace(config.model, keep_updates=True))


@pytest.mark.parametrize(
    ("change", "config", "word"),
    [
        ({"client": "group-2"}, CONFIG, "no group"),
        ({"client": "sim-1"}, CONFIG, "no group"),
        ({"client": "group-1"}, CONFIG, "members"),
        ({}, keeping(CONFIG), "one by one"),
    ],
)
def test_a_group_the_round_does_not_have_is_refused(
    change: dict[str, Any], config: RunConfig, word: str
) -> None:
    header, _ = element(0, *map(update, FIRST))
    group_sum.check(header, ROUND, CONFIG)

    with pytest.raises(MessageError, match=word):
        group_sum.check(replace(header, **change), ROUND, config)
    with pytest.raises(MessageError, match="no group"):
        group_sum.check(header, replace(ROUND, groups=0), CONFIG)


@pytest.mark.parametrize(
    "change",
    [{"weight": 11}, {"num_examples": 0}, {"status": "failed"}, {"metrics": {"num_examples": -1}}],
)
def test_a_member_that_claims_what_cannot_be_is_refused(change: dict[str, Any]) -> None:
    header, _ = element(0, *map(update, FIRST))
    first, *rest = header.members

    with pytest.raises(MessageError):
        group_sum.check(replace(header, members=(replace(first, **change), *rest)), ROUND, CONFIG)


def test_a_sum_beyond_what_its_members_may_weigh_is_refused_and_changes_nothing() -> None:
    header, body = element(0, *map(update, FIRST))
    forged = bytearray(body)
    forged[8:16] = np.int64(2**62).tobytes()
    total = merge()

    with pytest.raises(MessageError, match="digest"):
        group_sum.add(header, forged, total)
    with pytest.raises(MessageError, match="outside"):
        group_sum.add(replace(header, body_digest=tensor_layout.body_digest(forged)), forged, total)
    assert bits(total) == bits(merge())
