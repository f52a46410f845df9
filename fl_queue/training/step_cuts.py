"""
How an epoch is cut into batches and steps.

Imports torch. No Redis here.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from fl_queue.errors import ConfigError, DataError
from fl_queue.training.model_tensors import BATCH_NORM_LAYERS
from fl_queue.training.row_floor import check_batch
from fl_queue.training.sample_sets import cuts_of


def training_cuts(
    model: nn.Module, count: int, batch_size: int, accumulate: int, fewest: int
) -> list[int]:
    """
    Ends of the batches of an epoch.

    Raises:
        ConfigError: Batches are too small for BatchNorm, or steps too small for the site.
        DataError: A single sample, and the model has BatchNorm.
    """
    normalised = any(isinstance(module, BATCH_NORM_LAYERS) for module in model.modules())
    # Statistics of BatchNorm are of a batch, and not of a step.
    check_batch(fewest, batch_size, 1 if normalised else accumulate)
    cuts = cuts_of(count, batch_size)
    if len(cuts) > 1 and cuts[-1] - cuts[-2] < min(fewest, batch_size):
        del cuts[-2]
    if not normalised:
        return cuts
    if batch_size == 1:
        raise ConfigError(
            "train.batch_size", "1 cannot train a model with BatchNorm; use 2 or more", public=True
        )
    if count == 1:
        raise DataError(
            "training data", "a single sample cannot train a model with BatchNorm", public=True
        )
    if len(cuts) > 1 and cuts[-1] - cuts[-2] == 1:
        del cuts[-2]
    return cuts


def step_groups(cuts: list[int], accumulate: int, fewest: int) -> list[list[int]]:
    """Of each step, the sizes of its batches; a last step of too few samples joins the one before it."""
    sizes = [end - start for start, end in pairwise([0, *cuts])]
    groups = [sizes[first : first + accumulate] for first in range(0, len(sizes), accumulate)]
    if len(groups) > 1 and sum(groups[-1]) < fewest:
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups
