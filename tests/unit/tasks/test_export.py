"""Versions as a torch state dict and as an ONNX graph: the numbers are those of the model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fl_queue.client import local_update
from fl_queue.config import loading
from fl_queue.errors import ConfigError, DataError, ModelMismatch
from fl_queue.protocol.manifest import Manifest
from fl_queue.tasks import export
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task
from fl_queue.training.model_tensors import load_arrays
from tests.support.checkout import ROOT

onnx = pytest.importorskip("onnx", reason="an extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="an extra")

METADATA = {"run": "pilot", "version": "3"}
CSV = ("task.features=a,b,c", "task.classes=no,yes", "task.hidden=[4]")


def version(task: Task) -> tuple[nn.Module, Manifest, bytes]:
    """A model with random weights and buffers, and its body."""
    manifest, arrays = local_update.initial_model(task, 5)
    draw = np.random.default_rng(1)
    body, drawn = b"", {}
    for spec in manifest.tensors:
        array = arrays[spec.name].copy()
        if spec.kind == "float_buffer":  # Variances must not be negative.
            array = draw.uniform(1, 2, spec.shape).astype("<f4")
        drawn[spec.name] = array
        body += array.tobytes()
    model = task.build_model()
    load_arrays(model, manifest, drawn)
    return model.eval(), manifest, body


LARGE = pytest.mark.slow(reason="a graph takes seconds, and others show that they are right")


@LARGE
def test_the_graph_of_a_table_takes_raw_rows(tmp_path: Path) -> None:
    """Categories, dates and gaps are encoded in the graph, without this package."""
    task = load_task("table", loading.load("table"))
    manifest, arrays = local_update.initial_model(task, 5)
    drawn = np.random.default_rng(1)
    for name, array in arrays.items():
        array[...] = 1 if name == "standardised" else drawn.uniform(0.2, 1, array.shape)
    arrays["squares"] += 2
    body = b"".join(arrays[spec.name].tobytes() for spec in manifest.tensors)
    model = task.build_model().eval()
    load_arrays(model, manifest, arrays)
    # age, stage, smoker, admitted, crp
    rows = np.stack(
        [
            drawn.normal(60, 12, 64), drawn.integers(0, 5, 64), drawn.integers(0, 2, 64),
            drawn.integers(-30_000, 30_000, 64), drawn.gamma(2, 10, 64),
        ],
        axis=1,
    ).astype(np.float32)  # fmt: skip
    rows[drawn.random(rows.shape) < 0.2] = np.nan
    export.write_onnx(tmp_path / "m.onnx", task, manifest, body, METADATA)
    (found,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"input": rows})
    with torch.no_grad():
        expected = model(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(expected) > 0.1


def differ(path: Path, model: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest difference of a graph from a model, over batches of several sizes."""
    session = onnxruntime.InferenceSession(path)
    most = 0.0
    for count in (1, 2, 7):
        batch = torch.rand(count, *shape) * 3
        (found,) = session.run(["output"], {"input": batch.numpy()})
        wanted = model(batch).detach().numpy()
        assert found.shape == wanted.shape
        most = max(most, float(np.abs(found - wanted).max()))
    return most


@pytest.mark.parametrize(
    ("name", "overrides", "shape"),
    [
        ("csv", (*CSV, "task.means=[1, 2, 3]", "task.stds=[4, 5, 6]"), (3,)),
        pytest.param("csv", CSV, (3,), marks=LARGE),
        pytest.param("mnist-cnn", (), (1, 28, 28), marks=LARGE),
        pytest.param(
            "image-folder", ("task.classes=cat,dog", "task.image_size=32"), (3, 32, 32), marks=LARGE
        ),
    ],
)
def test_a_graph_computes_what_the_model_does_for_batches_of_any_size(
    name: str, overrides: tuple[str, ...], shape: tuple[int, ...], tmp_path: Path
) -> None:
    task = load_task(name, loading.load(name, overrides, {}))
    model, manifest, body = version(task)

    export.write_onnx(tmp_path / "m.onnx", task, manifest, body, METADATA)

    assert differ(tmp_path / "m.onnx", model, shape) < 1e-5


def test_its_metadata_have_its_use_and_not_its_origin(tmp_path: Path) -> None:
    task = load_task("mnist-3v7", loading.load("mnist-3v7", (), {}))
    model, manifest, body = version(task)
    path = tmp_path / "m.onnx"

    export.write_onnx(path, task, manifest, body, METADATA)

    assert differ(path, model, (784,)) < 1e-5
    metadata = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert (metadata["run"], metadata["version"]) == ("pilot", "3")
    assert json.loads(metadata["labels"]) == ["7", "3"]
    assert "byte / 255" in metadata["input"]
    assert b"site-packages" not in path.read_bytes()
    assert str(ROOT).encode() not in path.read_bytes()


class Tied(Task):
    """Two names for one weight; a sample of its data is taken for the graph."""

    def build_model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        model[1].weight = model[0].weight
        return model

    def client_data(self, context: ClientContext) -> ClientData:
        data = TensorDataset(torch.rand(4, 3), torch.zeros(4, dtype=torch.int64))
        return ClientData(data, data)


class Branching(Tied):
    """Looks at the numbers before it decides."""

    def build_model(self) -> nn.Module:
        class Model(nn.Linear):
            def forward(self, batch: Tensor) -> Tensor:
                return super().forward(batch) if batch.sum() > 0 else batch

        return Model(3, 3)


class Pairs(Tied):
    """Its model takes two tensors."""

    def client_data(self, context: ClientContext) -> ClientData:
        data: Any = [((torch.rand(3), torch.rand(3)), 0)]
        return ClientData(data, data)


def own(kind: type[Task]) -> Task:
    return kind(loading.load("mnist-3v7", (f"run.task={__name__}:{kind.__name__}",), {}))


def test_a_state_dict_is_read_without_running_code_and_tied_tensors_stay_tied(
    tmp_path: Path,
) -> None:
    model, manifest, body = version(own(Tied))
    assert manifest.aliases == {"1.weight": "0.weight"}

    export.write_torch(tmp_path / "m.pt", manifest, body)

    found = torch.load(tmp_path / "m.pt", weights_only=True)
    own(Tied).build_model().load_state_dict(found, strict=True)
    assert torch.equal(found["0.weight"], model.state_dict()["0.weight"])
    assert found["0.weight"].data_ptr() == found["1.weight"].data_ptr()
    with pytest.raises(DataError, match="is not a file"):
        export.write_torch(Path("/dev/null"), manifest, body)
    with pytest.raises(DataError, match="cannot be written"):
        export.write_torch(tmp_path / "m.pt" / "x", manifest, body)


def test_a_task_without_an_example_gives_a_sample_of_its_data(tmp_path: Path) -> None:
    model, manifest, body = version(own(Tied))

    export.write_onnx(tmp_path / "m.onnx", own(Tied), manifest, body, METADATA)

    assert differ(tmp_path / "m.onnx", model, (3,)) < 1e-5


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Branching, "torch cannot turn this model into"), (Pairs, "an input of the task is a tuple")],
)
def test_a_model_that_is_no_graph_has_a_clear_message(
    kind: type[Task], reason: str, tmp_path: Path
) -> None:
    _, manifest, body = version(own(kind))

    with pytest.raises(ConfigError, match=f"--format: .*{reason}.*; use safetensors or torch"):
        export.write_onnx(tmp_path / "m.onnx", own(kind), manifest, body, METADATA)
    assert list(tmp_path.iterdir()) == []


def test_another_model_than_the_run_s_and_a_missing_package_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, manifest, body = version(own(Tied))
    with pytest.raises(ModelMismatch):
        export.write_onnx(tmp_path / "m.onnx", own(Branching), manifest, body, METADATA)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"needs onnxscript; run `pip install .*\[onnx\]\"`"):
        export.write_onnx(tmp_path / "m.onnx", own(Tied), manifest, body, METADATA)


def test_an_own_task_is_imported_only_if_it_is_let_in() -> None:
    settings = loading.load("mnist-3v7", ("run.task=nothing.here:Task",), {})

    assert export.usage_of(settings, (), "") is None
    with pytest.raises(ConfigError, match="--task-allow"):
        export.load(settings, (), "")
    with pytest.raises(ConfigError, match="cannot be imported"):
        export.usage_of(settings, ("nothing.here:Task",), "")
