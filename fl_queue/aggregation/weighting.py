"""The integer weight of an update in the mean."""

from __future__ import annotations

from typing import Protocol

from fl_queue.errors import MessageError


class WeightSettings(Protocol):
    """The fields of ``[aggregation]`` that decide weights."""

    @property
    def weighting(self) -> str:
        """``examples``, ``capped`` or ``uniform``."""

    @property
    def cap(self) -> int:
        """Largest weight with ``capped``."""

    @property
    def max_examples(self) -> int:
        """More examples than that count as that many."""


def weight_of(settings: WeightSettings, num_examples: int, max_client_examples: int = 0) -> int:
    """
    The integer weight of an update in the mean, 1 to ``largest_weight``.

    Weighting by examples estimates the mean over examples, and gives a client that claims many of
    them much influence; ``capped`` bounds that; ``uniform`` estimates the mean over clients.

    Args:
        settings: The config's ``[aggregation]`` section.
        num_examples: Examples that the client reports; more than ``aggregation.max_examples`` count as so
            many.
        max_client_examples: The same cap for this client alone; 0: none.

    Raises:
        MessageError: The claim is less than 1, whatever the weighting.

    Source:
        McMahan et al. 2017, arXiv 1602.05629, Algorithm 1 (weights n_k / n).
    """
    if num_examples < 1:
        raise MessageError(f"num_examples is {num_examples}, not 1 or more")
    most = settings.max_examples
    return _weight(settings, min(num_examples, most, max_client_examples or most))


def largest_weight(settings: WeightSettings) -> int:
    """The largest weight an update may have: ``w_max`` of the exact sum."""
    return _weight(settings, settings.max_examples)


def _weight(settings: WeightSettings, num_examples: int) -> int:
    if settings.weighting == "uniform":
        return 1
    if settings.weighting == "capped":
        return min(num_examples, settings.cap)
    return num_examples
