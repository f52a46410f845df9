"""Federated learning as a message-queue pipeline over Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fl_queue._version import __version__

if TYPE_CHECKING:
    from fl_queue.run import Run

__all__ = ["Run", "__version__"]


def __getattr__(name: str) -> Any:
    # Every process of ours imports this package, and a restarted worker is in a hurry.
    if name == "Run":
        from fl_queue.run import Run

        return Run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
