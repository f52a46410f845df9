"""
Flower clients as users write them: nothing of ours in them but the shipped images.

Each is what an own module is to a worker, ``flower:tests.flower.apps:NAME``.
"""

from __future__ import annotations

import os
import random
import signal
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import fl_queue
from fl_queue.data.idx import read_idx

FOLDER = Path(fl_queue.__file__).parent / "data"
CLASSES = 10


@lru_cache(maxsize=1)
def digits() -> tuple[np.ndarray, np.ndarray]:
    images = read_idx(FOLDER / "train-images-idx3-ubyte.gz", 3).reshape(-1, 784)
    return images.astype(np.float32) / 255, read_idx(
        FOLDER / "train-labels-idx1-ubyte.gz", 1
    ).astype(np.int64)


def share(index: int, count: int) -> tuple[np.ndarray, ...]:
    """600 images to train with, 200 to validate with: (N, 784), (N,), twice."""
    images, labels = (part[index::count] for part in digits())
    return images[:600], labels[:600], images[600:800], labels[600:800]


# NumPyClient


class Softmax(NumPyClient):
    """Softmax regression in plain numpy; a list of two float64 arrays and a counter."""

    def __init__(self, index: int = 0, count: int = 3) -> None:
        self.data = share(index, count)
        self.weights = [np.random.normal(0, 0.01, (784, CLASSES)), np.zeros(CLASSES)]
        self.steps = np.zeros((), np.int64)

    def get_parameters(self, config: dict) -> list:
        return [*self.weights, self.steps]

    def fit(self, parameters: list, config: dict) -> tuple:
        weight, bias, steps = parameters
        images, labels = self.data[:2]
        for _ in range(config["local_epochs"]):
            order = np.random.permutation(len(labels))
            for start in range(0, len(order), config["batch_size"]):
                rows = order[start : start + config["batch_size"]]
                error = probabilities(images[rows] @ weight + bias)
                error[np.arange(len(rows)), labels[rows]] -= 1
                weight -= config["lr"] * images[rows].T @ error / len(rows)
                bias -= config["lr"] * error.mean(axis=0)
                steps = steps + 1
        # What Flower lets a client report: numbers travel, texts do not.
        return [weight, bias, steps], len(labels), {"round": config["server_round"], "host": "here"}

    def evaluate(self, parameters: list, config: dict) -> tuple:
        images, labels = self.data[2:]
        scores = probabilities(images @ parameters[0] + parameters[1])
        loss = -np.log(scores[np.arange(len(labels)), labels]).mean()
        accuracy = (scores.argmax(axis=1) == labels).mean()
        return float(loss), len(labels), {"accuracy": float(accuracy)}


def probabilities(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class Leaks(Softmax):
    """One whose errors quote its data."""

    def fit(self, parameters: list, config: dict) -> tuple:
        raise ValueError("no label: Erika Musterfrau")


softmax = Softmax()


def client_fn(context: Context) -> Client:
    node = context.node_config
    return Softmax(int(node["partition-id"]), int(node["num-partitions"])).to_client()


def doubled(message: Message, context: Context, call_next) -> Message:
    """A mod."""
    answer = call_next(message, context)
    key = "fitres.num_examples"
    if key in answer.content:
        answer.content[key] = MetricRecord(
            {"num_examples": 2 * answer.content[key]["num_examples"]}
        )
    return answer


legacy = ClientApp(client_fn=client_fn, mods=[doubled])


# The message API, as `flwr new` writes it


class Net(nn.Module):
    """With BatchNorm: parameters, float buffers and an integer one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(784)
        self.out = nn.Linear(784, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(images))


def net_of(message: Message) -> Net:
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net


app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    net, config = net_of(message), message.content["config"]
    node = context.node_config
    images, labels = share(int(node["partition-id"]), int(node["num-partitions"]))[:2]
    rows = TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
    optimizer = torch.optim.SGD(net.parameters(), config["lr"])
    losses = []
    for _ in range(int(context.run_config["local-epochs"])):
        for batch, target in DataLoader(rows, int(context.run_config["batch-size"]), shuffle=True):
            optimizer.zero_grad()
            loss = cross_entropy(net(batch), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    metrics = MetricRecord({"train_loss": float(np.mean(losses)), "num-examples": len(labels)})
    return Message(
        RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message
    )


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    net = net_of(message).eval()
    node = context.node_config
    images, labels = share(int(node["partition-id"]), int(node["num-partitions"]))[2:]
    with torch.no_grad():
        scores = net(torch.from_numpy(images))
    accuracy = (scores.argmax(dim=1).numpy() == labels).mean()
    loss = cross_entropy(scores, torch.from_numpy(labels)).item()
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(labels)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


# Those that are wrong in some way


def two_arrays() -> list:
    return [np.ones((2, 3), np.float32), np.zeros(2, np.int32)]


class Answers(NumPyClient):
    """Answers ``fit`` with the answer named by ``run_config["answer"]``."""

    def __init__(self, answer: str = "") -> None:
        self.answer = answer

    def fit(self, parameters: list, config: dict) -> tuple:
        answers = {
            "": parameters,
            "drawn": [
                parameters[0] + np.random.rand() + random.random() + torch.rand(1).item(),
                parameters[1],
            ],
            "fewer": parameters[:1],
            "shape": [parameters[0].T, parameters[1]],
            "floats": [parameters[0], parameters[1] + 0.5],
            "objects": [np.array([["a"] * 3] * 2), parameters[1]],
            "undefined": [parameters[0] * np.nan, parameters[1]],
            "nothing": [],
        }
        count = 0 if self.answer == "no examples" else 4
        return answers.get(self.answer, parameters), count, {"loss": float("nan")}


def answers(context: Context) -> Client:
    return Answers(str(context.run_config.get("answer", ""))).to_client()


class NeedsShare(Softmax):
    def __init__(self, index: int) -> None:
        super().__init__(index)


class NoFit(NumPyClient):
    def get_parameters(self, config: dict) -> list:
        return two_arrays()


class Complex(NoFit):
    def get_parameters(self, config: dict) -> list:
        return [np.zeros(2, np.complex64)]


class NoArrays(NoFit):
    def get_parameters(self, config: dict) -> list:
        return []


class Ordered(NumPyClient):
    """Twelve arrays of several dtypes, an integer one first; ``fit`` adds to each its index."""

    def get_parameters(self, config: dict) -> list:
        kinds = [np.int32, np.float64, np.float16]
        return [np.full(2, 100, kinds[min(index, 2)]) for index in range(12)]

    def fit(self, parameters: list, config: dict) -> tuple:
        added = [array + np.array(index, array.dtype) for index, array in enumerate(parameters)]
        return added, 1, {"bytes": sum(array.itemsize for array in parameters)}


by_position = ClientApp()


@by_position.train()
def train_by_position(message: Message, context: Context) -> Message:
    """Answers with a list, whose arrays have numbers for names, each with its index added."""
    arrays = message.content["arrays"].to_numpy_ndarrays()
    added = ArrayRecord(
        [np.asarray(array + np.array(i, array.dtype)) for i, array in enumerate(arrays)]
    )
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": added, "metrics": metrics}), reply_to=message)


remembers = ClientApp()


@remembers.train()
def train_and_remember(message: Message, context: Context) -> Message:
    context.state["mine"] = MetricRecord({"rounds": 1})
    return Message(message.content, reply_to=message)


fails = ClientApp()


@fails.train()
def train_and_fail(message: Message, context: Context) -> Message:
    return Message(Error(0, "no label: Erika Musterfrau"), reply_to=message)


uncounted = ClientApp()


@uncounted.train()
def train_uncounted(message: Message, context: Context) -> Message:
    return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)


empty = ClientApp()


def killed_once(context: Context) -> Client:
    """Is killed in the middle of its first training; ``run_config["mark"]`` is the file that records it."""

    class Killed(Softmax):
        def fit(self, parameters: list, config: dict) -> tuple:
            mark = Path(str(config["mark"]))
            if not mark.exists():
                mark.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return super().fit(parameters, config)

    node = context.node_config
    return Killed(int(node["partition-id"]), int(node["num-partitions"])).to_client()
