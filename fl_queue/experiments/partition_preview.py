"""
Preview of a data partition: each client's examples, labels, and distance from the whole.

A child process loads the task and reads the labels (``tasks.partition_labels``), so torch and the task's
code are not imported here.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box

from fl_queue.common import escaping
from fl_queue.common.own_modules import python_command
from fl_queue.config.run_config import RunConfig
from fl_queue.data import partition
from fl_queue.data.partitioners import Labels, Owners
from fl_queue.errors import ConfigError, DataError, FLQueueError
from fl_queue.protocol import virtual_clients
from fl_queue.reporting import plotting, rich_console
from fl_queue.reporting.rich_console import Table

#: Clients shown one by one; of more there is a summary.
SHOWN = 40
_CLASSES_SHOWN = 12
_QUANTILES = {"least": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "most": 1.0}


@dataclass(frozen=True)
class ClientShare:
    """
    One client's share.

    Args:
        share: Its number, from 0.
        client: The virtual client it belongs to; empty when clients are not known yet.
        examples: Its samples, with those that are held out.
        counts: (K,) samples of each class.
        labels: Classes it has.
        entropy: Of its classes, bits: 0 for one class, log2 K for all alike.
        distance: Total variation between its classes and the whole's, 0 to 1: the part of its
            samples that would have to be of another class.
    """

    share: int
    client: str
    examples: int
    counts: tuple[int, ...]
    labels: int
    entropy: float
    distance: float


@dataclass(frozen=True)
class PartitionPreview:
    """
    A whole partition.

    Args:
        classes: (K,) the labels, in the order of ``counts``.
        counts: (K,) samples of each in the whole data set.
        portions: In the order of shares.
    """

    partition: str
    classes: tuple[int, ...]
    counts: tuple[int, ...]
    portions: tuple[ClientShare, ...]

    @property
    def left_over(self) -> int:
        """Samples that belong to no client."""
        return sum(self.counts) - sum(portion.examples for portion in self.portions)


def preview_partition(config: RunConfig, data_dir: str = "", clients: int = 0) -> PartitionPreview:
    """
    Compute the shares of a config's partition.

    Args:
        config: Its ``[data]`` section, seed and task decide.
        data_dir: This machine's data folder; wins over ``data.dir``.
        clients: Number of clients, if the config does not have it.

    Raises:
        ConfigError: The split is impossible, or the number of shares is missing or contradictory.
        DataError: The data are missing or damaged.
        FLQueueError: The task's own code failed.
    """
    configured = config.data.shares or config.clients.count
    if clients and configured and clients != configured:
        raise ConfigError(
            "--clients",
            f"{clients} contradicts the config, which has {configured} shares; leave it out",
        )
    shares = configured or clients
    is_site = config.data.partition == "site"
    if not shares and not is_site:
        raise ConfigError(
            "data.shares",
            "is 0, and the clients are not known yet; give their number with --clients",
        )
    labels, owners = _read(config, data_dir)
    if is_site:
        parts = [np.arange(len(labels))]
    else:
        parts = partition.partition_indices(config.data, labels, shares, config.run.seed, owners)
    count = config.clients.count
    names = virtual_clients.clients(count) if count and not is_site else []
    return _mix(config.data.partition, labels, parts, names)


def summary(mix: PartitionPreview) -> dict[str, dict[str, float]]:
    """Compute quantiles over the clients. Returns: quantity -> quantile -> value."""
    found = {}
    for name in ("examples", "labels", "entropy", "distance"):
        values = [getattr(portion, name) for portion in mix.portions]
        found[name] = {
            label: float(np.quantile(values, at)) for label, at in _QUANTILES.items()
        } | {"mean": float(np.mean(values))}
    return found


def to_json(mix: PartitionPreview) -> dict[str, Any]:
    """Convert a preview to JSON values."""
    return {
        "partition": mix.partition,
        "classes": list(mix.classes),
        "counts": list(mix.counts),
        "left_over": mix.left_over,
        "summary": summary(mix),
        "clients": [asdict(portion) for portion in mix.portions],
    }


def table(mix: PartitionPreview) -> Table:
    """The clients for a terminal, each with its numbers by class; of many the quantiles."""
    caption = (
        f"{mix.partition}: {sum(mix.counts)} samples of {len(mix.classes)} classes, "
        f"{len(mix.portions)} shares, {mix.left_over} samples left over"
    )
    drawn = rich_console.table(
        caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    if len(mix.portions) > SHOWN:
        drawn.add_column("Of all clients")
        for label in (*_QUANTILES, "mean"):
            drawn.add_column(label, justify="right")
        for name, values in summary(mix).items():
            digits = 0 if name in ("examples", "labels") else 3
            cells = [f"{values[label]:.{digits}f}" for label in _QUANTILES]
            drawn.add_row(name, *cells, f"{values['mean']:.{digits or 1}f}")
        return drawn
    by_class = len(mix.classes) <= _CLASSES_SHOWN
    for column in ("Client", "Examples", "Labels", "Entropy", "Distance"):
        drawn.add_column(column, justify="left" if column == "Client" else "right")
    for number in mix.classes if by_class else ():
        drawn.add_column(str(number), justify="right", style="dim")
    for portion in mix.portions:
        numbers = [str(count or "·") for count in portion.counts] if by_class else []
        drawn.add_row(
            portion.client or f"share {portion.share}",
            str(portion.examples),
            str(portion.labels),
            f"{portion.entropy:.2f}",
            f"{portion.distance:.2f}",
            *numbers,
        )
    return drawn


def plot(path: Path, mix: PartitionPreview, title: str) -> None:
    """
    Draw each client's examples, stacked by class; many clients are ordered by size.

    Raises:
        ConfigError: matplotlib is not installed, or does not know the format.
        DataError: The file cannot be written.
    """
    figure = plotting.new_figure(9.0, 4.5)
    axes = figure.subplots()
    portions: Sequence[ClientShare] = mix.portions
    few = len(portions) <= SHOWN
    if not few:
        portions = sorted(portions, key=lambda portion: -portion.examples)
    heights = np.array([portion.counts for portion in portions]).T  # (K, S)
    places = np.arange(len(portions))
    bottom = np.zeros(len(portions))
    colours = plotting.colours(len(mix.classes))
    for number, row, colour in zip(mix.classes, heights, colours, strict=True):
        if few:
            axes.bar(places, row, bottom=bottom, color=colour, width=0.85, label=str(number))
        else:
            # One shape a class: a thousand bars of ten classes take as many seconds.
            axes.fill_between(
                places, bottom, bottom + row, step="mid", color=colour, lw=0, label=str(number)
            )
        bottom += row
    axes.set_title(escaping.plotted(title))
    axes.set_xlabel("Share" if few else "Clients, from the largest share to the smallest")
    axes.set_ylabel("Examples, by label")
    axes.margins(x=0.01)
    plotting.whole_numbers(axes.xaxis)
    axes.grid(alpha=0.3, axis="y")
    if len(mix.classes) <= 2 * _CLASSES_SHOWN:
        figure.legend(loc="outside right upper", title="Label", reverse=True)
    plotting.save(figure, path)


def _read(config: RunConfig, data_dir: str) -> tuple[Labels, Owners | None]:
    """Labels (N,) and owners (N,) that the task of a config splits, read by another process."""
    given = json.dumps({"config": config.record(), "data_dir": data_dir})
    with tempfile.TemporaryDirectory(prefix="fl-queue-") as folder:
        out = Path(folder) / "labels"
        done = subprocess.run(
            python_command("-m", "fl_queue.tasks.partition_labels", str(out)),
            input=given, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            with np.load(out) as arrays:
                return arrays["labels"], arrays.get("owners")
        if not out.is_file():
            last = done.stderr.strip().rpartition("\n")[2] or f"it ended with {done.returncode}"
            raise FLQueueError(f"task {config.run.task} failed to read its data: {last}")
        error = json.loads(out.read_text())
    raise {"config": ConfigError, "data": DataError}[error["kind"]](*error["about"])


def _mix(
    kind: str, labels: Labels, parts: Sequence[Labels], names: Sequence[str]
) -> PartitionPreview:
    classes, numbers = np.unique(labels, return_inverse=True)
    counts = np.bincount(numbers, minlength=len(classes))
    whole = counts / len(labels)
    portions = []
    for share, part in enumerate(parts):
        own = np.bincount(numbers[part], minlength=len(classes))
        mine = own / max(1, len(part))
        portions.append(
            ClientShare(
                share=share,
                client=names[share] if share < len(names) else "",
                examples=len(part),
                counts=tuple(own.tolist()),
                labels=int((own > 0).sum()),
                entropy=_entropy(mine),
                distance=float(np.abs(mine - whole).sum() / 2),
            )
        )
    return PartitionPreview(kind, tuple(classes.tolist()), tuple(counts.tolist()), tuple(portions))


def _entropy(probabilities: NDArray[np.float64]) -> float:
    some = probabilities[probabilities > 0]
    # max: a single class gives -0.0.
    return max(0.0, float(-(some * np.log2(some)).sum()))
