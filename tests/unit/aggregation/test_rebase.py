"""A BatchNorm model in asynchronous rounds learns as in synchronous ones; no Redis."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from fl_queue import metrics
from fl_queue.aggregation import rebase
from fl_queue.aggregation.merge import UpdateMerger
from fl_queue.aggregation.scales import Scale, choose_scales
from fl_queue.aggregation.staleness import discount
from fl_queue.config import loading
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import RoundRecord
from fl_queue.training import sgd
from fl_queue.training.model_tensors import load_arrays, manifest_of
from tests.support.model_arrays import arrays_of

CLIENTS, EXAMPLES = 8, 300
LIMITS = {"parameter": 64.0, "float_buffer": 65536.0}


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))


def _data(seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(EXAMPLES, 4, generator=generator) * 0.2 + 2
    return TensorDataset(pixels, (pixels[:, 0] > 2).long())


def _trained(manifest: Manifest, base: dict[str, Any], client: int, version: int) -> bytes:
    model = _model()
    load_arrays(model, manifest, base)
    sgd.local_sgd(
        model, _data(client), cross_entropy,
        seed=100 * version + client, epochs=1, batch_size=15, learning_rate=0.3,
    )  # fmt: skip
    local = arrays_of(model, manifest)
    for spec in manifest.tensors:
        if spec.kind != "integer_buffer":
            local[spec.name] = local[spec.name] - base[spec.name]
    return bytes(tensor_layout.encode_body(manifest, local))


def _versions(buffer: int, count: int) -> list[dict[str, Any]]:
    """Versions of clients that answer in turn, each in its own pace of ``CLIENTS / buffer`` versions."""
    loaded = loading.load(None, ("round.mode=async",), {})
    manifest = manifest_of(_model())
    found = discount(loaded.round, buffer, EXAMPLES, LIMITS, {})
    w_max = found.full(EXAMPLES)
    scales = {
        kind: (scale.s, scale.limit)
        for kind, scale in choose_scales(buffer, w_max, LIMITS).items()
        if isinstance(scale, Scale)
    }
    bodies = [bytes(tensor_layout.encode_body(manifest, arrays_of(_model(), manifest)))]
    began = [0] * CLIENTS
    for version in range(count):
        merge = UpdateMerger(manifest, loaded.aggregation, scales, w_max, discount=found)
        record = RoundRecord(
            version, "train", "committed", "", version, "", discount=found.to_dict(), mode="async"
        )
        for turn in range(buffer):
            client = (version * buffer + turn) % CLIENTS
            base = tensor_layout.views(manifest, bodies[began[client]])
            body = _trained(manifest, {k: np.array(v) for k, v in base.items()}, client, version)
            late = version - began[client]
            weight, counted = found.discounted(EXAMPLES, late), found.full(EXAMPLES)
            blocks = tensor_layout.views(manifest, body)
            merge.total.add_blocks(
                lambda spec, views=blocks: [np.array(views[spec.name]).reshape(-1)],  # type: ignore[misc]
                weight, None, 1.0, counted,
            )  # fmt: skip
            record.weights[str(client)], record.staleness[str(client)] = weight, late
            began[client] = version + 1
        stale = rebase.stale_weights(record, manifest)
        older = {one: bodies[one] for one in stale}
        pieces = merge.next_model(bodies[version], older=older, stale=stale)
        bodies.append(b"".join(bytes(piece) for piece in pieces))
    return [
        {name: np.array(value) for name, value in tensor_layout.views(manifest, body).items()}
        for body in bodies
    ]


def _accuracy(version: dict[str, Any]) -> float:
    model = _model()
    load_arrays(model, manifest_of(model), version)
    return metrics.finish(sgd.evaluate(model, _data(99), cross_entropy))["accuracy"]


def test_with_eight_clients_and_a_buffer_of_two_batch_norm_learns_as_in_synchronous_rounds() -> (
    None
):
    stale, fresh = _versions(2, 16), _versions(CLIENTS, 3)
    for version in stale[12:]:
        np.testing.assert_allclose(version["0.running_mean"], 2.0, atol=0.1)
        assert 0.02 < version["0.running_var"].min() <= version["0.running_var"].max() < 0.08
    assert min(map(_accuracy, stale[-5:])) > 0.95
    assert _accuracy(fresh[-1]) - _accuracy(stale[-1]) < 0.03


def test_where_nothing_is_stale_there_is_nothing_to_shift() -> None:
    manifest = manifest_of(_model())
    made = {"buffers": "values"}
    record = RoundRecord(3, "train", "committed", "", 2, "", discount=made, staleness={"a": 0})
    assert rebase.stale_weights(record, manifest) == {}
    late = RoundRecord(
        3, "train", "committed", "", 2, "", discount=made, staleness={"a": 1}, weights={"a": 5}
    )
    assert rebase.stale_weights(late, manifest) == {1: 5}
    assert rebase.stale_weights(late, manifest_of(nn.Linear(2, 2))) == {}


def test_an_infinity_that_stays_is_no_shift() -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    manifest = manifest_of(model)
    body = tensor_layout.encode_body(manifest, arrays_of(model, manifest))
    assert rebase.shifts(manifest, body, {0: body}, {0: 3}, 4)["mask"].tolist() == [0.0, 0.0]
