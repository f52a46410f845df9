"""
The fields of the config's ``[data]`` section, and what about them is refused before a run begins.

What depends on the data themselves is refused where they are read (``partition``, ``splits``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from fl_queue.config.section import FIXED, Section, Use, option
from fl_queue.config.task_catalog import TASKS
from fl_queue.errors import ConfigError

Partition = Literal[
    "iid", "shards", "label_count", "dirichlet_label", "dirichlet_balanced", "dirichlet_hsu", "quantity_dirichlet",
    "quantity_power", "quantity_linear", "quantity_square", "quantity_exponential", "quantity_sizes", "natural", "site",
]  # fmt: skip
#: Ways to split one data set, in the order in which they are explained; ``site`` splits nothing.
PARTITIONS: tuple[str, ...] = tuple(kind for kind in get_args(Partition) if kind != "site")
#: Class of flwr-datasets -> the partition with its rule. Where they differ: docs/guides/partitions.md.
FLWR_PARTITIONERS: Mapping[str, str] = MappingProxyType(
    {
        "IidPartitioner": "iid",
        "ShardPartitioner": "shards",
        "PathologicalPartitioner": "label_count",
        "DirichletPartitioner": "dirichlet_balanced",
        "InnerDirichletPartitioner": "dirichlet_hsu",
        "LinearPartitioner": "quantity_linear",
        "SquarePartitioner": "quantity_square",
        "ExponentialPartitioner": "quantity_exponential",
        "SizePartitioner": "quantity_sizes",
        "NaturalIdPartitioner": "natural",
        "GroupedNaturalIdPartitioner": "natural",
    }
)

#: Feature skew: what a client's images have more of, the higher its share.
SKEWS = ("noise", "rotation")


@dataclass(frozen=True, kw_only=True)
class DataSection(Section):
    """Folder of the data of built-in tasks, and partition over clients."""

    NAME = "data"

    source: Literal["excerpt", "full"] = option(
        "excerpt", "MNIST: the shipped excerpt, or the full set", use=FIXED
    )
    dir: str = option(
        "",
        "folder of the data, for runs that this machine trains by itself; a site reads its worker's --data, and this with --data-from-config only",
    )
    partition: Partition = option(
        "iid",
        "how one data set is split over the clients, also by the name of a class of flwr-datasets; site: every client uses all of its own folder",
        use=FIXED,
        aliases=FLWR_PARTITIONERS,
    )
    alpha: float = option(
        0.5,
        "concentration of the Dirichlet partitions; small is skewed; above 0",
        above=0,
        use=FIXED,
    )
    shards_per_client: int = option(
        2, "shards partition: label-sorted shards each client gets, 1 or more", low=1, use=FIXED
    )
    samples_per_client: int = option(
        500, "dirichlet_hsu: samples each client gets, 1 or more", low=1, use=FIXED
    )
    labels_per_client: int = option(
        2, "label_count partition: classes each client has, 1 or more", low=1, use=FIXED
    )
    exponent: float = option(
        1.0,
        "quantity_power partition: the r-th largest share is as r**-exponent; 0 equal, to 10",
        low=0.0,
        high=10.0,
        use=FIXED,
    )
    sizes: tuple[int, ...] = option(
        (),
        "quantity_sizes partition: samples of each share, such as [100, 300, 300]; one number for each share",
        low=1,
        use=Use(fixed=True, newer=True),
    )
    noise: float = option(
        0.0,
        "feature skew: share i of N has noise of standard deviation noise * i / N on its pixels in [0, 1]; 0 none, to 10",
        low=0.0,
        high=10.0,
        use=FIXED,
    )
    rotation: float = option(
        0.0,
        "feature skew: share i of N has its images turned by rotation * i / N degrees; 0 none, to 360",
        low=0.0,
        high=360.0,
        use=FIXED,
    )
    shares: int = option(
        0,
        "parts the data is split into; 0: as many as there are clients at the first round",
        low=0,
        use=FIXED,
    )
    validation_fraction: float = option(
        0.1,
        "part of a client's share it holds out for validation, 0 to 0.9; by whole owners where they are known",
        low=0.0,
        high=0.9,
        use=FIXED,
    )
    train_per_class: tuple[int, ...] = option(
        (),
        "draw this range of training samples per class, such as [20, 30]; empty: all",
        low=1,
        use=FIXED,
    )
    validation_per_class: tuple[int, ...] = option(
        (),
        "draw this range of validation samples per class, such as [10, 20]; empty: by validation_fraction",
        low=1,
        use=FIXED,
    )


def check_data(data: DataSection, task: str, options: Mapping[str, Any], count: int) -> None:
    """
    Refuse what cannot work together.

    Args:
        data: The section, each field checked by itself.
        task: ``run.task``.
        options: The ``[task]`` table.
        count: Virtual clients of a simulation; 0 when the clients are not known yet.

    Raises:
        ConfigError: Names the field to change.
    """
    for name in ("train_per_class", "validation_per_class"):
        span = getattr(data, name)
        if span and (len(span) != 2 or span[0] > span[1]):
            raise ConfigError(f"data.{name}", f"{list(span)} is not a range [least, most]")
    if data.partition == "natural":
        _check_natural(task, options)
    for name in SKEWS:
        if getattr(data, name):
            _check_skew(f"data.{name}", data.partition, task)
    _check_sizes(data, count)
    if data.partition == "label_count":
        classes = _class_count(task, options)
        if classes and data.labels_per_client > classes:
            raise ConfigError(
                "data.labels_per_client",
                f"{data.labels_per_client} is more than the {classes} classes of {task}; lower it",
            )
    if task in TASKS and TASKS[task].excerpt and data.source == "excerpt":
        _check_numbers(data, TASKS[task].excerpt, data.shares or count)


def _check_sizes(data: DataSection, count: int) -> None:
    """Raise ConfigError unless there is a size for each share where sizes count. Args: ``count``: as of ``check_data``."""
    given = len(data.sizes)
    if data.partition != "quantity_sizes":
        if given:
            raise ConfigError(
                "data.sizes",
                f"is for data.partition = quantity_sizes, and it is {data.partition}; leave it out",
            )
        return
    if not given:
        raise ConfigError(
            "data.sizes",
            "is empty; with data.partition = quantity_sizes, give the samples of each share, such as [100, 300]",
        )
    shares = data.shares or count
    if shares and shares != given:
        raise ConfigError(
            "data.sizes", f"has {given} sizes, and there are {shares} shares; give one for each"
        )


def _check_skew(field: str, partition: str, task: str) -> None:
    if partition == "site":
        raise ConfigError(
            field,
            "is part of a share, and with data.partition = site there are no shares; set it to 0, or "
            "another partition",
        )
    if task in TASKS and not TASKS[task].skews:
        raise ConfigError(field, f"is for images, and {task} has none; set it to 0")


def _check_natural(task: str, options: Mapping[str, Any]) -> None:
    if task in TASKS and TASKS[task].classes:
        raise ConfigError(
            "data.partition",
            f"natural needs the owner of each sample, and {task} has no owners; use "
            "image-folder, csv or a task of your own, or another partition",
        )
    if task in TASKS and options.get("owner") == "":
        raise ConfigError(
            "task.owner", "is empty; with data.partition = natural, name the column of owners"
        )


def _class_count(task: str, options: Mapping[str, Any]) -> int:
    """Number of classes of a built-in task; 0 when that depends on its data."""
    if task not in TASKS:
        return 0
    listed = options.get("classes", "")
    return TASKS[task].classes or len([name for name in listed.split(",") if name.strip()])


def _check_numbers(data: DataSection, samples: int, shares: int) -> None:
    if shares > samples:
        raise ConfigError(
            "data.shares",
            f"{shares} shares cannot be cut from the {samples} shipped images; "
            'have fewer clients, or set data.source = "full"',
        )
    if data.partition == "quantity_sizes" and sum(data.sizes) > samples:
        raise ConfigError(
            "data.sizes",
            f"they are {sum(data.sizes)} images together, and {samples} are shipped; "
            'lower them, or set data.source = "full"',
        )
    each = {"shards": "shards_per_client", "dirichlet_hsu": "samples_per_client"}
    field = each.get(data.partition)
    if field and shares * getattr(data, field) > samples:
        raise ConfigError(
            f"data.{field}",
            f"{shares} shares of {getattr(data, field)} need {shares * getattr(data, field)} images, and {samples} "
            f'are shipped; at most {samples // shares}, or set data.source = "full"',
        )
