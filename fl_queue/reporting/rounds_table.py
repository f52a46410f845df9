"""
A run's history as rows, tables and a plot: one row for each training round.

A row has the metrics of the version that its round made: those of the central test, and until they are
known those of the clients' validation. The latter come with the round (or the closing evaluation) that
had this version as its base.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fl_queue import metrics
from fl_queue.common import escaping
from fl_queue.errors import DataError
from fl_queue.protocol.records import MAKES_NEXT, Outcome, Purpose, RoundRecord
from fl_queue.reporting import metric_panels, plotting, rich_console
from fl_queue.reporting.baselines import Baseline
from fl_queue.reporting.metric_lines import by_coverage
from fl_queue.reporting.metric_lines import coverage_in_words as coverage_in_words
from fl_queue.reporting.metric_lines import with_coverage as with_coverage
from fl_queue.reporting.rich_console import Table, Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fl_queue.store import Store

#: Version -> its finished metrics.
Curve = Mapping[int, Mapping[str, float]]
Source = Literal["test", "validation", ""]

#: Outcomes of rounds that made no version.
_FRUITLESS = (Outcome.abandoned, Outcome.cancelled)
_COLUMNS = ("Round", "Accepted", "Late", "Rejected", "Version", "Loss", "Accuracy", "Seconds")
_PLOTTED = ("accuracy", "loss")
_LOGGED_PLOTTED = 6
_IN_TABLE = ("loss", "accuracy", "personal_accuracy", "finetuned_accuracy")
#: Other models that clients validate -> column in the table, name and colour in a plot.
_BESIDE = {
    "personal": ("Personal", "personal models", "C2"),
    "finetuned": ("Finetuned", "fine-tuned", "C3"),
}


@dataclass(frozen=True)
class RoundRow:
    """
    One training round.

    Args:
        round: Number, from 1.
        outcome: ``committed``, ``abandoned``, or ``restored`` where the run went back to an older version.
        accepted: Updates that were merged.
        clipped: Of them, those that were scaled down to ``aggregation.clip_norm``.
        late: Updates that came after the round had ended.
        rejected: Updates that came in time and were not merged.
        version: The version it made; None when it made none.
        loss, accuracy: Of that version; None while unknown, or when the task has no such metric.
        source: Where they are from: ``test``, ``validation``, or empty while unknown.
        seconds: Counted duration.
        reason: Why the round ended.
        digest: BLAKE3 of that version, hexadecimal: equal digests are equal bits.
        personal_accuracy, finetuned_accuracy: Of the clients' own models beside that version, and of
            the version fine-tuned by each, by their validation; None while unknown, or without such.
        training: What else than the loss the training that made it reported, as means over the
            clients: what the task logged (``context.log``).
        clients, examples: How many clients, and how many of their examples, accuracy (else loss) is
            of; None unless it is from the clients' validation.
        coverage: Metric of the clients' validation of that version -> how many clients, and how many of their
            examples, it is of.
        train_coverage: The same of the training that made it, the loss among it.
    """

    round: int
    outcome: Outcome
    accepted: int
    late: int
    rejected: int
    version: int | None
    loss: float | None
    accuracy: float | None
    source: Source
    seconds: float
    reason: str
    digest: str | None
    clipped: int = 0
    personal_accuracy: float | None = None
    finetuned_accuracy: float | None = None
    training: Mapping[str, float] = field(default_factory=dict)
    clients: int | None = None
    examples: int | None = None
    coverage: Mapping[str, Sequence[int]] = field(default_factory=dict)
    train_coverage: Mapping[str, Sequence[int]] = field(default_factory=dict)


class RunHistory(NamedTuple):
    """
    The ended rounds of a run, read once.

    Args:
        records: The history.
        tested: Version -> finished metrics of the central test.
        rows: One row for each training round.
    """

    records: list[RoundRecord]
    tested: dict[int, dict[str, float]]
    rows: list[RoundRow]


def history_of(store: Store, run: str) -> RunHistory:
    """Read a run's history from the control server. Args: ``run``: run id."""
    # Lazy: drawing a table of records needs no redis-py.
    from fl_queue.models import selection

    records, tested = store.control.history.records(run), selection.test_metrics(store, run)
    late = store.control.receipts.late_counts(run)
    return RunHistory(records, tested, rows(records, tested, late))


def rounds_of(store: Store, run: str) -> list[RoundRow]:
    """Read a run's training rounds from the control server. Args: ``run``: run id."""
    return history_of(store, run).rows


def rows(
    records: Sequence[RoundRecord], evaluations: Curve, late: Mapping[int, int]
) -> list[RoundRow]:
    """
    One row for each round that made a version, or should have, in the order of the history.

    Args:
        records: The history.
        evaluations: Version -> finished metrics of the central test.
        late: Round -> updates that came after it had ended.
    """
    validated = validation(records)
    coverage = validation_coverage(records)
    return [
        _row(record, evaluations, validated, coverage, late.get(record.round, 0))
        for record in records
        if record.purpose in (*MAKES_NEXT, Purpose.restore)
    ]


def validation(records: Sequence[RoundRecord]) -> dict[int, dict[str, float]]:
    """Version -> finished metrics of the clients' validation, for versions that have any."""
    judged = {version: metrics.finish(record.validation) for version, record in judges(records)}
    return {version: finished for version, finished in judged.items() if finished}


def validation_coverage(
    records: Sequence[RoundRecord],
) -> dict[int, dict[str, tuple[int, int]]]:
    """Version -> metric -> number of clients and of examples in its merged validation."""
    return {version: metrics.told_by(record.validation) for version, record in judges(records)}


def training(records: Sequence[RoundRecord]) -> dict[int, dict[str, float]]:
    """Version -> training metrics of the round that made it, without the loss; only versions with any."""
    found = {record.version: _training(record) for record in records if record.version is not None}
    return {version: finished for version, finished in found.items() if finished}


def judges(records: Sequence[RoundRecord]) -> Iterator[tuple[int, RoundRecord]]:
    """
    Choose one validation record for each version: the one with the most clients, then the newest.

    An abandoned round and its successor have the same base version.
    """
    chosen: dict[int, RoundRecord] = {}
    for record in records:
        rival = chosen.get(record.base_version)
        if record.validation and (rival is None or _turnout(record) >= _turnout(rival)):
            chosen[record.base_version] = record
    yield from sorted(chosen.items())


def client_validation(records: Sequence[RoundRecord]) -> dict[str, dict[int, dict[str, float]]]:
    """Client -> version -> finished metrics of its validation of that version, clients sorted."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for version, record in judges(records):
        for client, finished in record.client_validation.items():
            found.setdefault(client, {})[version] = finished
    return dict(sorted(found.items()))


def judged_by(row: RoundRow) -> str:
    """What loss and accuracy of a row are of, in words; empty while they are unknown."""
    if row.source != "validation":
        return row.source
    groups = by_coverage({name: of for name, of in _shown(row).items() if name in _PLOTTED})
    return next(iter(groups)) if len(groups) == 1 else coverage_in_words(_shown(row))


def table(rows: Sequence[RoundRow], is_model: bool = True) -> Table:
    """
    Draw the rows for a terminal, with the reasons of abandoned rounds below.

    Args:
        is_model: Whether its versions are of a model; those of an analysis have no loss and no accuracy.
    """
    drawn = rich_console.table(caption=_caption(rows), caption_justify="left")
    beside = {
        column: f"{part}_accuracy"
        for part, (column, _, _) in _BESIDE.items()
        if any(getattr(row, f"{part}_accuracy") is not None for row in rows)
    }
    logged = _logged(rows)
    columns = [name for name in _COLUMNS if is_model or name not in ("Loss", "Accuracy")]
    for column in (*columns, *beside, *logged):
        drawn.add_column(column, justify="right")
    for row in rows:
        star = "*" if row.source == "validation" else ""
        version = row.outcome if row.outcome in _FRUITLESS else _or_dash(row.version)
        drawn.add_row(
            str(row.round),
            f"{row.accepted} ({row.clipped} clipped)" if row.clipped else str(row.accepted),
            str(row.late),
            str(row.rejected),
            version,
            *((_decimal(row.loss, star), _decimal(row.accuracy, star)) if is_model else ()),
            f"{row.seconds:.1f}",
            *(_decimal(getattr(row, name), "*") for name in beside.values()),
            *(_decimal(row.training.get(name), "") for name in logged),
            style="red" if row.outcome in _FRUITLESS else None,
        )
    return drawn


def to_json(rows: Sequence[RoundRow]) -> list[dict[str, Any]]:
    """The rows as JSON has them."""
    return [asdict(row) for row in rows]


def to_csv(rows: Sequence[RoundRow]) -> str:
    """
    The rows as CSV with a header line.

    Training metrics are ``train_<name>``, unknown values empty cells, coverages in words.
    """
    text = io.StringIO()
    known = [column.name for column in fields(RoundRow) if column.name != "training"]
    columns = [*known, *(f"train_{name}" for name in _logged(rows))]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([escaping.csv_cell(column) for column in columns])
    for row in to_json(rows):
        cells = row | {f"train_{name}": value for name, value in row["training"].items()}
        cells |= {name: coverage_in_words(row[name]) for name in ("coverage", "train_coverage")}
        writer.writerow([escaping.csv_cell(cells.get(column, "")) for column in columns])
    return text.getvalue()


def plot(
    path: Path,
    records: Sequence[RoundRecord],
    evaluations: Curve,
    baselines: Sequence[Baseline] = (),
) -> None:
    """
    Draw accuracy and loss by version: the central test, the clients' validation and its range.

    Personal and fine-tuned models are drawn in the same panels, logged training metrics in panels
    below (the first six names).

    Args:
        path: Image to write; its suffix is the format (PNG without one).
        records: The history.
        evaluations: Version -> finished metrics of the central test.
        baselines: Drawn beside it.

    Raises:
        ConfigError: matplotlib is not installed, or does not know the format.
        DataError: There is nothing to plot, or the file cannot be written.
    """
    validated = validation(records)
    names = [
        name
        for name in _PLOTTED
        if any(
            name in finished for curve in (evaluations, validated) for finished in curve.values()
        )
    ]
    trained = training(records)
    logged = sorted({name for finished in trained.values() for name in finished})[:_LOGGED_PLOTTED]
    if not names and not logged:
        raise DataError(str(path), "there is nothing to plot yet; no version has metrics")
    count = len(names) + len(logged)
    figure = plotting.new_figure(7.0, 1.0 + 3.2 * count)
    panels = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=False):
        _draw(axes, name, evaluations, validated, records)
        metric_panels.draw_beside(axes, name, baselines, held_out=not evaluations)
        metric_panels.finish_panel(axes, name)
    for axes, name in zip(panels[len(names) :], logged, strict=True):
        metric_panels.draw_curves(axes, [("training", trained, name, "C4")])
        metric_panels.finish_panel(axes, name)
    panels[-1].set_xlabel("Model version (0: the initial model)")
    plotting.save(figure, path)


def _turnout(record: RoundRecord) -> int:
    return len(record.client_validation)


def _training(record: RoundRecord) -> dict[str, float]:
    finished = metrics.finish(record.train) if record.version is not None else {}
    return {name: value for name, value in finished.items() if name != "loss"}


def _row(
    record: RoundRecord,
    evaluations: Curve,
    validated: Curve,
    coverage: Mapping[int, Mapping[str, tuple[int, int]]],
    late: int,
) -> RoundRow:
    source: Source = ""
    of: tuple[int | None, int | None] = (None, None)
    by: Mapping[str, tuple[int, int]] = {}
    trained = metrics.told_by(record.train) if record.version is not None else {}
    finished: Mapping[str, float] = {}
    own: Mapping[str, float] = {}
    if record.version is not None:
        own = validated.get(record.version, {})
        by = coverage.get(record.version, {})
        if evaluations.get(record.version):
            source, finished = "test", evaluations[record.version]
        elif record.version in validated:
            source, finished = "validation", validated[record.version]
            of = by.get("accuracy", by.get("loss", of))
    return RoundRow(
        round=record.round,
        outcome=record.outcome,
        accepted=len(record.accepted),
        late=late,
        rejected=len(record.rejected),
        version=record.version,
        loss=finished.get("loss"),
        accuracy=finished.get("accuracy"),
        source=source,
        seconds=record.elapsed_s,
        reason=record.reason,
        digest=record.digest,
        clipped=len(record.clipped),
        personal_accuracy=own.get("personal_accuracy"),
        finetuned_accuracy=own.get("finetuned_accuracy"),
        training=_training(record),
        clients=of[0],
        examples=of[1],
        coverage={name: [*found] for name, found in by.items()},
        train_coverage={name: [*found] for name, found in trained.items()},
    )


def _caption(rows: Sequence[RoundRow]) -> Text | None:
    lines = [
        f"round {row.round} {row.outcome}: {row.reason}"
        for row in rows
        if row.outcome in _FRUITLESS
    ]
    beside = any((row.personal_accuracy, row.finetuned_accuracy) != (None, None) for row in rows)
    if beside or any(row.source == "validation" for row in rows):
        of_version = "; the central test has no result for this version" if not beside else ""
        newest = next((row for row in reversed(rows) if row.clients is not None), None)
        of_whom = _of_whom(newest) if newest else ""
        lines.append(f"* the clients' validation{of_whom}{of_version}")
    return rich_console.lines(lines) if lines else None


def _of_whom(row: RoundRow) -> str:
    """What the clients' validation of a row is of, in words."""
    if len(by_coverage(_shown(row))) > 1:
        return f", for version {row.version} {coverage_in_words(_shown(row))}"
    return f", for version {row.version} of {row.clients} clients with {row.examples} examples"


def _shown(row: RoundRow) -> dict[str, Sequence[int]]:
    return {name: of for name, of in row.coverage.items() if name in _IN_TABLE}


def _logged(rows: Sequence[RoundRow]) -> list[str]:
    return sorted({name for row in rows for name in row.training})


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _decimal(value: float | None, star: str) -> str:
    return "-" if value is None else f"{value:.4f}{star}"


def _ranges(records: Sequence[RoundRecord], name: str) -> dict[int, tuple[float, float]]:
    """Version -> (least, most) of the metric over the clients that validated it."""
    found = {
        version: [client[name] for client in record.client_validation.values() if name in client]
        for version, record in judges(records)
    }
    return {version: (min(values), max(values)) for version, values in found.items() if values}


def _draw(
    axes: Axes,
    name: str,
    evaluations: Curve,
    validated: Curve,
    records: Sequence[RoundRecord],
) -> None:
    curves = [
        ("central test", evaluations, name, "C0"),
        ("clients' validation", validated, name, "C1"),
        *(
            (f"{label}, clients' validation", validated, f"{part}_{name}", colour)
            for part, (_, label, colour) in _BESIDE.items()
        ),
    ]
    metric_panels.draw_curves(axes, curves)
    for metric, colour, of in (
        (name, "C1", ""),
        *((f"{part}_{name}", tint, f", {label}") for part, (_, label, tint) in _BESIDE.items()),
    ):
        if ranges := _ranges(records, metric):
            at = sorted(ranges)
            least, most = zip(*(ranges[version] for version in at), strict=True)
            # Lines as well as a band, which one version alone does not make.
            axes.vlines(at, least, most, color=colour, alpha=0.4, linewidth=1)
            axes.fill_between(
                at, least, most, color=colour, alpha=0.2, linewidth=0,
                label=f"range over the clients{of}",
            )  # fmt: skip
