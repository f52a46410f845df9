"""
Status of runs and clients: the records of the commands, the web page and the JSON API.

Frozen values, which ``--json`` and the JSON API write alike. This module only reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from fl_queue.common.spelling import nearest
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import MessageError, RunStateError
from fl_queue.models import initial
from fl_queue.models.initial import Beginning
from fl_queue.protocol.records import AwaitedUpdate, Enrolment, Receipt, Verdict
from fl_queue.reporting import diagnosis, rounds_table
from fl_queue.reporting.diagnosis import DiagnosisContext
from fl_queue.store import AWAITED, PAUSED, RunState, Store, data_wait, keyspace

#: Records in which the newest validation is searched: abandoned rounds have none.
_LOOKED_AT = 3


@dataclass(frozen=True)
class ValidatedMetric:
    """
    A metric of the clients' validation.

    Args:
        value: The number.
        clients, examples: How many clients, and how many of their examples, it is of; 0: not recorded.
    """

    value: float
    clients: int
    examples: int


@dataclass(frozen=True)
class RunStatus:
    """
    Activity of a run.

    Args:
        name: Name of the run.
        run_id: Name and random uid.
        state: ``training``, ``completed``, ``failed`` or ``cancelled``.
        reason: Why it is in that state, or waits.
        version: The newest version; None before version 0.
        digest: BLAKE3 of that version, hexadecimal; empty before version 0.
        round: The newest round's number; -1 before the first.
        rounds_wanted: The version at which it is completed.
        doing: The state in words.
        waiting_for: Why its open round is still open, a line each.
        floods: Who sends it garbage without end, a line each.
        data_server: Why the data server cannot be used; empty: it can.
        config_digest: Of the newest config, which sites may pin, as Redis has it.
        enrolments: Enrolments that were changed in Redis, a line each.
        notices: Whose weights the newest round has capped, and who had lost its state, a line each.
        initial: The file it began with, and the tensors that were loaded; None: it began from its seed.
        tags: Tag -> the version that it names.
        validated: The newest version with metrics of the clients' validation; None: there is none yet.
        validation: Metric of it -> its value, and how many clients and examples it is of.
        base_part: Digest and size of the base part, and where it is, in words; empty: the run has none.
    """

    name: str
    run_id: str
    state: str
    reason: str
    version: int | None
    digest: str
    round: int
    rounds_wanted: int
    doing: str
    waiting_for: list[str]
    floods: list[str]
    data_server: str
    config_digest: str
    enrolments: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    initial: Beginning | None = None
    tags: dict[str, int] = field(default_factory=dict)
    validated: int | None = None
    validation: dict[str, ValidatedMetric] = field(default_factory=dict)
    base_part: str = ""

    @property
    def validation_line(self) -> str:
        """The clients' validation in words; empty: there is none yet."""
        if self.validated is None:
            return ""
        found = rounds_table.with_coverage(
            {name: one.value for name, one in self.validation.items()},
            {
                name: (one.clients, one.examples)
                for name, one in self.validation.items()
                if one.clients
            },
        )
        return f"clients' validation of version {self.validated}: {found}"


@dataclass(frozen=True)
class ClientStatus:
    """
    Last known state of a client.

    Args:
        client: Its id.
        alive: Whether a worker holds its lease.
        enrolled: ``yes``, ``no``, ``revoked``.
        last_seen_s: Seconds since its last heartbeat; below zero after the clock was set back; None: never.
        num_examples: Examples it has; empty while unknown.
        host, pid, worker: Where its worker runs; empty when it has none.
        doing: Its last event in words; or that it is paused, or waits for its site's approval.
        paused: Why its site has paused it, with since when; empty: it is not.
        left_out: Run that is training, by name -> why the client may not be selected for it.
    """

    client: str
    alive: bool
    enrolled: str
    last_seen_s: float | None
    num_examples: str
    host: str
    pid: str
    worker: str
    doing: str
    paused: str
    left_out: dict[str, str]


def run_status(store: Store, state: RunState, around: DiagnosisContext | None = None) -> RunStatus:
    """Read the status of a run. Args: ``around``: context of all runs, if it was read already."""
    around = around or DiagnosisContext.look(store)
    doing = runs.describe_state(store, state)
    head, between, _ = doing.partition(f": {runs.BETWEEN}")
    if state.active and not around.has_aggregator and between:
        # The reason is as old as the last look of an aggregator; it follows, with its age.
        doing = f"{head}{between}: {around.undecided}"
    validated, validation = _validation(store, state)
    return RunStatus(
        name=state.name,
        run_id=state.run_id,
        state=state.state,
        reason=state.reason,
        version=state.version,
        digest=state.digest,
        round=state.round,
        rounds_wanted=state.rounds_wanted,
        doing=doing,
        waiting_for=diagnosis.why_open(store, state, around),
        floods=diagnosis.floods(store, state),
        data_server=around.data_trouble,
        config_digest=state.config_digest,
        enrolments=around.enrolments,
        notices=diagnosis.notices(store, state),
        initial=initial.of_run(store, state),
        tags=dict(sorted(state.tags.items())),
        validated=validated,
        validation=validation,
        base_part=_base_part(store, state),
    )


def _base_part(store: Store, state: RunState) -> str:
    try:
        manifest = store.control.versions.manifest(state.run_id)
    except MessageError:
        return ""
    if manifest is None or manifest.base is None:
        return ""
    where = "published" if manifest.base.is_published else "at the sites alone"
    return f"{manifest.base.digest[:12]}, {manifest.base.nbytes:,} bytes, {where}"


def _validation(store: Store, state: RunState) -> tuple[int | None, dict[str, ValidatedMetric]]:
    """The newest version that clients have validated, and its metrics."""
    records = store.control.history.records(state.run_id, _LOOKED_AT)
    coverage, validated = (
        rounds_table.validation_coverage(records),
        rounds_table.validation(records),
    )
    if not validated:
        return None, {}
    newest = max(validated)
    return newest, {
        name: ValidatedMetric(value, *coverage[newest].get(name, (0, 0)))
        for name, value in validated[newest].items()
    }


def statuses(store: Store, states: Sequence[RunState]) -> list[RunStatus]:
    """Read the status of several runs."""
    around = DiagnosisContext.look(store)
    return [run_status(store, state, around) for state in states]


def living_runs(store: Store) -> list[RunState]:
    """Every living run, by name; one that is deleted meanwhile is left out."""
    return store.control.runs.living()


def clients(store: Store) -> list[ClientStatus]:
    """List all clients that have connected or were enrolled, by id."""
    control = store.control
    ages, enrolled = control.clients.heartbeat_ages(), control.enrolments.all()
    training = [state for state in living_runs(store) if state.active]
    known = sorted(ages.keys() | enrolled.keys())
    found = zip(
        known,
        control.leases.get_many(map(keyspace.client_holder, known)),
        control.clients.get_many(known),
        control.events.last_of_each(map(keyspace.client_events, known)),
        strict=True,
    )
    return [
        _client(
            client,
            _WorkerRecords(holder, fields, last),
            ages.get(client),
            enrolled.get(client),
            training,
        )
        for client, holder, fields, last in found
    ]


class _WorkerRecords(NamedTuple):
    """Records of a client's worker: its lease, its hash, its newest event."""

    holder: dict[str, str]
    fields: dict[str, str]
    last: dict[str, Any] | None


def _client(
    client: str,
    records: _WorkerRecords,
    age: float | None,
    enrolment: Enrolment | None,
    training: Sequence[RunState],
) -> ClientStatus:
    holder, fields, last = records
    wait = data_wait(fields, holder)
    left_out = {run.name: run.left_out[client] for run in training if client in run.left_out}
    return ClientStatus(
        client=client,
        alive=bool(holder),
        enrolled="no" if enrolment is None else "revoked" if enrolment.revoked_at else "yes",
        last_seen_s=None if age is None else round(age, 1),
        num_examples=fields.get("num_examples", ""),
        host=holder.get("host", ""),
        pid=holder.get("pid", ""),
        worker=holder.get("worker", ""),
        doing=fields.get(PAUSED)
        or _waits(fields.get(AWAITED, ""))
        or (f"waits for the data server: {wait.why}" if wait is not None else "")
        or _without(left_out)
        or _doing(last),
        paused=fields.get(PAUSED, ""),
        left_out=left_out,
    )


def _without(left_out: dict[str, str]) -> str:
    return "; ".join(f"left out of run {run}: {why}" for run, why in left_out.items())


def _waits(text: str) -> str:
    """Describe updates that wait for the approval of their site."""
    try:
        left = AwaitedUpdate.all_from_json(text or "{}")
    except MessageError:
        return ""
    found = [f"run {run} round {item.round}" for run, item in left.items() if not item.decided]
    return f"waits for approval at its site: {', '.join(found)}" if found else ""


def _doing(last: dict[str, Any] | None) -> str:
    if not last:
        return "-"
    if "run" not in last or "round" not in last:
        return str(last["event"])
    done = f"epoch {last.get('epoch', '?')}/{last.get('epochs', '?')}"
    what = done if last["event"] == "epoch" else last["event"]
    return f"{what}, run {last['run']} round {last['round']}"


def history(store: Store, run: str) -> dict[str, list[dict[str, Any]]]:
    """A run's rounds as rows (``rounds``), and the full records (``records``)."""
    rows = rounds_table.to_json(rounds_table.rounds_of(store, run))
    return {
        "rounds": rows,
        "records": [asdict(record) for record in store.control.history.records(run)],
    }


def event_record(entry: str, event: dict[str, Any]) -> dict[str, Any]:
    """An entry of an event stream, with its time: ``at``, Unix seconds."""
    return {"at": int(entry.split("-")[0]) / 1000, **event}


def receipts(store: Store, state: RunState, number: int, client: str) -> dict[str, dict[str, Any]]:
    """
    Find a client's receipts in a round, else its entry in the history.

    Raises:
        RunStateError: There is none, and why.
    """
    found = {
        key: asdict(value)
        for key, value in store.control.receipts.of_round(state.run_id, number).items()
        if key.partition(":")[0] == client
    }
    return found or _from_history(store, state, number, client)


def _from_history(
    store: Store, state: RunState, number: int, client: str
) -> dict[str, dict[str, Any]]:
    for record in store.control.history.records(state.run_id):
        if record.round != number:
            continue
        if client in record.accepted:
            receipt = Receipt(
                Verdict.accepted,
                digest=record.accepted[client],
                weight=record.weights[client],
                norm=record.norms.get(client),
                clipped=client in record.clipped,
                staleness=record.staleness.get(client, 0),
                metrics=record.client_validation.get(client, {}),
                key=record.keys.get(client, ""),
            )
            return {client: asdict(receipt)}
        if client in record.rejected:
            return {client: {"status": "rejected", "reason": record.rejected[client]}}
        what = "nothing came from it"
        if client not in record.cohort:
            what = f"it was not in the cohort{nearest(client, record.cohort)}"
        raise RunStateError(
            state.name,
            f"round {number}, client {client}: {what} (cohort: {', '.join(record.cohort)})",
        )
    raise RunStateError(
        state.name,
        f"round {number}, client {client}: no receipt (the run is at round {state.round})",
    )
