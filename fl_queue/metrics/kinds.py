"""
What a task declares about its metrics: kinds that fl-queue computes, and metrics of the task's own sums.

A declaration is data, and no torch is needed to read one: the coordinator knows the names and directions before
the first round, and never has the task. How the kinds are computed of outputs and targets:
``fl_queue.training.metric_kinds``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fl_queue.common.spelling import nearest
from fl_queue.errors import ConfigError
from fl_queue.metrics.forms import MAX_OWN, Direction, OwnMetric

#: Most metrics of a task, the loss among them, and the form of each in a run's record.
MAX_NAMES = 64
_ENTRY = re.compile(r"[a-z]\w{0,63}(:(max|min))?", re.ASCII)
#: Target that counts in no metric: as torch's ``cross_entropy`` has it.
IGNORED = -100
Names = tuple[tuple[str, Direction], ...]


@dataclass(frozen=True)
class Classification:
    """Scores (B, C) of C classes, or log-odds (B,) or (B, 1), and whole targets (B,)."""

    kind: ClassVar[str] = "classification"
    gives: ClassVar[Names] = (
        ("accuracy", "max"),
        ("balanced_accuracy", "max"),
        ("f1", "max"),
        ("auc", "max"),
    )


@dataclass(frozen=True)
class MultiLabel:
    """
    Scores (B, L) of L labels that may hold together, and targets (B, L) of 0 and 1.

    Args:
        threshold: Above it a label is predicted; 0 for log-odds, 0.5 for probabilities.
    """

    kind: ClassVar[str] = "multilabel"
    gives: ClassVar[Names] = (("f1_micro", "max"), ("f1_macro", "max"), ("hamming", "min"))
    threshold: float = 0.0


@dataclass(frozen=True)
class Regression:
    """
    Predictions and targets of one shape.

    Args:
        center: About the mean of the targets, so that R2 keeps its digits where they are large.
    """

    kind: ClassVar[str] = "regression"
    gives: ClassVar[Names] = (("mae", "min"), ("rmse", "min"), ("r2", "max"))
    center: float = 0.0


@dataclass(frozen=True)
class Segmentation:
    """
    Scores (B, C, H, W), or log-odds (B, H, W) or (B, 1, H, W), and whole targets (B, H, W).

    Any number of dimensions may follow the classes.

    Args:
        background: Whether class 0 counts in the means over classes, of Dice and IoU.
    """

    kind: ClassVar[str] = "segmentation"
    gives: ClassVar[Names] = (("dice", "max"), ("iou", "max"), ("pixel_accuracy", "max"))
    background: bool = True


@dataclass(frozen=True)
class Language:
    """
    Scores (B, T, V) of V tokens, and targets (B, T), -100 where nothing is asked.

    Args:
        shift: By how many tokens the targets are ahead: 1 where they are the inputs themselves, as for causal
            models of transformers; 0 where they are aligned with the scores.
    """

    kind: ClassVar[str] = "language"
    gives: ClassVar[Names] = (("perplexity", "min"), ("token_accuracy", "max"))
    shift: int = 0


Kind = Classification | MultiLabel | Regression | Segmentation | Language
#: What ``Task.metrics`` may return in a list; a text is a kind's name.
Metric = Kind | OwnMetric
KINDS: dict[str, type[Kind]] = {
    one.kind: one for one in (Classification, MultiLabel, Regression, Segmentation, Language)
}


@dataclass(frozen=True)
class Declared:
    """
    The metrics of a task.

    Args:
        kinds: Computed of outputs and targets.
        own: Of the task's own sums.
        names: Name and direction of each metric, in the order of the declaration, the loss last.
    """

    kinds: tuple[Kind, ...]
    own: tuple[OwnMetric, ...]
    names: Names

    def to_record(self) -> list[str]:
        """The names as a run records them: ``dice:max``."""
        return [f"{name}:{direction}" for name, direction in self.names]


def declared(metrics: Iterable[Metric | str]) -> Declared:
    """
    A task's list of metrics, checked.

    Raises:
        ConfigError: An entry is none, two metrics have one name, or there are too many.
    """
    entries = [_entry(one) for one in metrics]
    kinds = tuple(one for one in entries if not isinstance(one, OwnMetric))
    own = tuple(one for one in entries if isinstance(one, OwnMetric))
    names: list[tuple[str, Direction]] = []
    for one in entries:
        names += [(one.name, one.direction)] if isinstance(one, OwnMetric) else one.gives
    names.append(("loss", "min"))
    twice = sorted({name for name, _ in names if [n for n, _ in names].count(name) > 1})
    if twice:
        raise ConfigError(
            "metrics", f"{twice[0]} is declared twice; give one of them another name", public=True
        )
    if len({one.numerator for one in own} | {one.denominator for one in own} - {""}) > MAX_OWN:
        raise ConfigError(
            "metrics", f"uses more than {MAX_OWN} sums of its own; use fewer", public=True
        )
    if len(names) > MAX_NAMES:
        raise ConfigError(
            "metrics",
            f"{len(names)} metrics with the loss; declare {MAX_NAMES} at most",
            public=True,
        )
    return Declared(kinds, own, tuple(names))


def _entry(one: Any) -> Metric:
    if isinstance(one, str) and one in KINDS:
        return KINDS[one]()
    if isinstance(one, type) and one in KINDS.values():
        return one()  # type: ignore[no-any-return]
    if isinstance(one, (*KINDS.values(), OwnMetric)):
        return one  # type: ignore[return-value]
    near = nearest(one, KINDS) if isinstance(one, str) else ""
    what = repr(one[:64]) if isinstance(one, str) else f"a {type(one).__name__}"
    rule = f"none of {', '.join(KINDS)}, nor a Ratio, Mean, Root, Exp or Macro"
    raise ConfigError("metrics", f"{what} is {rule}{near}", public=f"an entry is {rule}")


def parse_record(raw: Any) -> tuple[str, ...]:
    """A record of names, which a client may have written; empty where it is none."""
    is_list = isinstance(raw, (list, tuple)) and len(raw) <= MAX_NAMES
    if not is_list or not all(isinstance(one, str) and _ENTRY.fullmatch(one) for one in raw):
        return ()
    # A name with two directions would select one version and check another; no task's loss is best where it is high.
    found = names_in(raw)
    is_sound = len(found) == len(raw) and found.get("loss") != "max"
    return tuple(raw) if is_sound else ()


def names_in(record: Sequence[str]) -> dict[str, str]:
    """Name -> direction of a record; empty where the direction is not known."""
    pairs = (entry.partition(":") for entry in record)
    return {name: direction for name, _, direction in pairs}
