"""A setting of the process that a job has changed is named."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from fl_queue.client import process_marks

#: Changes it, and returns what sets it back.
Change = Callable[[], Callable[[], Any]]


def attribute(owner: Any, name: str) -> Change:
    def change() -> Callable[[], Any]:
        before = getattr(owner, name)
        setattr(owner, name, not before)
        return lambda: setattr(owner, name, before)

    return change


def precision() -> Callable[[], Any]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if before == "highest" else "highest")
    return lambda: torch.set_float32_matmul_precision(before)


def device() -> Callable[[], Any]:
    torch.set_default_device("meta")
    return lambda: torch.set_default_device(None)


def autocast() -> Callable[[], Any]:
    stack = ExitStack()
    stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
    return stack.close


def umask() -> Callable[[], Any]:
    before = os.umask(0o137)
    return lambda: os.umask(before)


def handler() -> Callable[[], Any]:
    before = signal.signal(signal.SIGUSR2, lambda number, frame: None)
    return lambda: signal.signal(signal.SIGUSR2, before)


def timer() -> Callable[[], Any]:
    signal.setitimer(signal.ITIMER_VIRTUAL, 10_000)
    return lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def alarm() -> Callable[[], Any]:
    before = signal.getitimer(signal.ITIMER_REAL)
    if before[0]:  # Of the test itself.
        signal.setitimer(signal.ITIMER_REAL, 0)
    else:
        signal.alarm(10_000)
    return lambda: signal.setitimer(signal.ITIMER_REAL, *before)


def tiny() -> Callable[[], Any]:
    torch.set_flush_denormal(True)
    return lambda: torch.set_flush_denormal(False)


def attention() -> Callable[[], Any]:
    backend: Any = torch.backends.cuda
    before = backend.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(not before)
    return lambda: torch.backends.cuda.enable_flash_sdp(before)


def gradients() -> Callable[[], Any]:
    torch.set_grad_enabled(False)
    return lambda: torch.set_grad_enabled(True)


def errors() -> Callable[[], Any]:
    before = np.seterr(divide="raise")
    return lambda: np.seterr(**before)


CHANGES: dict[str, tuple[Change, str]] = {
    "precision": (precision, "torch's precision of products"),
    "tf32": (attribute(torch.backends.cuda.matmul, "allow_tf32"), "torch's precision of products"),
    "cudnn's tf32": (attribute(torch.backends.cudnn, "allow_tf32"), "torch's use of cuDNN"),
    "cudnn": (attribute(torch.backends.cudnn, "enabled"), "torch's use of cuDNN"),
    "onednn": (attribute(torch.backends.mkldnn, "enabled"), "torch's use of oneDNN"),
    "attention": (attention, "torch's kinds of attention"),
    "device": (device, "torch's default device"),
    "autocast": (autocast, "torch's autocast"),
    "tiny numbers": (tiny, "torch's handling of tiny numbers"),
    "umask": (umask, "the umask"),
    "handler": (handler, "the signal handlers"),
    "timer": (timer, "a timer"),
    "alarm": (alarm, "a timer"),
    "gradients": (gradients, "torch's gradient mode"),
    "errors": (errors, "numpy's error state"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_setting_is_named(what: str) -> None:
    change, words = CHANGES[what]
    before = process_marks.taken()
    assert process_marks.taken() == before
    back = change()
    try:
        now = process_marks.taken()
    finally:
        back()
    assert {name for name in now if now[name] != before[name]} == {words}
    assert process_marks.taken() == before


def test_each_setting_can_be_read_here() -> None:
    assert not [
        name for name, value in process_marks.taken().items() if value in ("RuntimeError", None)
    ]
