"""A version as a torch state dict or an ONNX graph. Imports torch."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fl_queue.common import files
from fl_queue.common.extras import how_to_install
from fl_queue.config.run_config import RunConfig
from fl_queue.config.task_catalog import TASKS, own_code
from fl_queue.errors import ConfigError, DataError
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.model_usage import ModelUsage
from fl_queue.protocol.tensor_layout import Bytes
from fl_queue.tasks import calls
from fl_queue.tasks.base import Task
from fl_queue.tasks.building import built
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import barred, load_task
from fl_queue.training import base_part, sgd
from fl_queue.training.batches import input_of

if TYPE_CHECKING:
    import onnx

#: Largest file of protobuf, with a margin for the graph.
_ONNX_BYTES = 2**31 - 2**24
_OPSET = 20


def load(config: RunConfig, allow: Sequence[str], data_dir: str) -> Task:
    """
    Load the task of a run.

    Args:
        allow: Own tasks that may be imported, as the name comes from Redis.
        data_dir: This machine's data folder; needed if the model depends on it.

    Raises:
        ConfigError: The task is not allowed, or cannot be loaded.
    """
    if code := _barred(config, allow):
        raise ConfigError(
            "--task-allow",
            f"{code} is own code, and runs here only if you trust it: add --task-allow {code}",
        )
    # A site's list may exclude built-in tasks from its data; an export is a user's own command.
    return load_task(config.run.task, config, (*allow, *TASKS), data_dir)


def _barred(config: RunConfig, allow: Sequence[str]) -> str:
    return barred(own_code(config.run.task, config.task), allow)


def state_dict(manifest: Manifest, body: Bytes, base: Bytes | None = None) -> dict[str, Tensor]:
    """
    Make a state dict of a version; tied tensors share their storage.

    Args:
        base: Body of the run's base part, whose tensors keep their dtypes.
    """
    tensors = {
        name: torch.from_numpy(array.copy())
        for name, array in tensor_layout.views(manifest, body).items()
    }
    if manifest.base is not None and base is not None:
        tensors |= base_part.tensors_of(manifest.base, base)
    return tensors | {name: tensors[of] for name, of in manifest.aliases.items()}


def write_torch(path: Path, manifest: Manifest, body: Bytes, base: Bytes | None = None) -> None:
    """
    Write a plain state dict, for ``torch.load(path, weights_only=True)``.

    Raises:
        DataError: The file cannot be written.
    """
    made = io.BytesIO()
    torch.save(state_dict(manifest, body, base), made)
    files.write(path, made.getbuffer())


def write_onnx(
    path: Path,
    task: Task,
    manifest: Manifest,
    body: Bytes,
    properties: Mapping[str, str],
    data_dir: str = "",
    base: Bytes | None = None,
) -> None:
    """
    Write the model as a graph with ``input`` and ``output``, their first dimension of any size.

    The graph is the task's model in evaluation mode. Preprocessing inside the model is part of it;
    preprocessing by the task is described in the properties.

    Args:
        properties: Metadata of the file, in addition to the task's usage.
        data_dir: Data folder for an example input, if the task has no ``example_input``.
        base: Body of the run's base part, if it has one.

    Raises:
        ConfigError: The packages are missing, or torch cannot turn this model into a graph.
        DataError: No input was found, or the file cannot be written.
        ModelMismatch: The task's model does not fit the run's.
    """
    _check_packages()
    if manifest.nbytes + len(base or b"") > _ONNX_BYTES:
        raise ConfigError(
            "--format",
            "onnx files end at 2 GiB, and this model is larger; use safetensors or torch",
        )
    fetch = None if base is None else lambda: base
    model = built(task, manifest, tensor_layout.views(manifest, body), fetch=fetch)
    graph = _graph(model.eval(), _example(task, data_dir))
    usage = task.usage()
    metadata = {
        **properties,
        "input": usage.input,
        "output": usage.output,
        "labels": json.dumps(usage.labels, ensure_ascii=False),
        "details": json.dumps(dict(usage.details), ensure_ascii=False, sort_keys=True),
    }
    _describe(graph, metadata)
    files.write(path, graph.SerializeToString(deterministic=True))


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as exc:
        reason = f"onnx needs {exc.name}; {how_to_install('onnx')}"
        raise ConfigError("--format", reason) from exc


def _graph(model: nn.Module, example: Tensor) -> onnx.ModelProto:
    batch = torch.export.Dim("batch")
    try:
        program = torch.onnx.export(
            model,
            # A batch of two, as torch treats a dimension of 1 as constant.
            (example.expand(2, *example.shape[1:]).contiguous(),),
            input_names=["input"],
            output_names=["output"],
            opset_version=_OPSET,
            dynamic_shapes=({0: batch},),
            dynamo=True,
            verbose=False,
        )
    except (torch.onnx.OnnxExporterError, RuntimeError) as exc:
        first = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise ConfigError(
            "--format",
            f"torch cannot turn this model into an ONNX graph ({first}); use safetensors or torch",
        ) from exc
    assert program is not None
    made: onnx.ModelProto = program.model_proto
    return made


def _example(task: Task, data_dir: str) -> Tensor:
    """Get one input (1, ...): of the task, else of its test data, else of a client's data."""
    found = task.example_input()
    if found is not None:
        return found
    folder = data_dir or task.config.data.dir
    dataset = task.test_data(folder)
    if dataset is None or not sgd.size_of(dataset):
        context = ClientContext.of(
            task.config, client="export", run="export", round_number=1, data_dir=folder
        )
        dataset = calls.data(task, context).train
    if not sgd.size_of(dataset):
        raise DataError(folder or "data", "has no sample to export the model with; see --data")
    first = input_of(dataset[0])
    if not isinstance(first, Tensor):
        raise ConfigError(
            "--format",
            f"onnx needs a model of one tensor, and an input of the task is a "
            f"{type(first).__name__}; use safetensors or torch",
        )
    return first.unsqueeze(0)


def _describe(graph: onnx.ModelProto, properties: Mapping[str, str]) -> None:
    import onnx

    # Remove the exporter's notes on source files: they name folders of this machine.
    places: list[Any] = [graph.graph, *graph.functions]
    for place in places:
        for node in place.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in (
            *place.value_info,
            *getattr(place, "input", ()),
            *getattr(place, "output", ()),
        ):
            if not isinstance(value, str):
                del value.metadata_props[:]
        del place.metadata_props[:]
    for tensor in graph.graph.initializer:
        del tensor.metadata_props[:]
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, dict(properties))


def usage_of(config: RunConfig, allow: Sequence[str], data_dir: str) -> ModelUsage | None:
    """
    Usage by the task; None for own code that may not be imported here.

    Raises:
        ConfigError, DataError: The task cannot be loaded, or cannot describe its model here.
    """
    if _barred(config, allow):
        return None
    return load(config, allow, data_dir).usage()
