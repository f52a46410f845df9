"""
A run's metrics as points of named curves, for plotting tools. No Redis here.

    test/<metric>                   by version: the central test
    validation/<metric>             by version: the clients' validation, merged
    client/<client>/<metric>        by version: one client's own validation
    train/<metric>                  by version that the training made: training, merged
    round/<what>                    by round: seconds, accepted, rejected, missing, committed

The values equal those of the tables in ``rounds_table``: both choose the same records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fl_queue import metrics
from fl_queue.common import escaping
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import Outcome, Purpose, RoundRecord
from fl_queue.reporting import rounds_table
from fl_queue.reporting.rounds_table import Curve


@dataclass(frozen=True, order=True)
class Point:
    """
    One number.

    Args:
        curve: Name, as above.
        step: Version, or for ``round/`` the round.
        value: The number.
        at: Unix time of the control server, seconds: when the round it belongs to ended.
    """

    curve: str
    step: int
    value: float
    at: float


def points(records: Sequence[RoundRecord], evaluations: Curve) -> list[Point]:
    """
    Every number of a run, sorted by curve and step; each (curve, step) once.

    A later record or test adds points. It changes a point only when a repeated round has a fuller
    validation of the same base version.

    Args:
        records: The history.
        evaluations: Version -> finished metrics of the central test.
    """
    made = _made_at(records)
    found = [
        *_curve("test", evaluations, made),
        *_curve("validation", rounds_table.validation(records), made),
    ]
    for version, record in rounds_table.judges(records):
        for client, finished in record.client_validation.items():
            # A simulation may have a hundred thousand virtual clients.
            if not client.startswith(identifiers.VIRTUAL):
                found += _curve(f"client/{escaping.curve_part(client)}", {version: finished}, made)
    for record in records:
        if record.purpose == Purpose.train:
            found += _of_round(record)
    return sorted(found)


def _made_at(records: Sequence[RoundRecord]) -> dict[int, float]:
    """Version -> when it was made; of version 0 (whose round leaves no record) when it was first used."""
    made = {record.base_version: record.opened_at for record in reversed(records)}
    return made | {record.version: _end(record) for record in records if record.version is not None}


def _end(record: RoundRecord) -> float:
    return record.opened_at + record.elapsed_s


def _curve(prefix: str, curve: Curve, made: Mapping[int, float]) -> Iterator[Point]:
    for version, finished in curve.items():
        for name, value in finished.items():
            yield Point(
                f"{prefix}/{escaping.curve_part(name)}",
                version,
                float(value),
                made.get(version, 0.0),
            )


def _of_round(record: RoundRecord) -> Iterator[Point]:
    at = _end(record)
    counts = {
        "seconds": record.elapsed_s,
        "accepted": len(record.accepted),
        "rejected": len(record.rejected),
        "missing": len(record.missing),
        "committed": int(record.outcome == Outcome.committed),
    }
    for name, value in counts.items():
        yield Point(f"round/{name}", record.round, float(value), at)
    if record.version is not None:
        for name, value in metrics.finish(record.train).items():
            yield Point(f"train/{escaping.curve_part(name)}", record.version, value, at)
