"""
Samples that are read one at a time, and the processes that read them beside the training.

How many processes there are is the machine's matter and changes no bit: the generators that a data
set may draw from (for augmentation) are seeded for each sample by the training's seed, the epoch and
the sample's index, and are afterwards as they were. Imports torch. No Redis here.
"""

from __future__ import annotations

import inspect
import os
import random
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from fl_queue.common.processes import die_with_parent
from fl_queue.common.seeding import seed_for
from fl_queue.errors import DataError, FLQueueError

#: Makes a batch of samples: pairs of what the model takes and the targets.
Collate = Callable[[list[Any]], Any]

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
    dataset: Dataset[Any], batches: Sequence[list[int]], reading: LoaderSettings
) -> Iterator[Any]:
    """
    The batches of a data set, collated as torch does unless ``reading`` has a function for it.

    Args:
        batches: Indices of each batch's samples.

    Raises:
        FLQueueError: As a sample raised it, also in a process beside this one.
    """
    # A process for a single batch would only be in its way.
    workers = min(reading.workers, len(batches)) if len(batches) > 1 else 0
    for batch in DataLoader(
        _Seeded(dataset, reading),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(_collate, reading.collate or default_collate),
        # Data sets of a task need not be fit for pickle, and a fork begins at once.
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=partial(_end_with, os.getpid()),
    ):
        if isinstance(batch, FLQueueError):
            raise batch
        yield batch


def _collate(collate: Collate, samples: list[Any] | FLQueueError) -> Any:
    return samples if isinstance(samples, FLQueueError) else collate(samples)


def pair(batch: Any) -> tuple[Any, Any]:
    """
    Inputs of the model in a batch, and its targets.

    The last thing is the target; several before it are the model's arguments, one after the other.

    Raises:
        DataError: The batch is of another form.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise DataError(
            "training data",
            f"a sample gives a {type(batch).__name__}, not (input, target); return such pairs, or give "
            "the task a collate that makes (inputs, targets) of a list of samples",
            public="its samples are not pairs (input, target), and the task has no collate that makes them",
        )
    *inputs, target = batch
    return inputs[0] if len(inputs) == 1 else tuple(inputs), target


def to_device(value: Any, device: str) -> Any:
    """The same on a device: tensors in maps, lists and tuples, too; what has no ``to`` as it is."""
    if callable(getattr(value, "to", None)):  # A tensor, a packed sequence, what a tokenizer gives.
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(one, device) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(to_device(one, device) for one in value)
    return value


def call(model: nn.Module, inputs: Any) -> Any:
    """
    Outputs of a model for a batch's inputs.

    Those in a map are arguments by name, and several others one after the other, where the model's
    ``forward`` takes them so; else they are one argument.
    """
    if isinstance(inputs, Mapping) and _takes(model, (), inputs):
        return model(**inputs)
    if type(inputs) is tuple and _takes(model, inputs, {}):
        return model(*inputs)
    return model(inputs)


def _takes(model: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(model.forward).bind(*arguments, **named)
    except (
        TypeError,
        ValueError,
    ):  # Other arguments; or it has no signature, as what is written in C.
        return False
    return True


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

    def __getitems__(self, indices: list[int]) -> list[Any] | FLQueueError:
        try:
            with _untouched_generators():
                return [self._sample(index) for index in indices]
        except FLQueueError as exc:
            if get_worker_info() is None:
                raise
            # torch would make a RuntimeError of it, which is no lasting one and has no public text.
            exc.add_note(traceback.format_exc())
            return exc

    def _sample(self, index: int) -> Any:
        seed_everything(seed_for(self._reading.seed, "sample", self._reading.epoch, index))
        return self._dataset[index]


@contextmanager
def _untouched_generators() -> Iterator[None]:
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
