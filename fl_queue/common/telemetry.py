"""
OpenTelemetry's SDK is left out while a process of ours imports what it needs.

redis-py imports it where it is installed, as it is with mlflow: sixty modules and a tenth of a second in each process
and command, for metrics that nothing here asks for. A task may import it as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SDK = "opentelemetry.sdk.metrics"


def leave_out() -> None:
    """Have its import fail as if it were not installed, until ``let_in``; nothing where it is imported already."""
    sys.modules.setdefault(_SDK, None)  # type: ignore[arg-type]


def let_in() -> None:
    """Let it be imported again."""
    if _SDK in sys.modules and sys.modules[_SDK] is None:
        del sys.modules[_SDK]


@contextmanager
def left_out() -> Iterator[None]:
    """Leave it out around imports; afterwards it is as it was."""
    if _SDK in sys.modules:
        yield
        return
    leave_out()
    try:
        yield
    finally:
        let_in()
