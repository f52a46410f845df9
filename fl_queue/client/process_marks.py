"""
Marks of this process: settings that a job may change and the next one would find changed.

Some are set back, for jobs that follow in this process. Imports torch; no Redis here.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

#: Set by the first job on a CUDA device, and by torch with the first step of one of its optimizers, the import of peft,
#: or the first compiled model.
_OURS = (
    "CUBLAS_WORKSPACE_CONFIG",
    "TORCHINDUCTOR_CACHE_DIR",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
)
#: What setuptools, which torch.compile imports, adds to ``sys.path``.
_VENDORED = str(Path("setuptools", "_vendor"))
#: Module of the handler by which torch notices that a process which reads samples has ended.
_LOADERS = "torch.utils.data._utils.signal_handling"
#: Thread of tqdm.
_PROGRESS = "tqdm_monitor"
_STATUS = Path("/proc/self/status")
_UMASK = re.compile(rb"^Umask:\s*(\d+)", re.MULTILINE)
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_SIGNALS = tuple(int(number) for number in sorted(signal.valid_signals()))
#: Smallest float64; 0 where tiny numbers count as 0.
_TINY = 5e-324


def _umask() -> bytes | None:
    # Asking os.umask would set it for a moment, for other threads, too.
    found = _UMASK.search(_STATUS.read_bytes()) if _STATUS.exists() else None
    return found[1] if found else None


def _handler(number: int) -> Any:
    found = signal.getsignal(number)
    # Set by the first DataLoader of a process that has workers; it looks after those alone, and stays.
    of_loaders = getattr(found, "__module__", None) == _LOADERS
    return signal.SIG_DFL if of_loaders and number == signal.SIGCHLD else found


def _threads() -> tuple[str, ...]:
    # torch.compile shows its progress through tqdm, whose thread stays.
    return tuple(sorted(one.name for one in threading.enumerate() if one.name != _PROGRESS))


def _matmul() -> tuple[Any, ...]:
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32


def _autocast() -> tuple[Any, ...]:
    kinds = ("cpu", "cuda")
    return tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds)  # fmt: skip


def _attention() -> tuple[bool, ...]:
    found: Any = torch.backends.cuda
    return found.flash_sdp_enabled(), found.mem_efficient_sdp_enabled(), found.math_sdp_enabled()


def _cudnn() -> tuple[Any, ...]:
    found = torch.backends.cudnn
    return found.enabled, found.allow_tf32


#: In words -> its value.
SETTINGS: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        "the working folder": lambda: str(Path.cwd()),
        "the environment": lambda: {k: v for k, v in list(os.environ.items()) if k not in _OURS},
        "sys.path": lambda: tuple(one for one in sys.path if not one.endswith(_VENDORED)),
        "torch's default dtype": torch.get_default_dtype,
        "torch's gradient mode": torch.is_grad_enabled,
        "numpy's error state": lambda: tuple(sorted(np.geterr().items())),
        "the threads": _threads,
        # A changed one of these ends the process, if it is a process of its own.
        "torch's precision of products": _matmul,
        "torch's use of cuDNN": _cudnn,
        "torch's use of oneDNN": lambda: torch.backends.mkldnn.enabled,
        "torch's kinds of attention": _attention,
        "torch's default device": lambda: str(torch.empty(0).device),
        "torch's autocast": _autocast,
        "torch's handling of tiny numbers": lambda: bool(
            torch.tensor(_TINY, dtype=torch.float64, device="cpu") * 1
        ),
        "the umask": _umask,
        "the signal handlers": lambda: tuple(_handler(number) for number in _SIGNALS),
        "a timer": lambda: tuple(signal.getitimer(timer)[0] > 0 for timer in _TIMERS),
    }
)


def taken() -> dict[str, Any]:
    """The value of each setting, by its words."""
    return {name: _value(read) for name, read in SETTINGS.items()}


def _value(read: Callable[[], Any]) -> Any:
    try:
        return read()
    # Torch refuses to name a precision that was set by its old and its new functions.
    except (RuntimeError, OSError) as exc:
        return type(exc).__name__


def set_back(before: Mapping[str, Any]) -> None:
    """Set back what jobs of one process must not inherit from each other."""
    for name in [name for name in os.environ if name not in (*before["the environment"], *_OURS)]:
        del os.environ[name]
    os.environ.update(before["the environment"])
    os.chdir(before["the working folder"])
    sys.path[:] = [*before["sys.path"], *(one for one in sys.path if one.endswith(_VENDORED))]
    torch.set_default_dtype(before["torch's default dtype"])
    torch.set_grad_enabled(before["torch's gradient mode"])
    np.seterr(**dict(before["numpy's error state"]))
