"""The report of a run that only evaluates a model: its figures, with intervals, over all sites and for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fl_queue import metrics
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import RunFailed, RunStateError
from fl_queue.metrics import reports
from fl_queue.metrics.reports import binary, calibration, classes, intervals, roc
from fl_queue.protocol.records import Outcome, RoundRecord
from fl_queue.store import RunState, Store

#: Figure -> those of the same report whose rows it is a share of.
_SHARES = {
    "accuracy": "rows",
    "sensitivity": "events",
    "specificity": "others",
    "event_rate": "rows",
}
#: Figures that belong to another one, and numbers of rows.
_BESIDE = ("rows", "events", "auc_error")
_LONE = "one site shows its figures only together with those of others, so no site's are shown"


def is_evaluation(store: Store, state: RunState) -> bool:
    """Whether a run only evaluates a model."""
    return runs.current_config(store, state.run_id).run.purpose == "evaluate"


def read(store: Store, state: RunState) -> dict[str, Any]:
    """
    The report of a run.

    Returns:
        ``metrics``: figure -> value, 95 % interval of the sample (``low``, ``high``), largest error by bins (``bound``),
        and the sites and rows it is of. ``per_site``: the same for each site that shows it. ``curve`` and
        ``calibration`` of binary targets and classes; ``confusion`` of classes.

    Raises:
        RunStateError: The run trains a model, or has not ended.
        RunFailed: No site has evaluated the model; names the reasons.
    """
    if not is_evaluation(store, state):
        raise RunStateError(state.name, "trains a model; see `fl-queue history`")
    record = _record(store, state)
    sums = record.validation if record is not None else {}
    finished = metrics.finish(sums)
    if record is None or not finished:
        raise RunFailed(state.name, f"no site has evaluated the model: {_why(state, record)}")
    hidden = [who for who in record.accepted if not record.client_validation.get(who)]
    over = metrics.told_by(sums)
    config = runs.current_config(store, state.run_id)
    found: dict[str, Any] = {
        "run": state.name,
        "task": config.run.task,
        "model": dict(state.initial["source"]) if state.initial else {},
        "evaluated": config.run.rows,
        "sites": len(record.accepted),
        "rows": int(sums["num_examples"]),
        "metrics": {},
        "per_site": {},
        "hidden_sites": len(hidden),
        "missing": list(record.missing),
        "refused": dict(record.rejected),
        "left_out": dict(record.ineligible),
    }
    if len(record.accepted) == 1 and hidden:
        raise RunFailed(state.name, f"{_LONE}, and no other has answered")
    for name, figure in figures(finished).items():
        sites, rows = over.get(name, (len(record.accepted), found["rows"]))
        found["metrics"][name] = {**figure, "sites": sites, "rows": rows}
    if len(hidden) != 1:
        found["per_site"] = {
            who: figures(values) for who, values in record.client_validation.items() if values
        }
    return found | curves(sums)


def figures(finished: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Figures with their intervals. Args: ``finished``: as of ``metrics.finish``."""
    counts = {name: finished.get(name, 0.0) for name in ("rows", "events")}
    counts["others"] = counts["rows"] - counts["events"]
    found: dict[str, dict[str, float]] = {}
    for name, value in sorted(finished.items()):
        if name in _BESIDE or name.endswith("_bound"):
            continue
        figure = {"value": value}
        bound = finished.get(f"{name}_bound", 0.0)
        if name == "auc" and "auc_error" in finished:
            error = finished["auc_error"]
            figure |= {"error": error, "low": intervals.normal(value, error)[0]}
            figure["high"] = intervals.normal(value, error)[1]
        elif rows := counts.get(_SHARES.get(name, ""), 0.0):
            figure["low"], figure["high"] = intervals.wilson(value * rows, int(rows))
        found[name] = figure | ({"bound": bound} if bound else {})
    for name in ("rows", "events"):
        if name in finished:
            found[name] = {"value": int(finished[name])}
    return found


def curves(sums: Mapping[str, Any]) -> dict[str, Any]:
    """The curves of a report, as points; those that it has."""
    if words := sums.get(reports.BINARY):
        report = binary.BinaryReport(words)
        groups = [_group(group) for group in report.groups]
        counts = report.counts
        return {
            "curve": [list(point) for point in roc.curve(report.histograms)],
            "calibration": groups,
            "calibration_error": calibration.expected_error(report.groups),
            "confusion": _two_by_two(counts),
        }
    if words := sums.get(reports.CLASSES):
        several = classes.ClassesReport(words)
        made: dict[str, Any] = {
            "confusion": several.confusion,
            "withheld": several.withheld,
            "calibration": [_group(group) for group in several.groups],
        }
        if several.groups:
            made["calibration_error"] = calibration.expected_error(several.groups)
        return made
    return {}


def _two_by_two(counts: binary.Counts) -> list[list[list[int]]]:
    """Fewest and most rows by true and predicted class, each of class 0 and 1."""
    kept, hits = counts.rejections, counts.hits
    wrong = [counts.others - kept[1], counts.others - kept[0]]
    missed = [counts.events - hits[1], counts.events - hits[0]]
    return [[[*kept[:2]], wrong], [missed, [*hits[:2]]]]


def _group(group: calibration.Group) -> dict[str, float]:
    low, high = intervals.wilson(group.events, group.rows)
    return {
        "from": group.place / 20,
        "rows": group.rows,
        "events": group.events,
        "probability": group.probability,
        "share": group.events / group.rows,
        "low": low,
        "high": high,
    }


def _record(store: Store, state: RunState) -> RoundRecord | None:
    """The newest evaluation; None: there is none, or there will be none."""
    found: Sequence[RoundRecord] = store.control.history.records(state.run_id)
    ended = [record for record in found if record.outcome == Outcome.evaluated]
    if not ended and state.active:
        raise RunStateError(state.name, f"has no result yet: it is {state.state}")
    return ended[-1] if ended else None


def _why(state: RunState, record: RoundRecord | None) -> str:
    """Why no site has answered."""
    if record is None:
        return state.reason or state.not_evaluated or "no round of it has ended"
    parts = [f"{who}: {why}" for who, why in sorted(record.rejected.items())]
    parts += [f"{who}: {why}" for who, why in sorted(record.ineligible.items())]
    parts += [f"{who}: no answer" for who in record.missing]
    return "; ".join(parts) or record.reason
