"""
Progress of a run: a live display on a terminal, else one line for each event.

The display also counts the round's time and calls ``advance``, so that a run goes on, and times out,
while no healer runs. It does not change the outcome of a run.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext

from rich.console import Console
from rich.live import Live

from fl_queue import metrics
from fl_queue.common.outages import Outages
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.errors import StoreUnavailable
from fl_queue.models import selection
from fl_queue.protocol import identifiers, job_origins
from fl_queue.protocol.records import MAKES_NEXT, EvaluationState
from fl_queue.reporting import event_lines, rich_console, rounds_table
from fl_queue.reporting.event_lines import Event
from fl_queue.reporting.live_view import ROUNDS_SHOWN, RunSnapshot, render
from fl_queue.store import RunState, Store, keyspace

BLOCK_MS = 1000
TICK_S = 1.0
REFRESH_HZ = 4


def follow(
    store: Store,
    run: str,
    console: Console,
    tick: bool = True,
    since: str = "",
    timeout_s: float | None = None,
) -> RunState | None:
    """
    Show a run until it ends. An outage of Redis is reported once, and waited out.

    Args:
        run: Run id.
        console: Where to show it; a terminal gets a live display.
        tick: Count the round's time and call ``advance`` once a second.
        since: Id of the last event that is not shown; empty: the one before the open round.
        timeout_s: Return after this time, to a second; None: when the run ends.

    Returns:
        The run's last state; None if it was deleted.

    Raises:
        StoreUnavailable: An outage lasted longer than ``outages.MAX_S``.
    """
    until = math.inf if timeout_s is None else time.monotonic() + timeout_s
    follower = _EventFollower(store, run, console, tick, since)
    live = (
        Live(console=console, refresh_per_second=REFRESH_HZ, transient=False)
        if console.is_terminal
        else None
    )
    with live or nullcontext():
        while follower.step() and time.monotonic() < until:
            if live:
                live.update(render(follower.snapshot))
        if live:
            live.update(render(follower.snapshot), refresh=True)
    return follower.snapshot.state


def await_evaluations(store: Store, run: str, console: Console, longest_s: float = 60.0) -> None:
    """Wait until every version is tested, at most ``longest_s``, if an evaluator is alive."""
    deadline = time.monotonic() + longest_s
    is_reported = False
    while time.monotonic() < deadline:
        waiting = [
            version
            for version, value in store.control.evaluations.all(run).items()
            if value.get("state") not in tuple(EvaluationState)
        ]
        if not waiting or not store.control.workers.is_role_alive(identifiers.EVALUATOR):
            return
        if not is_reported and not console.is_terminal:
            console.print(f"waiting for the evaluation of {len(waiting)} versions")
        is_reported = True
        time.sleep(0.2)
    console.print("the evaluator is behind; `fl-queue history` will show its results later")


class _EventFollower:
    """Reads events and state step by step into a snapshot, and prints lines without a terminal."""

    def __init__(self, store: Store, run: str, console: Console, tick: bool, since: str) -> None:
        self.store = store
        self.run = run
        self.console = console
        self.tick = tick
        self.snapshot = RunSnapshot(store.control.runs.get(run))
        self._outages = Outages(self._print)
        self._ticked_at = -TICK_S
        self._looked_at = -TICK_S
        self._streams = {keyspace.events(run): since or self._beginning()}
        self._received: dict[int, set[str]] = {}

    def _beginning(self) -> str:
        """Compute a stream id just before the open round was opened, else now."""
        state = self.snapshot.state
        current = self.store.control.rounds.get(self.run, state.round) if state else None
        if current is None or not current.open:
            return _stream_id(self.store.control.now())
        return _stream_id(current.opened_at - 0.001)

    def step(self) -> bool:
        """Read new events, waiting at most a second; False when the run has ended."""
        try:
            active, trouble = self._step()
        except StoreUnavailable as exc:
            active, trouble = True, exc
        self.snapshot.trouble = str(trouble or "")
        if trouble is None:
            self._outages.over()
        else:
            self._outages.wait(trouble)
        return active

    def _step(self) -> tuple[bool, StoreUnavailable | None]:
        """Read once. Returns: whether the run is active, and why time cannot be counted, if so."""
        trouble = None
        if self.tick and time.monotonic() - self._ticked_at >= TICK_S:
            self._ticked_at = time.monotonic()
            try:
                self._count_time()
            except StoreUnavailable as exc:
                trouble = exc
        # Read before the events: if the run has ended by then, the events below are all of them.
        state = self.store.control.runs.get(self.run)
        active = state is not None and state.active
        for stream, entry, event in list(
            self.store.control.events.read(self._streams, BLOCK_MS if active else None)
        ):
            self._streams[stream] = entry
            self._take(stream, event)
        self._refresh()
        return active, trouble if active else None

    def _count_time(self) -> None:
        state = self.store.control.runs.get(self.run)
        if state is not None and state.active:
            if state.round >= 0:
                lifecycle.count_time(self.store, self.run, state.round)
            lifecycle.advance(self.store, self.run)

    def _refresh(self) -> None:
        snapshot, control = self.snapshot, self.store.control
        snapshot.state = control.runs.get(self.run)
        if snapshot.state is None or snapshot.state.round < 0:
            return
        number = snapshot.state.round
        if snapshot.round is None or snapshot.round.number != number:
            snapshot.progress.clear()
            snapshot.round = control.rounds.get(self.run, number)
            self._follow_cohort()
        else:
            snapshot.round = control.rounds.get(self.run, number) or snapshot.round
        if self.console.is_terminal and self._is_due():
            snapshot.receipts = control.receipts.of_round(self.run, number)
            snapshot.ended = [
                record
                for record in control.history.records(self.run, last=ROUNDS_SHOWN + 1)
                if record.purpose in MAKES_NEXT
            ]
            snapshot.evaluated = selection.test_metrics(self.store, self.run)

    def _is_due(self) -> bool:
        """Whether the display needs new data: rounds may be faster than its refresh rate."""
        state, now = self.snapshot.state, time.monotonic()
        if state is not None and state.active and now - self._looked_at < 1 / REFRESH_HZ:
            return False
        self._looked_at = now
        return True

    def _follow_cohort(self) -> None:
        """Follow the event streams of the round's clients, from the moment it was opened."""
        current = self.snapshot.round
        if current is None or current.groups or not self.console.is_terminal:
            return  # Virtual clients publish no progress.
        since = _stream_id(current.opened_at - 1.0)
        run_events = keyspace.events(self.run)
        self._streams = {run_events: self._streams[run_events]} | {
            keyspace.client_events(client): since for client in current.cohort
        }

    def _take(self, stream: str, event: Event) -> None:
        if stream != keyspace.events(self.run):
            current = self.snapshot.round
            client = _client_of(stream)
            if current is None or event.get("run") != self.run:
                return
            if event.get("round") == job_origins.begun(current, client).round:
                self.snapshot.progress[client] = event
            return
        if event["event"] == "update_received":
            self._received.setdefault(event.get("round", 0), set()).add(event.get("client", ""))
        if event["event"] == "healed":
            self.snapshot.healed = f"{event.get('what', '')}"
        if not self.console.is_terminal and not self._is_chatter(event):
            line = event_lines.describe(event, lambda: self._details(event))
            if line:
                self._print(line)

    def _is_chatter(self, event: Event) -> bool:
        """Whether an event gets no line: the updates of a simulation are too many."""
        current = self.snapshot.round
        return event["event"] == "update_received" and current is not None and current.groups > 0

    def _details(self, event: Event) -> str:
        """Read what an event lacks: the number of updates, the accuracy."""
        control = self.store.control
        if event["event"] == "update_received":
            current = control.rounds.get(self.run, event["round"])
            if current is None:
                return ""
            # Counted from the events: the receipts may be ahead of this event.
            count = len(self._received.get(event["round"], ()))
            if current.is_async:
                age = event.get("staleness", 0)
                old = f", {age} versions old" if age else ""
                return f" ({count} of {current.quorum} in the buffer{old})"
            return f" ({count} of {len(current.cohort)}, quorum {current.quorum})"
        if event["event"] == "version_evaluated":
            return f": {event_lines.describe_metrics(selection.test_metrics(self.store, self.run).get(event['version'], {}))}"
        for record in control.history.records(self.run, last=ROUNDS_SHOWN):
            if record.round == event["round"] and record.validation:
                found = rounds_table.with_coverage(
                    metrics.finish(record.validation), metrics.told_by(record.validation)
                )
                return f"; clients' validation of version {record.base_version}: {found or 'no metrics'}"
        return ""

    def _print(self, line: str) -> None:
        self.console.print(rich_console.text(line), soft_wrap=True)


def _client_of(stream: str) -> str:
    return stream.removeprefix("flq:client:").removesuffix(":events")


def _stream_id(unix_s: float) -> str:
    return f"{max(0, int(unix_s * 1000))}-0"


def print_table(store: Store, run: str) -> None:
    """Print the table of a run's rounds on standard output."""
    is_model = runs.current_config(store, run).analysis is None
    rows = rounds_table.rounds_of(store, run)
    rich_console.console().print(rounds_table.table(rows, is_model))
