"""Reasons why a round is still open: missing clients, and the state of the closing rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_queue.coordinator.aggregator import rejections
from fl_queue.coordinator.aggregator.round_end import capped, lost
from fl_queue.coordinator.operations import enrolment, stage_answers
from fl_queue.coordinator.rounds import (
    eligibility,
    initialisation,
    preflight,
    runs,
    stage_words,
)
from fl_queue.protocol import identifiers, virtual_clients
from fl_queue.protocol.records import (
    AwaitedUpdate,
    DataWait,
    Outcome,
    Purpose,
    Receipt,
    Refusals,
    Verdict,
)
from fl_queue.protocol.secure_state import Stage
from fl_queue.store import RoundState, RunState, Store, keyspace
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.dispatch import JobTicket

#: Ended rounds that are searched for a notice.
_LOOKED_AT = 50

NO_AGGREGATOR = "no aggregator is alive; start one with `fl-queue worker aggregator`"


@dataclass(frozen=True)
class DiagnosisContext:
    """
    Conditions that stop all runs.

    Args:
        has_aggregator: Whether an aggregator is alive; without one nothing is decided or healed.
        data_trouble: Why the data server cannot be used; empty: it can.
        control_trouble: Why the control server takes no writes; empty: it does, or an aggregator is alive.
        enrolments: Enrolments that were changed in Redis, a line each; they change no status.
    """

    has_aggregator: bool
    data_trouble: str
    control_trouble: str = ""
    enrolments: list[str] = field(default_factory=list)

    @classmethod
    def look(cls, store: Store) -> DiagnosisContext:
        """Read the current conditions."""
        alive = store.control.workers.is_role_alive(identifiers.AGGREGATOR)
        # While the server takes no writes, the leases of living workers run out as well.
        trouble = "" if alive else store.control_trouble()
        return cls(alive, store.data_trouble(), trouble, _enrolments(store))

    @property
    def undecided(self) -> str:
        """Reason why no round is closed; empty: an aggregator is alive."""
        if self.control_trouble:
            return f"{self.control_trouble}; until then it is unknown which workers are alive"
        return "" if self.has_aggregator else NO_AGGREGATOR

    @property
    def lines(self) -> list[str]:
        """One line for each condition that stops all runs."""
        return [line for line in (self.undecided, self.data_trouble) if line]


def _enrolments(store: Store) -> list[str]:
    found = enrolment.troubles(store)
    return [f"{keyspace.ENROLLED}: the entry of {client}: {why}" for client, why in found.items()]


def why_open(store: Store, state: RunState, around: DiagnosisContext | None = None) -> list[str]:
    """
    List the reasons why a training run waits: common ones, the closing rule, each missing client.

    Args:
        around: The current context, if it was read already.
    """
    if not state.active:
        return []
    around = around or DiagnosisContext.look(store)
    current = store.control.rounds.newest_open(state)
    if current is None:
        settling = store.control.clients.is_settling()
        why = ["after an outage: waiting until all clients have sent a heartbeat again"]
        stale = runs.reason_found(store, state).removeprefix(": ")
        return [
            *around.lines,
            *([f"before that: {stale}"] if stale and not around.has_aggregator else []),
            *(why if settling else []),
            *_left_out(store, state),
        ]
    receipts = store.control.receipts.of_round(state.run_id, state.round)
    received = sum(
        receipts[client].status == Verdict.received
        for client in current.cohort
        if client in receipts
    )
    closes = closing(current, received)
    if current.secure is not None:
        closes = _closing_of_stage(store, state, current, received)
    lines = [*around.lines, closes, *_failing(current)]
    if current.makers:
        lines.append(initialisation.who_is_asked(current, receipts))
    tickets = dispatch.tickets(store, state.run_id, state.round)
    if current.secure is not None:
        receipts = stage_answers.of_round(store, state.run_id, current, current.cohort)
    missing = _missing_groups if current.groups else _missing_clients
    lines += missing(store, state, current, receipts, tickets)
    lines += _left_out(store, state)
    if not around.lines:
        lines += _aggregator(store, state, tickets.get(identifiers.AGGREGATOR))
    return lines


def _left_out(store: Store, state: RunState) -> list[str]:
    """List differences between sites, and clients that may not be selected."""
    lines = preflight.lines(store, state, but=state.left_out)
    return lines + [f"left out: {line}" for line in eligibility.lines(state.left_out)]


def floods(store: Store, state: RunState) -> list[str]:
    """One line for each sender with a flood of refused elements in the newest rounds."""
    return [
        _flood(number, who, refusals)
        for number in range(max(0, state.round - 1), state.round + 1)
        for who, refusals in sorted(store.control.rejections.of_round(state.run_id, number).items())
        if refusals.count >= rejections.FLOOD
    ]


def notices(store: Store, state: RunState) -> list[str]:
    """List capped weights of the newest round, and the round that reset the clients' states."""
    last = _LOOKED_AT if state.state_since else 2  # The closing evaluation's is one of them.
    history = store.control.history.records(state.run_id, last)
    records = [record for record in history if record.purpose == Purpose.train]
    lines = [f"round {record.round}: {capped(record)}" for record in records[-1:] if record.capped]
    if not state.state_since:
        return lines
    found = [
        f"{record.reason}: what clients keep is zero again since"
        if record.outcome == Outcome.restored
        else lost(record)
        for record in history
        if record.round == state.state_since
    ]
    reason = found[0] if found else "a client had lost its state: all are zero again since"
    return [*lines, f"round {state.state_since}: {reason}"]


def _flood(number: int, who: str, refusals: Refusals) -> str:
    counted = f"flood: {refusals.count:,} elements were refused in round {number}"
    client, claimed, _ = who.partition(rejections.CLAIMED)
    if claimed:
        whose = f"in the name of {client}, not signed: see who may write to Redis"
    elif identifiers.is_name(who):
        whose = f"signed by {client}; `fl-queue revoke {client}` ends it"
    else:
        whose = "of unnamed senders: check which users may write to Redis"
    return f"{counted}, {whose}; last reason: {refusals.reason}"


def _missing_clients(
    store: Store,
    state: RunState,
    current: RoundState,
    receipts: Mapping[str, Receipt],
    tickets: Mapping[str, JobTicket],
) -> list[str]:
    """One line for each client without an accepted update."""
    lines = []
    ages = store.control.clients.heartbeat_ages()
    for client in current.cohort:
        receipt, ticket = receipts.get(client), tickets.get(client)
        if not dispatch.has_answered(store, receipt, ticket):
            left = dispatch.awaited(store, ticket) if ticket else None
            if left is not None:
                lines.append(_undecided(store, client, left))
                continue
            lines.append(f"waiting for {client}: {_doing(store, state, client, ticket, ages)}")
        elif receipt is not None and receipt.status != Verdict.received:
            lines.append(f"{client} is out: {receipt.status}: {receipt.reason}")
    return lines


def _missing_groups(
    store: Store,
    state: RunState,
    current: RoundState,
    receipts: Mapping[str, Receipt],
    tickets: Mapping[str, JobTicket],
) -> list[str]:
    """One line for each job of a simulation with clients that have not answered."""
    lines = []
    for who in map(virtual_clients.group, range(current.groups)):
        behind = virtual_clients.answerable(who, current.cohort, current.groups)
        left = [client for client in behind if client not in receipts]
        ticket = tickets.get(who)
        if left and ticket is not None:
            doing = f"job {dispatch.job_state(store, ticket)}, attempt {ticket.attempt}"
            lines.append(f"waiting for {who}: {len(left)} of {len(behind)} clients; {doing}")
    lines += [
        f"{client} is out: {receipt.status}: {receipt.reason}"
        for client, receipt in receipts.items()
        if receipt.status != Verdict.received
    ]
    if lines and not store.control.workers.is_role_alive(identifiers.POOL):
        lines.append("no pool process is alive; start some with `fl-queue worker pool`")
    return lines


def closing(current: RoundState, received: int) -> str:
    """Describe the state of the closing rule."""
    size, counted = len(current.cohort), f"{current.elapsed_s:.0f} s counted so far"
    if current.purpose == Purpose.initialise:
        return f"version 0 is made by one client after the other, until one succeeds; {counted}"
    if current.purpose == Purpose.evaluate:
        return (
            f"{received} of {size} answers in: the closing evaluation ends when all living clients have answered, "
            f"at {current.deadline_s:g} s at the latest; {counted}"
        )
    deadline = f"at {current.deadline_s:g} s (round.deadline_s)"
    if current.is_async:
        return f"{current.progress(received)}; needs {current.quorum} (round.buffer), or is abandoned {deadline}; {counted}"
    if received < current.quorum:
        return f"{received} of {size} updates in; needs {current.quorum} (round.quorum), or is abandoned {deadline}; {counted}"
    since = current.elapsed_s if current.quorum_at_s is None else current.quorum_at_s
    return (
        f"{received} of {size} updates in, quorum {current.quorum} reached: closes when all are in, "
        f"at {since + current.grace_s:.0f} s (round.grace_s), or {deadline}; {counted}"
    )


def _closing_of_stage(store: Store, state: RunState, current: RoundState, received: int) -> str:
    """Describe the state of a secure round's stage, and when it ends."""
    words = stage_words.progress(store, state.run_id, current, received)
    config = runs.current_config(store, state.run_id, current.segment).secure
    assert current.secure is not None
    ends = {
        Stage.keys: f"goes on with {current.quorum} or more at {config.keys_s:g} s (secure.keys_s)",
        Stage.updates: f"closes as round.quorum and round.grace_s have it, at {current.deadline_s:g} s at the latest",
        Stage.unmask: f"is abandoned at {current.deadline_s:g} s (secure.unmask_s)",
    }[current.secure.stage]
    return f"{words}; {ends}; {current.elapsed_s:.0f} s counted so far"


def _failing(current: RoundState) -> list[str]:
    """Report failed attempts to end the round."""
    if not current.failures:
        return []
    times = "once" if current.failures == 1 else f"{current.failures} times"
    return [f"the next version could not be made, {times}: {current.failure}"]


def _undecided(store: Store, client: str, left: AwaitedUpdate) -> str:
    """Describe an update that waits for the approval of its site."""
    if left.decided:
        return f"waiting for {client}: its site has decided on its update; the next attempt has the result"
    since = max(0.0, store.control.now() - left.since)
    return f"waiting for approval of {client}: its update is ready since {since:.0f} s; `fl-queue approve` at the site lets it leave"


def _doing(
    store: Store,
    state: RunState,
    client: str,
    ticket: JobTicket | None,
    ages: dict[str, float],
) -> str:
    """Describe the state of a client that has not answered."""
    parts = [store.control.clients.paused([client]).get(client, "")]
    wait = store.control.clients.data_wait(client)
    if wait is not None:
        parts.append(_waiting(store, wait))
    else:
        parts.append(_activity(store, state, client, ticket.number if ticket else state.round))
    if ticket is not None and ticket.number < state.round:
        parts.append(f"on its job of round {ticket.number}")
    if ticket is not None:
        parts.append(f"job {dispatch.job_state(store, ticket)}, attempt {ticket.attempt}")
    holder = store.control.leases.get(keyspace.client_holder(client))
    seen = f"last seen {max(0.0, ages[client]):.0f} s ago" if client in ages else "never seen"
    where = f" on {holder.get('host', '?')}, pid {holder.get('pid', '?')}" if holder else ""
    parts.append(f"worker alive{where}" if holder else f"no worker alive, {seen}")
    return "; ".join(part for part in parts if part)


def _waiting(store: Store, wait: DataWait) -> str:
    since = max(0.0, store.control.now() - wait.since)
    return f"waits for the data server since {since:.0f} s: {wait.why}"


def _activity(store: Store, state: RunState, client: str, number: int) -> str:
    stream = keyspace.client_events(client)
    event = store.control.events.last(stream)
    if event is not None and event.get("run") not in (None, state.run_id):
        return "its latest work was for another run"
    if event is None or (event.get("run"), event.get("round")) != (state.run_id, number):
        return "not started"
    since = store.control.now() - int(store.control.events.last_id(stream).partition("-")[0]) / 1000
    if event["event"] == "epoch":
        done = f"epoch {event.get('epoch', '?')} of {event.get('epochs', '?')}"
        return f"{done} done {since:.0f} s ago"
    return f"training since {since:.0f} s"


def _aggregator(store: Store, state: RunState, ticket: JobTicket | None) -> list[str]:
    if ticket is None:
        return []
    doing = dispatch.job_state(store, ticket)
    return [
        f"aggregator: {store.data.results.count(state.run_id)} updates to look at; job {doing}, attempt {ticket.attempt}"
    ]
