"""
The flag that a training's result is not wanted any more, and the places where it is looked at.

The flag is set from outside, by a signal's handler; the training ends at the next batch or step. No Redis here.
"""

from __future__ import annotations


class NotWanted(BaseException):
    """Ends a training whose round has ended; no Exception, so that a task's own ``except`` lets it through."""


class _Flag:
    """The flag of this process."""

    is_set = False


def end_round() -> None:
    """Have the training that is at work end at its next batch; may be called by a signal's handler."""
    _Flag.is_set = True


def begin() -> None:
    """Forget the flag of an earlier job."""
    _Flag.is_set = False


def check() -> None:
    """
    Go on unless the round has ended.

    Raises:
        NotWanted: It has.
    """
    if _Flag.is_set:
        raise NotWanted
