"""Updates of virtual clients in two groups of one round."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fl_queue.aggregation.merge import UpdateMerger
from fl_queue.aggregation.sum_format import sum_format
from fl_queue.config import loading
from fl_queue.protocol import tensor_layout, virtual_clients
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.records import Purpose
from fl_queue.protocol.state import RoundPhase, RoundState

MANIFEST = Manifest(
    (
        TensorSpec("count", (), "integer_buffer"),
        TensorSpec("weight", (2, 3), "parameter"),
        TensorSpec("weight_var", (2,), "float_buffer"),
    )
)
COHORT = tuple(virtual_clients.clients(5))
CONFIG = loading.load(
    "mnist-3v7", ("clients.kind=simulation", "clients.count=5", "round.cohort=5"), {}
)
SCALES = sum_format(CONFIG.aggregation, {}, 5).scales
ROUND = RoundState(
    number=1,
    state=RoundPhase.open,
    purpose=Purpose.train,
    cohort=COHORT,
    eligible=("sim-1..sim-5",),
    quorum=5,
    deadline_s=60.0,
    grace_s=5.0,
    elapsed_s=0.0,
    quorum_at_s=None,
    opened_at=0.0,
    base_version=0,
    base_digest="0" * 64,
    fence=1,
    data_server="",
    w_max=1 << 20,
    scales={kind: scale.to_list() for kind, scale in SCALES.items()},
    segment=0,
    reason="",
    groups=2,
)
#: Members of the two groups.
FIRST, SECOND = (virtual_clients.members(COHORT, 2, number) for number in (0, 1))


def update(client: str, **changes: Any) -> tuple[Header, bytearray]:
    """Update of a virtual client; its values depend on the client alone."""
    number = int(client.removeprefix("sim-"))
    generator = np.random.default_rng(number)
    body = tensor_layout.encode_body(
        MANIFEST,
        {
            "count": np.array(number, np.int64),
            "weight": generator.normal(size=(2, 3)).astype(np.float32),
            "weight_var": generator.normal(size=2).astype(np.float32) * np.float32(1e-12),
        },
    )
    header = Header(
        kind="update",
        run="many-3f2a9c",
        round=1,
        client=client,
        base_digest="0" * 64,
        token=f"token of {client}",
        num_examples=10 * number,
        metrics={"num_examples": number},
        environment={"threads": 1},
        train_s=0.5,
        tensors=tensor_layout.entries(MANIFEST),
        body_bytes=len(body),
        body_digest=tensor_layout.body_digest(body),
    )
    return replace(header, **changes), body


def bits(total: UpdateMerger) -> tuple[bytes, int, int]:
    """Bytes of a sum, its weight and its number of updates."""
    return (
        b"".join(piece.tobytes() for piece in total.total.pieces()),
        total.total.total_weight,
        total.total.count,
    )
