"""
Processes that train one model together, each on a device of its own: sums and comparisons over all of them.

Every process runs the same job on the same data. Of each batch it takes its part; gradients are added up before the
step, so all processes make the step of the whole batch, and hold the same model after it. Imports torch. No Redis here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from blake3 import blake3
from torch import Tensor, nn

from fl_queue.common.seeding import seed_for
from fl_queue.errors import ConfigError, DataError, TrainingLost
from fl_queue.training.determinism import check_cuda

#: Processes meet on this interface alone, so that nothing listens for other machines.
_LOOPBACK = "lo"
#: A collective waits for the slowest process; the job's timeout and the end of a process end the wait earlier.
_PATIENCE = timedelta(days=1)
#: The fork server ends all processes as soon as it sees that one has ended, seconds.
_ENDED_WITHIN_S = 60.0
#: Gradients that are added up at a time, elements.
_BUCKET = 1 << 24
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Ranks:
    """
    This process among those that train one model.

    Args:
        rank: From 0; the process of rank 0 has the answer.
        devices: Of each process.
        rendezvous: Descriptor of a file that all of them have inherited, through which they find each other.
    """

    rank: int
    devices: tuple[str, ...]
    rendezvous: int

    @property
    def count(self) -> int:
        """How many processes there are."""
        return len(self.devices)

    @property
    def device(self) -> str:
        """The device of this process."""
        return self.devices[self.rank]

    def connect(self) -> None:
        """
        Meet the others, which do the same; once is enough.

        Raises:
            ConfigError: The device is not there.
            TrainingLost: Another process ended meanwhile.
        """
        if dist.is_initialized():
            return
        backend, kind = "gloo", torch.device(self.device)
        if kind.type == "cuda":
            check_cuda(self.device, "--devices")
            torch.cuda.set_device(kind)
            backend = "cpu:gloo,cuda:nccl"
        # Read by the libraries when they connect. Otherwise they take the interface of this machine's name.
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = _LOOPBACK
        with _others_may_end():
            # torch's own stub does not name it.
            make: Any = getattr(dist, "FileStore")  # noqa: B009
            store = make(f"/proc/self/fd/{self.rendezvous}", self.count)
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.count, timeout=_PATIENCE
            )

    def own_seed(self, seed: int) -> int:
        """A seed for what each process draws by itself, such as dropout; rank 0 has the seed itself."""
        return seed_for(seed, "rank", self.rank) if self.rank else seed

    def part(self, rows: Tensor) -> tuple[Tensor, int]:
        """
        This process's part of a batch.

        A process for which there is no sample takes the first one, and counts it 0 times: layers that compute
        statistics over all processes need each of them.

        Args:
            rows: (B,) indices of the whole batch.

        Returns:
            Indices of the samples, and how many of them count.
        """
        size = len(rows)
        first, end = size * self.rank // self.count, size * (self.rank + 1) // self.count
        return (rows[first:end], end - first) if end > first else (rows[:1], 0)

    def sum(self, tensor: Tensor) -> None:
        """Put the sum over all processes into ``tensor``. Raises TrainingLost: another process ended."""
        with _others_may_end():
            dist.all_reduce(tensor)

    def totals(self, *values: float) -> list[float]:
        """Sums of numbers over all processes, in float64."""
        found = torch.tensor(values, dtype=torch.float64, device="cpu")
        self.sum(found)
        totals: list[float] = found.tolist()
        return totals

    def gathered(self, value: Any) -> list[Any]:
        """Plain values of all processes, by rank. Raises TrainingLost: another process ended."""
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.count, dtype=torch.int64, device="cpu")
        sizes[self.rank] = len(text)
        self.sum(sizes)
        room = torch.zeros(self.count, int(sizes.max()), dtype=torch.uint8, device="cpu")
        room[self.rank, : len(text)] = text
        self.sum(room)
        rows = zip(room, sizes.tolist(), strict=True)
        return [json.loads(row[:size].numpy().tobytes()) for row, size in rows]

    def check_equal(self, what: str, value: Any) -> None:
        """
        Compare plain values of all processes.

        Args:
            what: In words, for the error.

        Raises:
            DataError: They differ.
        """
        if any(other != value for other in self.gathered(value)):
            raise DataError(
                "training data",
                f"{what} differs between the processes of --devices; if files of --data do not change meanwhile, "
                "train on one device",
                public=True,
            )

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """
        Add up the gradients of all processes; each of them has the sums then.

        A parameter that has a gradient in none of them gets none.

        Raises:
            ConfigError: A gradient is sparse.
        """
        found = [one.grad is not None for one in parameters]
        has = torch.tensor(found, dtype=torch.int64, device="cpu")
        self.sum(has)
        used = [one for one, count in zip(parameters, has.tolist(), strict=True) if count]
        for bucket in _buckets(used):
            self._sum_bucket(bucket)

    def _sum_bucket(self, bucket: list[nn.Parameter]) -> None:
        parts = []
        for one in bucket:
            if one.grad is not None and one.grad.is_sparse:
                raise ConfigError(
                    "run.task",
                    "a gradient is sparse, which --devices cannot add up; build the embedding with sparse=False, "
                    "or train on one device",
                    public=True,
                )
            found = torch.zeros_like(one) if one.grad is None else one.grad
            parts.append(found.reshape(-1).to(_summed_in(one)))
        whole = torch.cat(parts)
        self.sum(whole)
        for one, part in zip(
            bucket, torch.split(whole, [one.numel() for one in bucket]), strict=True
        ):
            gradient = part.view_as(one).to(one.dtype)
            if one.grad is None:
                one.grad = gradient.clone()
            else:
                one.grad.copy_(gradient)

    def check_same(self, model: nn.Module) -> None:
        """
        Compare the models of all processes after a training.

        Raises:
            ConfigError: A tensor differs; names it.
        """
        sums = {name: _digest(tensor) for name, tensor in model.state_dict().items()}
        for other in self.gathered(sums):
            for name, digest in sums.items():
                if other.get(name) != digest:
                    raise ConfigError(
                        "run.task",
                        f"{name} differs between the processes of --devices after the training, since it follows "
                        "the samples of each of them; train on one device",
                        public=True,
                    )

    def environment(self) -> dict[str, str | int]:
        """How many devices there are, for receipts: it decides bits."""
        return {"devices": self.count}


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters in groups of one device and dtype, none much larger than it has to be."""
    bucket: list[nn.Parameter] = []
    size = 0
    for one in parameters:
        is_other = bool(bucket) and (
            (bucket[0].device, _summed_in(bucket[0])) != (one.device, _summed_in(one))
        )
        if bucket and (is_other or size + one.numel() > _BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(one)
        size += one.numel()
    if bucket:
        yield bucket


def _summed_in(parameter: nn.Parameter) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _digest(tensor: Any) -> str:
    """Digest of a tensor's bits; empty for what is none."""
    if not isinstance(tensor, Tensor):
        return ""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    octets: Any = flat.view(torch.uint8).numpy()
    return blake3(octets).hexdigest(_DIGEST_BYTES)


@contextmanager
def _others_may_end() -> Iterator[None]:
    """
    Wait to be ended with the process that closed its connection, of which torch has raised an error.

    The fork server ends this one, and reports why the other ended.

    Raises:
        TrainingLost: It has not: the connection alone was lost.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as exc:
        time.sleep(_ENDED_WITHIN_S)
        raise TrainingLost("another process of --devices ended", public=True) from exc
