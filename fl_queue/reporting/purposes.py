"""Purpose of a round in words."""

from __future__ import annotations

from fl_queue.protocol.records import Purpose


def in_words(purpose: Purpose, training: str) -> str:
    """
    Describe a round by its purpose.

    Args:
        purpose: Purpose of the round.
        training: Text for a training round, which has a number.
    """
    words = {
        "initialise": "making version 0",
        "train": training,
        "evaluate": "closing evaluation",
        "sums": f"{training} (sums)",
        "restore": "going back to an older version",
    }
    return words[purpose]
