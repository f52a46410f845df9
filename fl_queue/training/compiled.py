"""
Models whose forward and backward passes ``torch.compile`` turns into code, where a site asks for it (``--compile``).

Compiled passes round otherwise than torch's own, so receipts name a client that used them; the same machine and the
same code give the same bits again. Imports torch. No Redis here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fl_queue.errors import ConfigError

#: What torch times around everything that one call of a model makes it compile.
_TIMED = "_compile.compile_inner"
#: In an update's environment, where it is so.
COMPILED = "compiled"
_log = logging.getLogger(__name__)


def prepare(model: nn.Module) -> None:
    """
    Have a model's passes compiled at its first call with each shape of input, and in each mode.

    Its tensors and their names stay. More shapes than torch compiles of one model are an error, not a silent return to
    other roundings: a training would take minutes for code that is used once.
    """
    from torch._dynamo import config  # slow, and of no use to others

    config.fail_on_recompile_limit_hit = True
    model.compile(dynamic=False)


@contextmanager
def naming(is_on: bool) -> Iterator[None]:
    """
    Log how long compiling took within this block, and raise its errors with the option that asked for it.

    Args:
        is_on: Whether anything is compiled; else nothing is done.

    Raises:
        ConfigError: In place of such an error.
    """
    if not is_on:
        yield
        return
    from torch._dynamo import exc as errors

    before = seconds()
    try:
        yield
    except errors.FailOnRecompileLimitHit as exc:
        raise ConfigError(
            "--compile",
            "the batches have more shapes than torch compiles code for; have the task's collate make batches of one "
            "shape, or start the worker without --compile",
            public=True,
        ) from exc
    except errors.TorchDynamoException as exc:
        first = next(iter(str(exc).splitlines()), "")
        what = f"torch cannot compile this model here ({type(exc).__name__}); start the worker without --compile"
        raise ConfigError("--compile", f"{what}: {first}", public=what) from exc
    _log.info("torch.compile took %.1f s", seconds() - before)


def seconds() -> float:
    """Seconds of compiling in this process."""
    from torch._dynamo.utils import compile_times

    names, times = compile_times(repr="csv", aggregate=True)
    found = dict(zip(names, times, strict=True))
    return float(str(found.get(_TIMED, "0")))
