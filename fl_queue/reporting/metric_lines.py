"""Finished metrics in words, with the clients and examples that they are of. No Redis here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def describe_metrics(finished: Mapping[str, float]) -> str:
    """Describe finished metrics: ``accuracy 0.9312, loss 0.2210``."""
    first = [name for name in ("accuracy", "loss") if name in finished]
    rest = sorted(set(finished) - set(first))
    return ", ".join(f"{name} {finished[name]:.4f}" for name in (*first, *rest)) or "no metrics"


def coverage_in_words(coverage: Mapping[str, Sequence[int]]) -> str:
    """Coverage as text: ``accuracy, f1: 8 clients, 40 examples; loss: 7 clients, 35 examples``."""
    return "; ".join(
        f"{', '.join(names)}: {of_whom}" for of_whom, names in by_coverage(coverage).items()
    )


def with_coverage(finished: Mapping[str, float], coverage: Mapping[str, Sequence[int]]) -> str:
    """Metrics with what they are of: ``accuracy 0.9312 (2 clients, 40 examples), loss 0.2 (3 ...)``."""
    groups = by_coverage({name: coverage.get(name, ()) for name in finished})
    return ", ".join(
        describe_metrics({name: finished[name] for name in names})
        + (f" ({of_whom})" if of_whom else "")
        for of_whom, names in groups.items()
    )


def by_coverage(coverage: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """What metrics are of, in words -> their names."""
    groups: dict[str, list[str]] = {}
    for name, of in coverage.items():
        words = f"{of[0]} client{'s' * (of[0] != 1)}, {of[1]} examples" if of else ""
        groups.setdefault(words, []).append(name)
    return groups
