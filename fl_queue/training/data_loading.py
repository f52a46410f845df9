"""
Samples that are read one at a time, and the processes that read them beside the training.

How many processes there are is the machine's matter and changes no bit: the generators that a data
set may draw from (for augmentation) are seeded for each sample by the training's seed, the epoch and
the sample's index, and are afterwards as they were. Imports torch. No Redis here.
"""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from fl_queue.common.processes import die_with_parent
from fl_queue.common.seeding import seed_for
from fl_queue.errors import FLQueueError
from fl_queue.training.collation import Collate, ReadSamples, collated

#: How torch's message begins when one of its processes has died.
_LOST = "DataLoader worker (pid"


class LoaderSettings(NamedTuple):
    """
    Settings for reading a data set.

    Args:
        seed, epoch: Decide, with a sample's index, what is drawn when it is read.
        workers: Processes that read beside this one; 0: it reads itself.
        collate: Makes a batch of samples; None: as torch does.
    """

    seed: int = 0
    epoch: int = 0
    workers: int = 0
    collate: Collate | None = None


def seed_torch(seed: int, device: str) -> None:
    """
    Seed what torch draws on a device; the numbers are those of ``torch.manual_seed``.

    That one also seeds every kind of accelerator there might be, and formats a stack trace for each:
    as long as a small client's setting up.
    """
    if device == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def seed_everything(seed: int, device: str = "cpu") -> None:
    """Seed all three generators that a user's code may draw from: torch's, numpy's and Python's."""
    seed_torch(seed, device)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def iterate_batches(
    dataset: Dataset[Any],
    batches: Sequence[list[int]],
    reading: LoaderSettings,
    *,
    is_pinned: bool = False,
) -> Iterator[Any]:
    """
    The batches of a data set, collated as torch does unless ``reading`` has a function for it.

    Args:
        batches: Indices of each batch's samples.
        is_pinned: Whether the tensors of a batch lie in memory from which a CUDA device copies by itself.

    Raises:
        FLQueueError: As a sample raised it, also in a process beside this one.
        ConfigError: Samples do not make a batch; names one by its index.
    """
    # A process for a single batch would only be in its way.
    workers = min(reading.workers, len(batches)) if len(batches) > 1 else 0
    for batch in DataLoader(
        _Seeded(dataset, reading),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(_collate, reading.collate or default_collate, dataset),
        pin_memory=is_pinned,
        # Data sets of a task need not be fit for pickle, and a fork begins at once.
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=partial(_end_with, os.getpid()),
    ):
        if isinstance(batch, FLQueueError):
            raise batch
        yield batch


def _collate(collate: Collate, dataset: Dataset[Any], samples: ReadSamples | FLQueueError) -> Any:
    if isinstance(samples, FLQueueError):
        return samples
    try:
        return collated(collate, samples, dataset)
    except FLQueueError as exc:
        return _passed_on(exc)


def _passed_on(error: FLQueueError) -> FLQueueError:
    """
    An error as the value that a process beside the training hands over.

    torch would make a RuntimeError of it, which is no lasting one and has no public text.

    Raises:
        FLQueueError: The same, where there is no such process.
    """
    if get_worker_info() is None:
        raise error
    error.add_note(traceback.format_exc())
    return error


def is_dataloader_crash(error: Exception) -> bool:
    """Whether an error means that a process that reads samples was killed; it may be raised anywhere in training."""
    if isinstance(error, EOFError | OSError):
        # It was killed between a batch's message and the batch's memory. An error of the data set itself is raised
        # in that process, and has no such frame here.
        frames = traceback.extract_tb(error.__traceback__)
        return any(Path(frame.filename).name == "resource_sharer.py" for frame in frames)
    return isinstance(error, RuntimeError) and str(error).startswith(_LOST)


class _Seeded(Dataset[Any]):
    """A data set whose samples are read with random numbers of their own."""

    def __init__(self, dataset: Dataset[Any], reading: LoaderSettings) -> None:
        self._dataset, self._reading = dataset, reading

    def __getitems__(self, indices: list[int]) -> ReadSamples | FLQueueError:
        try:
            with untouched_generators():
                return ReadSamples([self._sample(index) for index in indices], indices)
        except FLQueueError as exc:
            return _passed_on(exc)

    def _sample(self, index: int) -> Any:
        seed_everything(seed_for(self._reading.seed, "sample", self._reading.epoch, index))
        return self._dataset[index]


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Restore the generators of torch, numpy and Python at the end, so that later draws are unchanged."""
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])


def _end_with(parent: int, worker: int) -> None:
    """End this process when the one that trains ends: torch's would look every 5 s."""
    die_with_parent(parent)
