"""
Reproducible training: seeds, deterministic algorithms, and the record of all else that decides its bits.

Imports torch. No Redis here.
"""

from __future__ import annotations

import functools
import importlib
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch

from fl_queue._version import __version__
from fl_queue.errors import ConfigError
from fl_queue.training.data_loading import seed_everything


def preload() -> None:
    """Prepare torch, and run nothing: for a worker before it forks its jobs."""
    torch.set_num_threads(1)
    _versions()
    # Imported on first use otherwise, by every job again.
    importlib.import_module("numpy.random")
    # For tasks that compile their model; read when torch's compiler is imported.
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")
    _hold_to_deterministic("warn")


@dataclass(frozen=True)
class Compute:
    """
    Hardware that one training uses.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        threads: CPU threads torch may use; 0 leaves them as they are.
    """

    device: str = "cpu"
    threads: int = 1

    def reproducible(self, seed: int) -> AbstractContextManager[None]:
        """Seed everything, and hold torch to deterministic algorithms and the number of threads."""
        return reproducible(seed, self.device, self.threads)

    def environment(self, code_digest: str) -> dict[str, str | int]:
        """The record of versions and hardware. Args: ``code_digest``: of the task's code."""
        return environment(self.device, code_digest, self.threads)


def environment(device: str, code_digest: str, threads: int = 0) -> dict[str, str | int]:
    """
    Versions and hardware that decide the bits of training besides config and seed; recorded in each receipt.

    Args:
        device: As torch names it.
        code_digest: Of the task's code.
        threads: Of torch; 0: those it uses now.
    """
    return {
        **_versions(),
        "device": _device_name(device),
        "threads": threads or torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "task_code": code_digest,
    }


@functools.cache
def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "fl_queue": __version__,
        "torch": str(torch.__version__),
        # Read from the package's metadata: a task that does not need it should not load it.
        "torchvision": version("torchvision"),
        "numpy": np.__version__,
    }


def _device_name(device: str) -> str:
    return (
        f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device
    )


def check_cuda(device: str, option: str = "--device") -> None:
    """
    Check that a CUDA device is there.

    Args:
        device: ``cuda``, ``cuda:1``, ...
        option: Names the device.

    Raises:
        ConfigError: It is not there.
    """
    wanted, count = torch.device(device).index or 0, torch.cuda.device_count()
    if wanted >= count:
        raise ConfigError(
            option,
            f"{device} is not there: torch finds {count} CUDA devices on this machine",
            public=True,
        )


@contextmanager
def reproducible(seed: int, device: str, threads: int) -> Iterator[None]:
    """
    Seed everything, and hold torch to deterministic algorithms and a number of threads.

    Raises:
        ConfigError: The device is not there.
    """
    threads_before = torch.get_num_threads()
    deterministic = torch.get_deterministic_debug_mode()
    benchmark = torch.backends.cudnn.benchmark
    if device.startswith("cuda"):
        check_cuda(device)
        # cuBLAS is deterministic only with a fixed workspace, read when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    _hold_to_deterministic("warn")
    seed_everything(seed, device)
    try:
        yield
    finally:
        _hold_to_deterministic(deterministic)
        torch.backends.cudnn.benchmark = benchmark
        torch.set_num_threads(threads_before)


def _hold_to_deterministic(mode: str | int) -> None:
    # The better known torch.use_deterministic_algorithms imports torch's compiler, too.
    torch.set_deterministic_debug_mode(mode)
