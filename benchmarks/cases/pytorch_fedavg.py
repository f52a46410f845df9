"""
Federated averaging in bare PyTorch: what a simulation cannot do without, and nothing else.

Processes of one thread, fed by pipes: each gets the model and the numbers of its clients, trains one
after the other with ``torch.optim.SGD``, and sends back the sum of their models. MNIST 2NN.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fl_queue.data.idx import read_idx

BATCH = 10
LEARNING_RATE = 0.1
PARAMETERS = 199_210


def measure(folder: Path, clients: int, cohort: int, count: int, processes: int) -> list[float]:
    """
    Seconds of each of ``count`` rounds of one epoch, after one that warms up.

    Args:
        folder: Has ``train-images-idx3-ubyte.gz`` and its labels, split over ``clients``.
        processes: Each trains its part of the cohort.
    """
    context = multiprocessing.get_context("spawn")
    pipes = []
    for number in range(processes):
        ours, theirs = context.Pipe()
        context.Process(target=_trainer, args=(theirs, folder, clients), daemon=True).start()
        theirs.close()
        pipes.append(ours)
        assert ours.recv() == "ready", number
    torch.manual_seed(0)
    model = parameters_to_vector(_model().parameters()).detach().numpy()
    draw = np.random.default_rng(0)
    found = []
    for _ in range(count + 1):
        began = time.perf_counter()
        chosen = draw.choice(clients, cohort, replace=False)
        for pipe, part in zip(pipes, np.array_split(chosen, processes), strict=True):
            pipe.send(part.tolist())
            pipe.send_bytes(model.data)
        sums = [np.frombuffer(pipe.recv_bytes(), np.float32) for pipe in pipes]
        model = np.sum(sums, axis=0) / np.float32(cohort)
        found.append(time.perf_counter() - began)
    for pipe in pipes:
        pipe.send([])
        pipe.close()
    return found[1:]


def _model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    )


def _trainer(pipe: Connection, folder: Path, clients: int) -> None:
    torch.set_num_threads(1)
    images = read_idx(folder / "train-images-idx3-ubyte.gz", 3)
    labels = read_idx(folder / "train-labels-idx1-ubyte.gz", 1)
    order = np.random.default_rng(1).permutation(len(labels))
    shares = np.array_split(order, clients)
    model = _model()
    pipe.send("ready")
    while part := pipe.recv():
        base = torch.from_numpy(np.frombuffer(pipe.recv_bytes(), np.float32).copy())
        total: npt.NDArray[np.float32] = np.zeros(PARAMETERS, np.float32)
        for client in part:
            vector_to_parameters(base, model.parameters())
            pixels = torch.from_numpy(images[shares[client]].reshape(-1, 784).astype(np.float32))
            digits = torch.from_numpy(labels[shares[client]].astype(np.int64))
            _epoch(model, pixels / 255, digits)
            total += parameters_to_vector(model.parameters()).detach().numpy()
        pipe.send_bytes(total.data)


def _epoch(model: nn.Module, pixels: torch.Tensor, digits: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    order = torch.randperm(len(digits))
    for start in range(0, len(digits), BATCH):
        batch = order[start : start + BATCH]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixels[batch]), digits[batch]).backward()
        optimizer.step()
