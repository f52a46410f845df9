"""The base part of a model: what is in it, its digest, and how a site comes by it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from fl_queue.client.local_update import ClientTrainer
from fl_queue.client.version_zero import VersionZero, version_zero
from fl_queue.common.files import Mapped
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, DataError, MessageError, ModelMismatch
from fl_queue.protocol.base_part import ITEM_BYTES, BasePart, BaseTensor, digest_of
from fl_queue.protocol.manifest import Manifest
from fl_queue.tasks.base import ClientData, OnEpoch, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.training import base_part
from fl_queue.training.model_tensors import manifest_of, state_of


class Mixed(nn.Module):
    """Frozen tensors of four dtypes under a layer that is trained in bfloat16."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8).to(dtype).requires_grad_(False)
        self.codes = nn.Parameter(torch.arange(8).to(torch.uint8), requires_grad=False)
        self.head = nn.Linear(8, 3).to(torch.bfloat16)
        self.register_buffer("mask", torch.tensor([True] * 7 + [False]))
        self.register_buffer("positions", torch.arange(8))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        hidden = self.body(rows.to(self.body.weight.dtype)).to(torch.bfloat16)
        return self.head(hidden * self.mask).float()


class MixedTask(Task):
    def build_model(self) -> nn.Module:
        return Mixed()

    def client_data(self, context: ClientContext) -> ClientData:
        rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
        data = TensorDataset(rows, rows.argmax(dim=1) % 3)
        return ClientData(TensorDataset(*data[:30]), TensorDataset(*data[30:]))


class Still(MixedTask):
    """Trains nothing."""

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> dict[str, Any]:
        return {"num_examples": 30}


class Elsewhere(MixedTask):
    """Builds other frozen values than version 0, as from another file of weights."""

    def build_model(self) -> nn.Module:
        model = Mixed()
        with torch.no_grad():
            model.body.weight.add_(1)
        return model


class Wider(MixedTask):
    def build_model(self) -> nn.Module:
        return Mixed(torch.float32)


def touching(change: Callable[[Mixed], object]) -> type[MixedTask]:
    class Touching(Still):
        def train(
            self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
        ) -> dict[str, Any]:
            assert isinstance(model, Mixed)
            with torch.no_grad():
                change(model)
            return super().train(model, data, context, on_epoch)

    return Touching


def task_of(kind: type[Task] = MixedTask, **model: Any) -> Task:
    return kind(RunConfig.from_dict({"run": {"task": "x:y", "seed": 3}, "model": model}))


def trainer_of(task: Task, made: VersionZero, fetch: Any = None) -> ClientTrainer:
    context = ClientContext.of(task.config, client="a", run="demo", round_number=1)
    return ClientTrainer(task, made.manifest, made.arrays, context, fetch_base_part=fetch)


def base_of(manifest: Manifest) -> BasePart:
    assert manifest.base is not None
    return manifest.base


def test_frozen_tensors_masks_and_named_buffers_are_the_base_and_keep_their_dtypes() -> None:
    made = version_zero(task_of(constant=["pos*"]), 3)
    assert [(one.name, one.dtype, one.shape) for one in base_of(made.manifest).tensors] == [
        ("body.bias", "BF16", (8,)),
        ("body.weight", "BF16", (8, 4)),
        ("codes", "U8", (8,)),
        ("mask", "BOOL", (8,)),
        ("positions", "I64", (8,)),
    ]
    assert [spec.name for spec in made.manifest.tensors] == ["head.bias", "head.weight", "steps"]
    body = made.base_body()
    assert len(body) == base_of(made.manifest).nbytes == 16 + 64 + 8 + 8 + 64
    found = base_of(made.manifest).views(body)
    weight = state_of(made.model)["body.weight"].view(torch.int16).numpy()
    assert bytes(found["body.weight"]) == weight.tobytes()
    assert bytes(found["codes"]) == bytes(range(8))
    assert base_of(made.manifest).is_of(body)
    assert Manifest.from_json(made.manifest.to_json()) == made.manifest


def test_a_model_with_nothing_frozen_has_no_base_and_today_s_manifest() -> None:
    class Plain(MixedTask):
        def build_model(self) -> nn.Module:
            model = nn.Sequential(nn.Linear(2, 2))
            model.register_buffer("mask", torch.ones(2, dtype=torch.bool))
            return model

    made = version_zero(task_of(Plain), 3)
    assert made.manifest.base is None
    assert made.manifest == manifest_of(made.model)
    assert '"mask"' in made.manifest.to_json()


def test_a_pattern_of_no_buffer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"'position' matches no buffer.*positions"):
        version_zero(task_of(constant=["position"]), 3)


def test_a_build_with_the_digest_fetches_nothing_and_one_without_is_given_the_runs() -> None:
    made, fetched = version_zero(task_of(), 3), []

    def fetch() -> bytes:
        fetched.append(1)
        return made.base_body()

    own = trainer_of(task_of(), made, fetch).train()
    assert not fetched
    other = trainer_of(task_of(Elsewhere), made, fetch).train()
    assert len(fetched) == 1
    for name in own.tensors:
        assert own.tensors[name].tobytes() == other.tensors[name].tobytes()


def test_a_model_on_the_cpu_uses_a_private_map_in_place_and_the_file_stays_as_it_is(
    tmp_path: Path,
) -> None:
    made, file = version_zero(task_of(), 3), tmp_path / "base"
    base, body = base_of(made.manifest), bytes(made.base_body())
    file.write_bytes(body)
    mapped = Mapped(file, private=True)
    begin = np.frombuffer(mapped.view, np.uint8).ctypes.data
    state = state_of(Mixed())
    base_part.ensure(state, base, lambda: mapped.view)
    weight = state["body.weight"]
    offset = next(offset for one, offset in base.offsets() if one.name == "body.weight")
    assert weight.data_ptr() == begin + offset
    assert b"".join(base_part.pieces(state, base.tensors)) == body
    watched = base_part.Untouched(state, base)
    with torch.no_grad():
        weight.zero_()
    with pytest.raises(ModelMismatch, match=r"body\.weight is frozen"):
        watched.check(state)
    assert file.read_bytes() == body


@pytest.mark.parametrize("begin", [0, 1])
def test_bytes_that_torch_cannot_use_are_copied(begin: int) -> None:
    made = version_zero(task_of(), 3)
    base, body = base_of(made.manifest), bytes(made.base_body())
    read_only = memoryview(bytes(begin) + body)[begin:]
    unaligned = memoryview(bytearray(1) + body)[1:]
    for given_body in (read_only, unaligned):
        state = state_of(Mixed())
        base_part.ensure(state, base, lambda given_body=given_body: given_body)  # type: ignore[misc]
        assert b"".join(base_part.pieces(state, base.tensors)) == body
        assert state["positions"].data_ptr() % 8 == 0


def test_building_the_base_draws_nothing_from_the_trainings_generators() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    with base_part.initialising(3):
        torch.rand(9), np.random.rand(9), random.random()
    found = torch.rand(()).item(), np.random.rand(), random.random()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    assert found == (torch.rand(()).item(), np.random.rand(), random.random())


def test_a_site_without_the_base_is_refused_by_its_digest() -> None:
    made = version_zero(task_of(base="local"), 3)
    assert made.manifest.initial_nbytes == made.manifest.nbytes
    digest = base_of(made.manifest).digest[:12]
    with pytest.raises(DataError, match=f"base part {digest}: is not at this site and not publ"):
        trainer_of(task_of(Elsewhere), made).train()
    with pytest.raises(DataError, match="cannot be fetched here"):
        trainer_of(task_of(Elsewhere), version_zero(task_of(), 3)).train()


def test_a_task_that_builds_another_base_is_refused_with_the_tensor() -> None:
    made = version_zero(task_of(), 3)
    with pytest.raises(ModelMismatch, match=r"frozen tensor body.bias: F32 .* BF16"):
        trainer_of(task_of(Wider), made).train()


def test_the_rounding_of_a_bfloat16_tensor_is_never_sent() -> None:
    made = version_zero(task_of(), 3)
    arrays = {
        name: array + np.float32(1e-5) if array.dtype == np.float32 else array
        for name, array in made.arrays.items()
    }
    sent = trainer_of(task_of(Still), replace(made, arrays=arrays)).train().tensors
    assert all(not np.any(sent[name]) for name in ("head.bias", "head.weight"))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.body.weight.mul_(2),
        lambda model: model.body.bias.data.add_(1),
        lambda model: model.codes.zero_(),
        lambda model: model.half(),
    ],
)
def test_a_training_that_writes_to_the_base_is_an_error(change: Callable[[Mixed], object]) -> None:
    made = version_zero(task_of(), 3)
    with pytest.raises(ModelMismatch, match=r"(body|codes).* is frozen .* its training changed it"):
        trainer_of(task_of(touching(change)), made).train()
    assert trainer_of(task_of(Still), made).train().num_examples == 30


tensors = st.lists(
    st.builds(
        BaseTensor,
        st.text("abc.", min_size=1, max_size=4),
        st.sampled_from(sorted(ITEM_BYTES)),
        st.lists(st.integers(0, 3), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda one: one.name,
).map(lambda found: tuple(sorted(found, key=lambda one: one.name)))


@given(tensors, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_any_base_part_comes_back_from_json_and_knows_its_body(
    listed: tuple[BaseTensor, ...], draw: random.Random
) -> None:
    body = draw.randbytes(sum(one.nbytes for one in listed))
    base = BasePart(digest_of(listed, [body]), len(body), listed)
    manifest = Manifest((), base=base)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert base.is_of(body)
    assert b"".join(base.views(body).values()) == body
    if body:
        assert not base.is_of(bytes([body[0] ^ 1]) + body[1:])
    renamed = (replace(listed[-1], name=listed[-1].name + "z"),)
    assert digest_of((*listed[:-1], *renamed), [body]) != base.digest


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"nbytes": 3}, "its size is not that of its tensors"),
        ({"tensors": []}, "unique and sorted"),
        ({"digest": "x"}, "64 hexadecimal"),
        ({"tensors": [{"name": "a", "dtype": "F128", "shape": [1]}]}, "not one of BOOL"),
        ({"tensors": [{"name": "a", "dtype": "F32", "shape": [-1]}], "nbytes": -4}, "nbytes"),
        ({"tensors": [{"name": "~a", "dtype": "F32", "shape": [1]}], "nbytes": 4}, "begins with ~"),
    ],
)
def test_a_manifest_with_a_bad_base_part_is_refused(change: dict[str, Any], reason: str) -> None:
    listed = [{"name": "a", "dtype": "F32", "shape": [1]}]
    raw = {"digest": "0" * 64, "nbytes": 4, "tensors": listed} | change
    with pytest.raises(MessageError, match=reason):
        Manifest.from_json(json.dumps({"tensors": [], "base": raw}))


def test_every_dtype_of_a_base_part_is_one_of_torchs_with_its_size() -> None:
    assert {name: dtype.itemsize for name, dtype in base_part.DTYPES.items()} == ITEM_BYTES
