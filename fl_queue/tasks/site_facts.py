"""Facts of a site's task and data, for the comparison before round 1. Imports torch; no Redis here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fl_queue._version import __version__
from fl_queue.errors import ConfigError
from fl_queue.protocol import site_facts
from fl_queue.tasks import calls
from fl_queue.tasks.base import ClientData, Task, code_digest
from fl_queue.tasks.error_disclosure import class_name, words_of
from fl_queue.training.batches import input_of
from fl_queue.training.sgd import Samples, size_of

#: Samples that are looked at: where they differ in size, so may those of other sites.
_LOOKED_AT = 4


def facts_of(
    task: Task, data: ClientData, counts: Mapping[str, int] | None = None
) -> dict[str, str]:
    """
    Facts of this site's task and data: no value of its data, only shapes, code, and names that the config has.

    Args:
        data: As the task loads them at this site.
        counts: Of a look at all of them (``check_data``).

    Raises:
        ConfigError: ``describe`` returns a fact that cannot be sent.
    """
    samples = _samples(data.train)
    found = {
        **_of_inputs([np.shape(one) for one in samples], _kind(samples[0]) if samples else ""),
        **_described(calls.described(task, data), words_of(task.config)),
        "code": _code(task),
        **_files(calls.file_counts(data.counts), calls.file_counts(counts or {})),
    }
    return site_facts.check(found)


def _files(listed: Mapping[str, int], looked: Mapping[str, int]) -> dict[str, str]:
    counts = Counter(listed) + Counter(looked)
    line = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
    return {site_facts.FILES: line} if line else {}


def _samples(dataset: Samples) -> list[Any]:
    """The first inputs; none of a data set that shows no samples, as a Flower client's."""
    try:
        return [_input(dataset[index]) for index in range(min(_LOOKED_AT, size_of(dataset)))]
    except NotImplementedError:
        return []


def _input(sample: Any) -> Any:
    """The first input of a sample: of a mapping the first that is no target."""
    if isinstance(sample, Mapping):
        return next(iter(input_of(sample).values()), None)
    return sample[0] if isinstance(sample, (tuple, list)) else sample


def _of_inputs(shapes: Sequence[tuple[int, ...]], kind: str) -> dict[str, str]:
    """Shape of an input, ``?`` where samples differ; of images and volumes the channels, too."""
    if not shapes or len({len(shape) for shape in shapes}) > 1:
        return {}
    sizes = [
        str(found.pop()) if len(found) == 1 else "?"
        for found in map(set, zip(*shapes, strict=True))
    ]
    whole = {"input": f"{kind} ({', '.join(sizes)})"}
    return whole | ({"channels": sizes[0]} if len(sizes) in (3, 4) and sizes[0] != "?" else {})


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(value.dtype).removeprefix("torch.")
    # Not ``str(dtype)`` of anything: that of a numpy table has the names of its columns.
    dtype = getattr(value, "dtype", None)
    return dtype.name if isinstance(dtype, np.dtype) else class_name(type(value))


def _described(raw: Mapping[str, Any], words: Collection[str]) -> dict[str, str]:
    known = (*site_facts.NOTED, *site_facts.NOT_COMPARED)
    for key in raw:
        if key in known:
            raise ConfigError(
                "describe",
                f"{key} is used already; give it another name",
                public="a name is used already; give it another one",
            )
    return {
        key: site_facts.word(value, words)
        if isinstance(value, str)
        else site_facts.listed(list(value), words)
        for key, value in raw.items()
        if value
    }


def _code(task: Task) -> str:
    if ":" in task.config.run.task:
        return code_digest(task)[:16]
    return f"fl_queue {__version__}"
