"""Content of the page as JSON, by part, read from Redis."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fl_queue.coordinator.rounds import runs, stage_words
from fl_queue.protocol import job_origins
from fl_queue.protocol.records import Outcome, Purpose, Receipt, RoundRecord, updates_in
from fl_queue.protocol.state import RunPhase
from fl_queue.reporting import event_lines, purposes, rounds_table, run_status
from fl_queue.store import RoundState, RunState, Store, keyspace

#: Rows of the rounds table on the page; the CSV has them all.
ROWS_SHOWN = 200
EVENTS_SHOWN = 200
BRANCHES_SHOWN = 10
_BY_STATE = {
    RunPhase.completed: "Idle. Run {name} is completed {where}.",
    RunPhase.failed: "Run {name} has failed {where}.",
    RunPhase.cancelled: "Run {name} is cancelled {where}.",
}


def selected(states: list[RunState], name: str) -> RunState | None:
    """The run to show: the one of that name, else the newest that trains, else the newest."""
    if name:
        return next((state for state in states if name in (state.name, state.run_id)), None)
    return max(states, key=lambda state: (state.active, state.created_at), default=None)


def overall(states: list[RunState]) -> str:
    """The status word of the whole server."""
    return "TRAINING" if any(state.active for state in states) else "IDLE"


def parts(store: Store, name: str) -> dict[str, Any]:
    """
    Content of the page except the history and the log: ``status``, ``runs``, ``clients``.

    Args:
        name: The run to show; empty: the one that trains, or the newest.
    """
    states = run_status.living_runs(store)
    state = selected(states, name)
    found = run_status.statuses(store, states)
    shown = next((one for one, each in zip(found, states, strict=True) if each is state), None)
    return {
        "status": _status(store, states, state, shown, name),
        "runs": [{**asdict(one), "shown": one is shown} for one in found],
        "clients": _clients(store, state),
    }


def _status(
    store: Store,
    states: list[RunState],
    state: RunState | None,
    status: run_status.RunStatus | None,
    name: str,
) -> dict[str, Any]:
    current = (
        store.control.rounds.newest_open(state) if state is not None and state.active else None
    )
    return {
        "overall": overall(states),
        "headline": headline(store, state, current, name),
        "run": state.name if state else "",
        "run_id": state.run_id if state else "",
        "state": state.state if state else "",
        "reason": state.reason if state else "",
        "version": state.version if state else None,
        "is_analysis": state is not None and _is_analysis(store, state),
        "waiting_for": [*status.waiting_for, *status.floods, *status.notices] if status else [],
        "left_s": max(0, round(current.deadline_s - current.elapsed_s)) if current else None,
        "facts": facts(status) if status else [],
    }


def _is_analysis(store: Store, state: RunState) -> bool:
    """Whether a run computes a result in steps, instead of a model that is judged."""
    return runs.current_config(store, state.run_id).analysis is not None


def facts(status: run_status.RunStatus) -> list[tuple[str, str]]:
    """(name, text) of what a run began with, and of its tags: what ``fl-queue status RUN`` shows of them."""
    found, begun = [], status.initial
    if begun is not None:
        # Which tensors the model takes is known once there is a model.
        taken = (
            ": tensors are counted with version 0"
            if status.version is None
            else f": {begun.counts}"
        )
        found.append(("Initial weights", f"{begun.origin}, {begun.mode}{taken}"))
    if status.base_part:
        found.append(("Base part", status.base_part))
    if status.tags:
        found.append(("Tags", ", ".join(f"{name} = {at}" for name, at in status.tags.items())))
    return found


def branches(records: Sequence[RoundRecord]) -> list[tuple[str, str]]:
    """(name, text) of each version that is an older one again, newest first."""
    found = [record for record in records if record.outcome == Outcome.restored]
    return [
        ("Branch", f"version {one.version} is version {one.base_version} again ({one.reason})")
        for one in found[: -BRANCHES_SHOWN - 1 : -1]
    ]


def headline(store: Store, state: RunState | None, current: RoundState | None, name: str) -> str:
    """Activity of the run in one sentence, without the time left, which changes constantly."""
    if state is None:
        return f"There is no run {name}." if name else "Idle. No run has been started yet."
    if not state.active:
        where = runs.at_version(state.version)
        return _BY_STATE[state.state].format(name=state.name, where=where)
    if current is None:
        return (
            f"Run {state.name} is {runs.activity(store, state)}, {runs.BETWEEN}"
            f"{runs.reason_found(store, state) or '.'}"
        )
    receipts = store.control.receipts.of_round(state.run_id, current.number)
    received = updates_in(current.cohort, receipts)
    wanted = (state.version or 0) + 1
    of = f"of {state.rounds_wanted}"
    if current.purpose == Purpose.sums:
        step = f"step {wanted} of at most {state.rounds_wanted}"
        return f"Run {state.name}, {step}: {current.progress(received)}"
    if current.number != wanted:
        of = f"(for version {wanted} {of})"
    what = purposes.in_words(current.purpose, f"round {current.number} {of}")
    return f"Training, {what}: {stage_words.progress(store, state.run_id, current, received)}"


def _clients(store: Store, state: RunState | None) -> list[dict[str, Any]]:
    number = state.round if state else -1
    newest = store.control.receipts.of_round(state.run_id, number) if state and number >= 0 else {}
    before = (
        store.control.receipts.of_round(state.run_id, number - 1) if state and number >= 1 else {}
    )
    current = store.control.rounds.get(state.run_id, number) if state else None
    found = []
    clients = run_status.clients(store)
    events = store.control.events.last_of_each(
        keyspace.client_events(entry.client) for entry in clients
    )
    for client, last in zip(clients, events, strict=True):
        event = last or {}
        began = job_origins.begun(current, client.client).round if current else number
        ours = state is not None and (event.get("run"), event.get("round")) == (
            state.run_id,
            began,
        )
        receipt = newest.get(client.client) or before.get(client.client)
        done = client.client in newest
        found.append(
            {
                **asdict(client),
                "last_seen_s": None
                if client.last_seen_s is None
                else max(0, round(client.last_seen_s)),
                "epoch": event.get("epoch", 0) if ours else 0,
                "epochs": event.get("epochs", 0) if ours else 0,
                "answer": _answer(newest[client.client]) if done else "",
                "update_bytes": receipt.nbytes if receipt else 0,
            }
        )
    return found


def _answer(receipt: Receipt) -> str:
    """Status of an update, with its staleness if it has any."""
    age = receipt.staleness if receipt.is_in else 0
    return f"{receipt.status}, {age} version{'s' if age > 1 else ''} old" if age else receipt.status


def history(store: Store, run: str) -> dict[str, Any]:
    """The rounds and branches, newest first, and the curves: version -> metrics, central, per client, and of the training."""
    records, tested, rows = rounds_table.history_of(store, run)
    shown = rows[: -ROWS_SHOWN - 1 : -1]
    return {
        "rounds": [
            {**as_json, "judged_by": rounds_table.judged_by(row)}
            for as_json, row in zip(rounds_table.to_json(shown), shown, strict=True)
        ],
        "left_out": max(0, len(rows) - ROWS_SHOWN),
        "test": tested,
        "validation": rounds_table.validation(records),
        "clients": rounds_table.client_validation(records),
        "training": rounds_table.training(records),
        "facts": branches(records),
    }


def log(store: Store, run: str, cursor: str) -> list[tuple[str, str]]:
    """(entry id, line) of the run's events after ``cursor``; empty cursor: the newest ones."""
    stream = keyspace.events(run)
    if cursor:
        entries = [
            (entry, event) for _, entry, event in store.control.events.read({stream: cursor}, None)
        ][-EVENTS_SHOWN:]
    else:
        entries = store.control.events.newest(stream, EVENTS_SHOWN)
    return [(entry, _line(entry, event)) for entry, event in entries]


def _line(entry: str, event: dict[str, Any]) -> str:
    stamp = time.strftime("%H:%M:%S", time.localtime(run_status.event_record(entry, event)["at"]))
    return f"{stamp} {event_lines.describe(event) or event['event'].replace('_', ' ')}"
