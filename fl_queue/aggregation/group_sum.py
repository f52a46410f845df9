"""
Updates of several virtual clients as one element: their exact sum, with what a receipt of each needs.

The pool makes it (``GroupSum``), judging each update as the aggregator would have; the aggregator
adds the sum to its own. Integers add up to the same bits in any grouping. No Redis here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Protocol

from fl_queue import metrics
from fl_queue.aggregation.merge import MergedUpdate, RoundSections, UpdateMerger
from fl_queue.aggregation.weighting import weight_of
from fl_queue.errors import MessageError
from fl_queue.protocol import message, tensor_layout, virtual_clients
from fl_queue.protocol.header import GroupMember, Header
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import Verdict
from fl_queue.protocol.state import RoundState
from fl_queue.protocol.tensor_layout import Bytes
from fl_queue.strategies import get_strategy
from fl_queue.strategies.layouts import check_scalars

_SHARED = (
    "client", "token", "num_examples", "scalars", "metrics", "train_metrics", "environment", "train_s",
    "body_bytes", "body_digest",
)  # fmt: skip
#: Metrics that cannot be used, as a receipt names them.
_NAMED = 3


class GroupSections(RoundSections, Protocol):
    """Sections of a round's config that a check of a group needs; a ``RunConfig`` has it."""

    @property
    def is_simulation(self) -> bool:
        """True if the clients are virtual."""

    @property
    def premerges(self) -> bool:
        """True if a group's updates may travel as their sum."""


class GroupSum:
    """
    The sum of a group's updates as they are made.

    Args:
        manifest: The model's.
        config: The round's.
        current: The round.
    """

    def __init__(self, manifest: Manifest, config: RoundSections, current: RoundState) -> None:
        self._merge = UpdateMerger.of_round(manifest, config, current.scales, current.w_max)
        self._members: list[GroupMember] = []

    @property
    def count(self) -> int:
        """Updates in the sum."""
        return self._merge.count

    def take(self, header: Header, body: Bytes) -> None:
        """Add one client's answer to its round: an update, or why there is none."""
        status, reason, added = Verdict.received, "", MergedUpdate(0)
        if header.kind == "failure":
            status, reason = Verdict.failed, header.reason
        else:
            header, reason = with_sound_metrics(header)
            try:
                added = self._merge.take(header, body)
            except MessageError as exc:
                status, reason = Verdict.invalid, exc.reason
        shared = {name: getattr(header, name) for name in _SHARED}
        member = GroupMember(
            **shared, status=status, reason=reason, weight=added.weight, norm=added.norm or 0.0
        )
        self._members.append(member)

    def element(self, header: Header) -> tuple[Header, memoryview]:
        """
        The element to push.

        Args:
            header: Of the round, by the group's name, under a token of its own.
        """
        body = b"".join(
            map(
                tensor_layout.as_bytes, map(tensor_layout.little_endian, self._merge.total.pieces())
            )
        )
        whole = replace(
            header,
            kind="group",
            members=tuple(self._members),
            tensors=tensor_layout.entries(self._merge.layout),
            body_bytes=len(body),
            body_digest=tensor_layout.body_digest(body),
        )
        return whole, memoryview(body)


def with_sound_metrics(header: Header) -> tuple[Header, str]:
    """A header without the sums of metrics that cannot be used, and which these are, in words."""
    lines: dict[str, None] = {}
    found = {}
    for name in ("metrics", "train_metrics"):
        found[name], bad = metrics.sound(getattr(header, name))
        lines |= dict.fromkeys(bad.values())
    if not lines:
        return header, ""
    more = f" and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
    reason = f"left out: {'; '.join([*lines][:_NAMED])}{more}"
    return replace(header, metrics=found["metrics"], train_metrics=found["train_metrics"]), reason


def headers(header: Header) -> Iterator[tuple[Header, Verdict, str]]:
    """
    The clients' own headers behind an element, with verdict and reason as its sender has them.

    An element that is no group is its client's own.
    """
    if header.kind != "group":
        yield header, Verdict.received, ""
        return
    for member in header.members:
        shared = {name: getattr(member, name) for name in _SHARED}
        own = replace(header, kind="update", members=(), tensors=(), chunk_bytes=0, **shared)
        yield own, Verdict(member.status), member.reason


def check(header: Header, current: RoundState, config: GroupSections) -> None:
    """
    Refuse an element that no pool of this round may send.

    Raises:
        MessageError: The round has no groups, these are not the clients of one of its groups, or a
            member's weight is not that of its examples.
    """
    # Groups carry no signatures: a sender with access to ``groups`` must not answer for clients that sign.
    is_ours = current.groups and config.is_simulation
    number = virtual_clients.group_number(header.client) if is_ours else None
    if number is None or number >= current.groups:
        raise MessageError(f"round {current.number} has no group {header.client}")
    members = list(virtual_clients.members(current.cohort, current.groups, number))
    if [member.client for member in header.members] != members:
        raise MessageError(f"the members of {header.client} are others")
    if not config.premerges:
        raise MessageError("this run wants the updates one by one")
    strategy = get_strategy(config.aggregation.strategy, config.strategy)
    for member in header.members:
        metrics.check(member.metrics)
        metrics.check(member.train_metrics)
        is_in = member.status == Verdict.received
        weight = weight_of(config.aggregation, member.num_examples) if is_in else 0
        if is_in:
            check_scalars(strategy, member.scalars)
        if member.weight != weight:
            raise MessageError(f"{member.client}: weight {member.weight} is not {weight}")


def check_layout(header: Header, merge: UpdateMerger) -> None:
    """
    Refuse a group whose body, which need not be here yet, has another layout than the round's.

    Raises:
        MessageError: Names the first tensor that differs.
    """
    message.check_tensors(header, merge.layout)


def add(header: Header, body: Bytes, merge: UpdateMerger) -> None:
    """
    Add a group's sum that ``check_layout`` let pass to a round's, or nothing of it.

    Raises:
        MessageError: It is damaged, or beyond a limit; the sum is as it was.
    """
    message.check_body(header, body)
    inside = [member for member in header.members if member.status == Verdict.received]
    weight = sum(member.weight for member in inside)
    merge.total.add_sum(tensor_layout.views(merge.layout, body), weight, len(inside))
    for member in inside:
        merge.total.add_scalars(
            {name: member.weight * Fraction(value) for name, value in member.scalars.items()}
        )
