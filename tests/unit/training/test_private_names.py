"""Private names of torch and Python that fl-queue depends on: these tests fail first when a release moves them."""

from __future__ import annotations

import importlib.util
import sys
from multiprocessing import forkserver, resource_tracker

from torch.nn.modules import batchnorm

from fl_queue.common import offspring
from fl_queue.training.model_tensors import BATCH_NORM_LAYERS
from workers import rq_worker


def layers_of(base: type) -> set[type]:
    below = {kind for sub in base.__subclasses__() for kind in {sub, *layers_of(sub)}}
    return {kind for kind in below if kind.__module__.startswith("torch.nn.modules.")}


def test_every_batch_norm_of_torch_is_known() -> None:
    found = layers_of(batchnorm._BatchNorm)

    assert len(found) >= len(BATCH_NORM_LAYERS)
    assert all(issubclass(layer, BATCH_NORM_LAYERS) for layer in found)


def test_torch_s_compiler_is_where_workers_look_for_it() -> None:
    assert importlib.util.find_spec(rq_worker.COMPILER) is not None
    # Its helper is a process of its own, which is known by the name of its module.
    module = offspring._COMPILER.decode()
    assert importlib.util.find_spec(f"{module}.__main__") or importlib.util.find_spec(module)


def test_python_s_helpers_are_where_workers_look_for_them() -> None:
    for module in (forkserver, resource_tracker):
        sys.modules.setdefault(module.__name__, module)
    before = offspring.helpers()
    resource_tracker.ensure_running()

    assert resource_tracker._resource_tracker._pid in offspring.helpers()
    assert before <= offspring.helpers()
