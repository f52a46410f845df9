"""
The RQ boundary: how a job is published and replaced, and what became of it. Whether it is dead: ``dead_jobs``.

RQ's own retries, callbacks, maintenance and pickling are not used: a job is a whitelisted function
with a run id and a number, published once under an id that is never used again, and replaced by a
new attempt when its worker is dead. ``rq info`` is not for this system either: it cleans registries.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ResponseError
from rq.intermediate_queue import IntermediateQueue
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.results import Result

from fl_queue.common import failpoints, safe_json
from fl_queue.common.safe_json import dumps
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import AwaitedUpdate, Receipt
from fl_queue.store import Replacement, Store, ask_many, batches, keyspace
from fl_queue.store.control.events import event_command
from fl_queue.store.jobs.rq_types import AGGREGATE, EVALUATE, RESULT_TTL_S, FLJob, queue

#: Limits on text from a job's keys, in characters: any user of its queue may write there.
_MAX_WORD = 128
_MAX_REASON = 1000


class JobState(StrEnum):
    """RQ's status of a job, of those that a job of a round can have."""

    #: In a queue, or between queue and worker.
    queued = "queued"
    #: A worker has it.
    started = "started"
    #: Its function has returned.
    finished = "finished"
    #: Its function has raised an error, or its worker was killed.
    failed = "failed"


@dataclass(frozen=True)
class JobTicket:
    """
    One published job, as the round's ``jobs`` hash keeps it.

    Args:
        who: Client id, group of a simulation, ``aggregator`` or ``evaluator``.
        function: One of those of its queue; see ``rq_types``.
        queue: RQ queue.
        run: Run id.
        number: Round, or version for an evaluation.
        timeout_s: RQ ends the job after this time; -1: never.
        job: Job id; fresh for each ticket.
        attempt: From 1.
    """

    who: str
    function: str
    queue: str
    run: str
    number: int
    timeout_s: int
    attempt: int = 1
    job: str = ""

    def __post_init__(self) -> None:
        if not self.job:
            object.__setattr__(self, "job", identifiers.new_job_id(self.who, self.run, self.number))

    def next_attempt(self, counts: bool = True) -> JobTicket:
        """The same work under a new job id. Args: ``counts``: the last one came to nothing."""
        return JobTicket(
            self.who,
            self.function,
            self.queue,
            self.run,
            self.number,
            self.timeout_s,
            self.attempt + counts,
        )

    def to_json(self) -> str:
        """The ticket as JSON."""
        return dumps(asdict(self))

    @classmethod
    def from_dict(cls, raw: Any) -> JobTicket:
        """A ticket from a map with its fields, and perhaps others. Raises MessageError."""
        wanted = {item.name for item in fields(cls)}
        known = {name: raw[name] for name in raw if name in wanted} if type(raw) is dict else raw
        return safe_json.record(cls, known, "a ticket")


def tickets(store: Store, run: str, number: int) -> dict[str, JobTicket]:
    """Client, group or ``aggregator`` -> its newest ticket of a round."""
    jobs = store.control.rounds.jobs(run, number)
    return store.control.unreadable.each(
        keyspace.round_jobs(run, number),
        jobs.items(),
        lambda who, raw: (str(who), JobTicket.from_dict(raw)),
    )


def evaluation_tickets(store: Store, run: str) -> dict[int, JobTicket]:
    """Version -> the ticket of its evaluation, of those that are not done."""
    waiting = [(k, raw) for k, raw in store.control.evaluations.all(run).items() if "job" in raw]
    return store.control.unreadable.each(
        keyspace.evaluations(run),
        waiting,
        lambda version, raw: (int(version), JobTicket.from_dict(raw)),
    )


def publish(ticket: JobTicket, pipe: Pipeline, connection: Redis, again: bool = False) -> None:
    """
    Put a ticket's job into its queue as part of a transaction that has begun (``multi``).

    Args:
        again: It takes the place of another one.
    """
    queue(ticket.queue, connection).enqueue_call(
        ticket.function,
        args=[ticket.run, ticket.number],
        job_id=ticket.job,
        timeout=ticket.timeout_s,
        # What an evaluation leaves is its record; RQ removes the job at once.
        result_ttl=0 if ticket.function == EVALUATE else RESULT_TTL_S,
        failure_ttl=RESULT_TTL_S,
        description=f"{ticket.function.rsplit('.', 1)[-1]} {ticket.run} {ticket.number}",
        # A run that has just committed goes on where its worker is; see ``scheduling`` for the others.
        at_front=ticket.function == AGGREGATE and not again,
        pipeline=pipe,
    )


def replace(
    store: Store, key: str, field_name: str, old: JobTicket, counts: bool = True, why: str = ""
) -> JobTicket | None:
    """
    Publish the next attempt in place of ``old``, if ``old`` is still the newest.

    Args:
        key, field_name: Hash and field of the newest ticket, for example in a round's jobs.
        counts: Whether ``old`` counts as a failed attempt; one that yielded to another round does not.
        why: As of ``replace_all``.

    Returns:
        The new ticket; None when another process has replaced ``old`` first.

    Raises:
        StoreUnavailable: It may be replaced, or not; look again.
    """
    reasons = {field_name: why} if why else {}
    return replace_all(store, key, {field_name: old}, counts, reasons).get(field_name)


def replace_all(
    store: Store,
    key: str,
    old: Mapping[str, JobTicket],
    counts: bool = True,
    why: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, JobTicket]:
    """
    Publish the next attempt in place of each of some jobs that is still the newest.

    Args:
        key: Of the hash that holds the newest tickets.
        old: Its field -> the ticket to replace.
        counts: As of ``replace``.
        why: Field -> reason, for an event of the round, which is there whenever the new attempt is.

    Returns:
        Field -> the new ticket; without those that another process has replaced first.

    Raises:
        StoreUnavailable: Some may be replaced, and some not; look again.
    """
    new = {name: ticket.next_attempt(counts) for name, ticket in old.items()}
    wanted = [
        Replacement(
            name, ticket.job, new[name].job, new[name].to_json(),
            _replacing(store, ticket, new[name], why.get(name, "")),
        )
        for name, ticket in old.items()
    ]  # fmt: skip
    done = store.control.queues.replace_jobs(key, wanted)
    replaced = {item.field: new[item.field] for item, was in zip(wanted, done, strict=True) if was}
    if replaced:
        failpoints.failpoint("heal.replaced")
        forget_all(store, [old[name] for name in replaced])
    return replaced


def healed(new: JobTicket, why: str) -> str:
    """Describe a new attempt. Args: ``why``: what became of the one before."""
    return f"job of {new.who} {why}: attempt {new.attempt}"


def _replacing(store: Store, old: JobTicket, new: JobTicket, why: str) -> list[list[Any]]:
    """The commands that publish a job in place of another one. Args: ``why``: for an event; empty: none."""
    with store.control.redis.pipeline() as pipe:
        pipe.multi()
        publish(new, pipe, store.control.redis, again=True)
        # Should we be killed before we forget it, or the reply be lost.
        pipe.expire(FLJob.key_for(old.job), RESULT_TTL_S)
        commands = [list(words) for words, _ in pipe.command_stack]
    if not why:
        return commands
    # Not above: workers of clients load this module, and replace nothing.
    from fl_queue.protocol.events import Healed

    return [*commands, event_command(new.run, Healed(round=new.number, what=healed(new, why)))]


def forget(store: Store, ticket: JobTicket) -> None:
    """Remove every trace of a job from RQ's keys: we run no RQ maintenance that would."""
    forget_all(store, [ticket])


def forget_all(store: Store, tickets: Iterable[JobTicket]) -> None:
    """The same of several jobs, by the batch."""
    connection = store.control.redis
    for batch in batches(tickets):
        started = {
            ticket.queue: StartedJobRegistry(queue=queue(ticket.queue, connection)).key
            for ticket in batch
        }
        found = ask_many(connection, started.values(), lambda pipe, key: pipe.zrange(key, 0, -1))
        executions: dict[str, list[tuple[str, bytes]]] = {}
        for key, members in zip(started.values(), found, strict=True):
            for member in members:
                job = member.partition(b":")[0].decode(errors="replace")
                executions.setdefault(job, []).append((key, member))
        with connection.pipeline(transaction=False) as pipe:
            for ticket in batch:
                _forget(pipe, ticket, executions.get(ticket.job, ()), connection)
            # A key of another type stops nothing: the others are removed, and ``rq_cleanup`` removes that one.
            pipe.execute(raise_on_error=False)


def _forget(
    pipe: Pipeline, ticket: JobTicket, executions: Iterable[tuple[str, bytes]], connection: Redis
) -> None:
    rq_queue = queue(ticket.queue, connection)
    pipe.lrem(rq_queue.key, 0, ticket.job)
    pipe.lrem(IntermediateQueue.get_intermediate_queue_key(rq_queue.key), 0, ticket.job)
    for key, member in executions:
        pipe.zrem(key, member)
        pipe.delete(b"rq:execution:" + member)
    pipe.zrem(FinishedJobRegistry(queue=rq_queue).key, ticket.job)
    pipe.zrem(FailedJobRegistry(queue=rq_queue).key, ticket.job)
    pipe.delete(
        FLJob.key_for(ticket.job), Result.get_key(ticket.job), f"rq:executions:{ticket.job}"
    )


def failure(store: Store, ticket: JobTicket) -> str:
    """Why RQ has a job as failed: the last line of its error."""
    return failures(store, [ticket])[0]


def failures(store: Store, tickets: Iterable[JobTicket]) -> list[str]:
    """The same of several jobs."""
    found = ask_many(
        store.control.redis,
        tickets,
        lambda pipe, ticket: pipe.xrevrange(Result.get_key(ticket.job), count=1),
    )
    return [_last_line(newest) for newest in found]


def _last_line(newest: Sequence[Any]) -> str:
    if not newest:
        return "no reason recorded"
    packed = newest[0][1].get(b"exc_string", b"")
    try:
        # No more than a megabyte: any user of the queue may have written it.
        text = zlib.decompressobj().decompress(base64.b64decode(packed), 1 << 20).decode()
    except (ValueError, zlib.error):
        return "no readable reason recorded"
    return safe_json.printable(text.strip().rpartition("\n")[2][:_MAX_REASON]).strip().rstrip(";")


def job_state(store: Store, ticket: JobTicket) -> str:
    """The state of a job by RQ's keys: ``queued``, ``started by <worker>``, ``failed: ...``."""
    status, worker = _status(store, ticket)
    if status == JobState.failed:
        return f"failed: {failure(store, ticket)}"
    if status == JobState.started:
        return f"started by {worker}"
    return status or "gone"


def finished(store: Store, ticket: JobTicket) -> bool:
    """Whether RQ has a job as finished."""
    return _status(store, ticket)[0] == JobState.finished


def is_queued(store: Store, ticket: JobTicket) -> bool:
    """Whether a job still waits in its queue."""
    return _status(store, ticket)[0] == JobState.queued


def has_answered(store: Store, receipt: Receipt | None, ticket: JobTicket | None) -> bool:
    """
    Whether a client's answer to a round is in, and nothing more is to come.

    While the client's job is at work, a bad element may be of another sender.
    """
    return have_answered(store, [(receipt, ticket)])[0]


def have_answered(
    store: Store, asked: Sequence[tuple[Receipt | None, JobTicket | None]]
) -> list[bool]:
    """The same of several clients, by the batch."""
    # A group's job stands for many clients.
    doubtful = {
        ticket.job: ticket
        for receipt, ticket in asked
        if receipt is not None and not receipt.answers and ticket is not None
    }
    found = statuses(store, doubtful.values())
    ended = [ticket for ticket in doubtful.values() if found[ticket.job].name == JobState.finished]
    left = all_awaited(store, ended)
    over = {ticket.job for ticket in ended if left[ticket.job] is None}
    return [
        receipt is not None and (receipt.answers or ticket is None or ticket.job in over)
        for receipt, ticket in asked
    ]


def awaited(store: Store, ticket: JobTicket) -> AwaitedUpdate | None:
    """Update of a job that waits for its site's decision; None without one, or when the job is not the newest."""
    return all_awaited(store, [ticket])[ticket.job]


def all_awaited(store: Store, tickets: Iterable[JobTicket]) -> dict[str, AwaitedUpdate | None]:
    """Job id -> the same of it. Args: ``tickets``: of one run."""
    asked = list(tickets)
    if not asked:
        return {}
    found = store.control.clients.awaited_updates({ticket.who for ticket in asked}, asked[0].run)

    def of(ticket: JobTicket) -> AwaitedUpdate | None:
        left = found[ticket.who]
        return left if left is not None and left.job == ticket.job else None

    return {ticket.job: of(ticket) for ticket in asked}


class JobStatus(NamedTuple):
    """RQ's status of a job and the worker that has it; empty where there is none."""

    name: str = ""
    worker: str = ""


def statuses(store: Store, tickets: Iterable[JobTicket]) -> dict[str, JobStatus]:
    """Job id -> its status, by the batch."""
    jobs = [ticket.job for ticket in tickets]
    found = ask_many(
        store.control.redis,
        jobs,
        lambda pipe, job: pipe.hmget(FLJob.key_for(job), "status", "worker_name"),
    )
    return {job: _status_of(raw) for job, raw in zip(jobs, found, strict=True)}


def _status_of(raw: Sequence[bytes | None]) -> JobStatus:
    return JobStatus(
        *(
            safe_json.printable(value[:_MAX_WORD].decode(errors="replace")) if value else ""
            for value in raw
        )
    )


def _status(store: Store, ticket: JobTicket) -> JobStatus:
    return statuses(store, [ticket])[ticket.job]


def queued(store: Store, queue_name: str) -> list[str]:
    """Ids of the jobs waiting in a queue, the next one first."""
    key = queue(queue_name, store.control.redis).key
    try:
        waiting = cast(list[bytes], store.control.redis.lrange(key, 0, -1))
    except ResponseError:  # No list: its worker removes it.
        return []
    return [job.decode(errors="replace") for job in waiting]


def lengths(store: Store, queue_names: Iterable[str]) -> list[int]:
    """Number of jobs that wait in each queue."""
    connection = store.control.redis
    keys = [queue(name, connection).key for name in queue_names]
    return ask_many(connection, keys, lambda pipe, key: pipe.llen(key))


def to_front(store: Store, queue_name: str, job: str) -> None:
    """Have a waiting job be the next one; no effect when it does not wait any more."""
    store.control.queues.move_to_front(queue(queue_name, store.control.redis).key, job)


def to_back(store: Store, queue_name: str, job: str) -> None:
    """Have a waiting job be the last one; no effect when it does not wait any more."""
    store.control.queues.move_to_back(queue(queue_name, store.control.redis).key, job)
