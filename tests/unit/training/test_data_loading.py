"""Processes that read samples: the same bits with any number of them, and none that outlives training."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from multiprocessing import resource_sharer
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fl_queue.errors import DataError
from fl_queue.tasks.error_disclosure import FULL, disclosed
from fl_queue.training import data_loading, sgd
from fl_queue.training.data_loading import LoaderSettings, iterate_batches


class Noisy(Dataset[tuple[Tensor, int]]):
    """Samples that are augmented from all three generators; ``kill`` ends the process that reads one."""

    def __init__(self, kill: int = -1) -> None:
        self.kill = kill

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        noise = float(torch.rand(())) + np.random.random() + random.random()
        return torch.full((4,), noise) + index, index % 2


class Broken(Noisy):
    """Samples that cannot be read."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise ValueError("of the data")


class Damaged(Noisy):
    """The same, of a file."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise DataError("folder/7.png", "is no image of Smith", public="an image is damaged")


def trained(workers: int, dataset: Dataset[Any] | None = None, seed: int = 5) -> list[Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    sgd.local_sgd(
        model, dataset or Noisy(), nn.functional.cross_entropy, seed=seed, epochs=2, batch_size=6,
        learning_rate=0.01, loader_workers=workers,
    )  # fmt: skip
    return [parameter.detach() for parameter in model.parameters()]


def test_any_number_of_processes_makes_the_same_bits_also_of_augmentation_and_dropout() -> None:
    alone = trained(0)
    for workers in (1, 2):
        assert all(map(torch.equal, trained(workers), alone))
    assert not all(map(torch.equal, trained(0, seed=6), alone))

    model = nn.Linear(4, 2)
    found = [sgd.evaluate(model, Noisy(), nn.functional.cross_entropy, "cpu", n) for n in (0, 2)]
    assert found[0]["loss_sum"] == found[1]["loss_sum"]


def test_what_a_sample_draws_is_of_seed_epoch_and_index_and_takes_nothing_from_others() -> None:
    def read(batches: list[list[int]], *reading: int) -> dict[int, float]:
        pairs = iterate_batches(Noisy(), batches, LoaderSettings(*reading))
        order = [index for batch in batches for index in batch]
        noise = [float(row[0]) for rows, _ in pairs for row in rows]
        return dict(zip(order, noise, strict=True))

    first = read([[3, 4], [5]], 1, 1)
    assert read([[5, 3], [4]], 1, 1) == first
    assert all(value != first[index] for index, value in read([[3, 4, 5]], 1, 2).items())
    assert all(value != first[index] for index, value in read([[3, 4, 5]], 2, 1).items())

    np.random.seed(3)
    random.seed(3)
    expected = np.random.random(), random.random()
    np.random.seed(3)
    random.seed(3)
    read([[3, 4], [5]], 1, 1)
    assert (np.random.random(), random.random()) == expected


def test_a_killed_process_is_distinguished_from_an_error_of_the_data() -> None:
    with pytest.raises((RuntimeError, EOFError, OSError)) as caught:
        trained(2, Noisy(kill=7))
    assert data_loading.is_dataloader_crash(caught.value)
    with pytest.raises(ValueError, match="of the data") as other:
        trained(2, Broken())
    assert not data_loading.is_dataloader_crash(other.value)
    # Their tracebacks hold the iterators: torch would raise once more about the killed process, in any test.
    del caught, other
    gc.collect()


def test_a_process_killed_before_its_batch_was_fetched_is_no_error_of_the_data() -> None:
    descriptor = resource_sharer.DupFd(0)
    with Listener(family="AF_UNIX") as gone:
        descriptor._id = (gone.address, 1)
        closing = threading.Thread(target=lambda: gone.accept().close())
        closing.start()
        with pytest.raises((EOFError, OSError)) as caught:
            descriptor.detach()
        closing.join()
    assert data_loading.is_dataloader_crash(caught.value)
    assert not data_loading.is_dataloader_crash(EOFError())
    assert not data_loading.is_dataloader_crash(OSError(5, "of the data"))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_fl_queue_keeps_its_class_with_any_number_of_readers(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        trained(workers, Damaged())

    error = caught.value
    assert (error.path, error.reason) == ("folder/7.png", "is no image of Smith")
    assert disclosed(error) == f"DataError: an image is damaged; {FULL}"
    # The log has where it was raised.
    assert "in __getitem__" in "".join(traceback.format_exception(error))


def test_a_killed_training_leaves_no_process_that_reads(tmp_path: Path) -> None:
    code = f"""
import os, time
from fl_queue.errors import DataError
from fl_queue.training.data_loading import LoaderSettings, iterate_batches
from fl_queue.tasks.error_disclosure import FULL, disclosed

class Slow:
    def __len__(self): return 8
    def __getitem__(self, index):
        open(f"{tmp_path}/{{os.getpid()}}", "w").close()
        time.sleep(60)

next(iterate_batches(Slow(), [[0], [1], [2]], LoaderSettings(workers=2)))
"""
    training = subprocess.Popen([sys.executable, "-c", code])
    try:
        until = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        training.kill()
        training.wait()
    readers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(readers) == 2
    # Sooner than torch's own watch of the parent, which looks every 5 s.
    until = time.monotonic() + 4
    while (left := [pid for pid in readers if is_running(pid)]) and time.monotonic() < until:
        time.sleep(0.02)
    assert left == []


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
