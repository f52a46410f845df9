"""
A run's progress while somebody waits for it: live on a terminal, else one line for each event.

Whoever watches also counts the round's time and calls ``advance``, so that a run goes on, and times
out, while no aggregator's supervisor does that. Nothing here changes what a run's outcome is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext

from rich.console import Console
from rich.live import Live

from fl_queue import metrics
from fl_queue.common.outages import Outages
from fl_queue.coordinator.rounds import eligibility, lifecycle, runs
from fl_queue.errors import StoreUnavailable
from fl_queue.models import selection
from fl_queue.protocol import identifiers, job_origins
from fl_queue.reporting import rich_console, rounds_table
from fl_queue.reporting.live_view import ROUNDS_SHOWN, Event, RunSnapshot, render
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
    Show a run until it is not training any more; outages of Redis are said once and waited out.

    Raises:
        StoreUnavailable: An outage lasted longer than ``outages.LONGEST_S``.

    Args:
        run: Run id.
        console: Where to show it; a terminal gets a live display.
        tick: Count the round's time and call ``advance`` once a second.
        since: Id of the event after which to begin; empty: with the opening of the open round.
        timeout_s: Look away after so long, about a second more; None: when the run has ended.

    Returns:
        The run's last state; None when it was deleted meanwhile.
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
                live.update(render(follower.scene))
        if live:
            live.update(render(follower.scene), refresh=True)
    return follower.scene.state


def await_evaluations(store: Store, run: str, console: Console, longest_s: float = 60.0) -> None:
    """Wait until every version has been scored on the test set, if an evaluator is at work."""
    deadline = time.monotonic() + longest_s
    said = False
    while time.monotonic() < deadline:
        waiting = [
            version
            for version, value in store.control.evaluations.all(run).items()
            if value.get("state") not in ("done", "failed")
        ]
        if not waiting or not store.control.workers.is_role_alive(identifiers.EVALUATOR):
            return
        if not said and not console.is_terminal:
            console.print(f"waiting for the evaluation of {len(waiting)} versions")
        said = True
        time.sleep(0.2)
    console.print("the evaluator is behind; `fl-queue history` will show its results later")


class _EventFollower:
    """Reads events and state step by step; keeps the scene, and prints lines without a terminal."""

    def __init__(self, store: Store, run: str, console: Console, tick: bool, since: str) -> None:
        self.store = store
        self.run = run
        self.console = console
        self.tick = tick
        self.scene = RunSnapshot(store.control.runs.get(run))
        self._outages = Outages(self._say)
        self._ticked_at = -TICK_S
        self._looked_at = -TICK_S
        self._streams = {keyspace.events(run): since or self._beginning()}
        self._received: dict[int, set[str]] = {}

    def _beginning(self) -> str:
        """Just before the open round was opened, else now."""
        state = self.scene.state
        current = self.store.control.rounds.get(self.run, state.round) if state else None
        if current is None or not current.open:
            return _stream_id(self.store.control.now())
        return _stream_id(current.opened_at - 0.001)

    def step(self) -> bool:
        """Wait for news, at most a second, and take it in; False when the run has ended."""
        try:
            active, trouble = self._step()
        except StoreUnavailable as exc:
            active, trouble = True, exc
        self.scene.trouble = str(trouble or "")
        if trouble is None:
            self._outages.over()
        else:
            self._outages.wait(trouble)
        return active

    def _step(self) -> tuple[bool, StoreUnavailable | None]:
        """Whether the run is active, and why time cannot be counted: of the data server, maybe."""
        trouble = None
        if self.tick and time.monotonic() - self._ticked_at >= TICK_S:
            self._ticked_at = time.monotonic()
            try:
                self._count_time()
            except StoreUnavailable as exc:
                trouble = exc
        # Read before the events: when it says that the run has ended, all its events are there.
        state = self.store.control.runs.get(self.run)
        active = state is not None and state.active
        for stream, entry, event in list(
            self.store.control.events.read(self._streams, BLOCK_MS if active else None)
        ):
            self._streams[stream] = entry
            self._take(stream, event)
        self._look()
        return active, trouble if active else None

    def _count_time(self) -> None:
        state = self.store.control.runs.get(self.run)
        if state is not None and state.active:
            if state.round >= 0:
                lifecycle.count_time(self.store, self.run, state.round)
            lifecycle.advance(self.store, self.run)

    def _look(self) -> None:
        scene, control = self.scene, self.store.control
        scene.state = control.runs.get(self.run)
        if scene.state is None or scene.state.round < 0:
            return
        number = scene.state.round
        if scene.round is None or scene.round.number != number:
            scene.progress.clear()
            scene.round = control.rounds.get(self.run, number)
            self._listen_to_cohort()
        else:
            scene.round = control.rounds.get(self.run, number) or scene.round
        if self.console.is_terminal and self._is_due():
            scene.receipts = control.receipts.of_round(self.run, number)
            scene.ended = [
                record
                for record in control.history.records(self.run, last=ROUNDS_SHOWN + 1)
                if record.purpose == "train"
            ]
            scene.evaluated = selection.test_metrics(self.store, self.run)

    def _is_due(self) -> bool:
        """Whether what a terminal shows is read again: rounds may be faster than it is drawn."""
        state, now = self.scene.state, time.monotonic()
        if state is not None and state.active and now - self._looked_at < 1 / REFRESH_HZ:
            return False
        self._looked_at = now
        return True

    def _listen_to_cohort(self) -> None:
        """Follow the event streams of the round's clients, from the moment it was opened."""
        current = self.scene.round
        if current is None or current.groups or not self.console.is_terminal:
            return  # Virtual clients tell nothing while they train.
        since = _stream_id(current.opened_at - 1.0)
        run_events = keyspace.events(self.run)
        self._streams = {run_events: self._streams[run_events]} | {
            keyspace.client_events(client): since for client in current.cohort
        }

    def _take(self, stream: str, event: Event) -> None:
        if stream != keyspace.events(self.run):
            current = self.scene.round
            client = _client_of(stream)
            if current is None or event.get("run") != self.run:
                return
            if event.get("round") == job_origins.begun(current, client).round:
                self.scene.progress[client] = event
            return
        if event["event"] == "update_received":
            self._received.setdefault(event.get("round", 0), set()).add(event.get("client", ""))
        if event["event"] == "healed":
            self.scene.healed = f"{event.get('what', '')}"
        if not self.console.is_terminal and not self._is_chatter(event):
            line = _line(event, lambda: self._details(event))
            if line:
                self._say(line)

    def _is_chatter(self, event: Event) -> bool:
        """Whether nobody wants a line of this: a simulation's updates, of which there are many."""
        current = self.scene.round
        return event["event"] == "update_received" and current is not None and current.groups > 0

    def _details(self, event: Event) -> str:
        """What the state says beyond the event: updates in, accuracy."""
        control = self.store.control
        if event["event"] == "update_received":
            current = control.rounds.get(self.run, event["round"])
            if current is None:
                return ""
            # Counted from the events: the receipts may be ahead of the one that is told.
            count = len(self._received.get(event["round"], ()))
            if current.is_async:
                age = event.get("staleness", 0)
                old = f", {age} versions old" if age else ""
                return f" ({count} of {current.quorum} in the buffer{old})"
            return f" ({count} of {len(current.cohort)}, quorum {current.quorum})"
        if event["event"] == "version_evaluated":
            return f": {describe_metrics(selection.test_metrics(self.store, self.run).get(event['version'], {}))}"
        for record in control.history.records(self.run, last=ROUNDS_SHOWN):
            if record.round == event["round"] and record.validation:
                finished = metrics.finish(record.validation)
                return f"; clients' validation of version {record.base_version}: {describe_metrics(finished)}"
        return ""

    def _say(self, line: str) -> None:
        self.console.print(rich_console.text(line), soft_wrap=True)


def _line(event: Event, details: Callable[[], str]) -> str:
    """One event of a run as a line; empty for what nobody asks about."""
    try:
        return _worded(event, details)
    except (AttributeError, KeyError, TypeError, ValueError):
        # Of its kind, but not as we write it. One such entry must not end a page or a command.
        return f"{event['event'].replace('_', ' ')} (an event that cannot be read)"


def _worded(event: Event, details: Callable[[], str]) -> str:
    kind, number = event["event"], event.get("round")
    reason = f": {event['reason']}" if event.get("reason") else ""
    if kind == "round_opened":
        return _opened(event)
    if kind == "clients_joined":
        return f"round {number}: {', '.join(event['clients'])} began to train"
    if kind == "update_received":
        return f"round {number}: update of {event['client']} is in{details()}"
    if kind == "update_rejected":
        return f"round {number}: update of {event['client']} is {event['status']}{reason}"
    if kind == "updates_refused":
        return f"round {number}: {event['count']:,} elements of {event['client']} refused{reason}"
    if kind == "round_committed":
        return f"round {number} committed version {event['version']}{reason}{details()}"
    if kind in ("round_abandoned", "round_evaluated", "round_cancelled"):
        return f"round {number} {kind.removeprefix('round_')}{reason}{details()}"
    if kind == "version_evaluated":
        return f"version {event['version']}: test {event['state']}{details()}"
    if kind == "site_differs":
        return f"preflight: {event['client']}: {event['what']}"
    if kind == "healed":
        return f"round {number} healed: {event['what']}"
    if kind == "maker_asked":
        return f"version 0: {event['client']} is asked, too{reason}"
    if kind == "clients_left_out":
        return f"left out: {'; '.join(eligibility.lines(event['left_out'])) or 'nobody any more'}"
    if kind == "checkpoint_failed":
        return f"round {number} cannot write its checkpoint{reason}"
    where = runs.at_version(event.get("version"))
    plain = {
        "waiting_for_clients": "waiting",
        "run_created": f"run created, {event.get('rounds')} rounds wanted",
        "run_continued": f"run continued, {event.get('rounds')} more rounds wanted{_changed(event)}",
        "round_initialised": "version 0 is there",
        "evaluation_skipped": f"version {event.get('version')} has no closing evaluation",
        "run_failed": "run failed",
        "run_completed": f"run completed {where}",
        "run_cancelled": "run cancelled",
        "run_restored": f"run restored from a backup, {where}",
        "run_resumed": f"run resumed {where}",
    }
    return f"{plain[kind]}{reason}" if kind in plain else ""


def _changed(event: Event) -> str:
    fields = event.get("changed") or ()
    return f"; with other settings: {', '.join(fields)}" if fields else ""


def _opened(event: Event) -> str:
    cohort = ", ".join(event["cohort"][:8]) + (", ..." if len(event["cohort"]) > 8 else "")
    if event.get("clients", 0) > len(event["cohort"]):
        cohort = f"of {event['clients']}: {cohort}"
    what = {
        "initialise": "making version 0 on",
        "train": f"round {event['round']} opened, cohort",
        "evaluate": "closing evaluation, cohort",
    }[event["purpose"]]
    on = f" ({len(event['carried'])} at work since before)" if event.get("carried") else ""
    return f"{what} {cohort}{on}"


def describe_metrics(finished: Mapping[str, float]) -> str:
    """Finished metrics in words: ``accuracy 0.9312, loss 0.2210``."""
    first = [name for name in ("accuracy", "loss") if name in finished]
    rest = sorted(set(finished) - set(first))
    return ", ".join(f"{name} {finished[name]:.4f}" for name in (*first, *rest)) or "no metrics"


def _client_of(stream: str) -> str:
    return stream.removeprefix("flq:client:").removesuffix(":events")


def _stream_id(unix_s: float) -> str:
    return f"{max(0, int(unix_s * 1000))}-0"


def print_table(store: Store, run: str) -> None:
    """The table of a run's rounds, on standard output."""
    rich_console.console().print(rounds_table.table(rounds_table.rounds_of(store, run)))


def describe(event: Event) -> str:
    """One line for an event of a run's stream; empty when it is not worth one."""
    return _line(event, lambda: "")
