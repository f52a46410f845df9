"""
The RQ boundary: how a job is published, and whether one is dead.

RQ's own retries, callbacks, maintenance and pickling are not used: a job is a whitelisted function
with a run id and a number, published once under an id that is never used again, and replaced by a
new attempt when its worker is dead. ``rq info`` is not for this system either: it cleans registries.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ResponseError
from rq.intermediate_queue import IntermediateQueue
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.results import Result

from fl_queue import faults, names, plain
from fl_queue.jobs import AGGREGATE, EVALUATE, RESULT_TTL_S, FLJob, mend, queue
from fl_queue.records import Awaited, Receipt, dumps
from fl_queue.store import LEASE_S, UNNAMED, Store

#: A job may be between pop and start (in RQ's intermediate list), or between two lists, this long.
START_GRACE_S = 3.0
#: A lease has been written anew by its worker, or has run out, within this time.
LEASE_GRACE_S = LEASE_S + 2.0
#: Of what a job's keys say, in characters: whoever may use its queue could have written it.
_LONGEST_WORD = 128
_LONGEST_REASON = 1000


@dataclass(frozen=True)
class Ticket:
    """
    One published job, as the round's ``jobs`` hash keeps it.

    Args:
        who: Client id, group of a simulation, ``aggregator`` or ``evaluator``.
        function: One of those of its queue; see ``jobs``.
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
            object.__setattr__(self, "job", names.new_job_id(self.who, self.run, self.number))

    def next_attempt(self) -> Ticket:
        """The same work under a new job id."""
        return Ticket(
            self.who,
            self.function,
            self.queue,
            self.run,
            self.number,
            self.timeout_s,
            self.attempt + 1,
        )

    def to_json(self) -> str:
        return dumps(asdict(self))

    @classmethod
    def from_dict(cls, raw: Any) -> Ticket:
        """A ticket from a map that has its fields, perhaps among others. Raises BlobError."""
        wanted = {item.name for item in fields(cls)}
        said = {name: raw[name] for name in raw if name in wanted} if type(raw) is dict else raw
        return plain.record(cls, said, "a ticket")


def tickets(store: Store, run: str, number: int) -> dict[str, Ticket]:
    """Client, group or ``aggregator`` -> its newest ticket of a round."""
    jobs = store.control.jobs(run, number)
    return {who: Ticket.from_dict(raw) for who, raw in jobs.items()}


def evaluation_tickets(store: Store, run: str) -> dict[int, Ticket]:
    """Version -> the ticket of its evaluation, of those that are not done."""
    evaluations = store.control.evaluations(run)
    return {version: Ticket.from_dict(raw) for version, raw in evaluations.items() if "job" in raw}


def publish(ticket: Ticket, pipe: Pipeline, connection: Redis) -> None:
    """Put a ticket's job into its queue as part of a transaction that has begun (``multi``)."""
    queue(ticket.queue, connection).enqueue_call(
        ticket.function,
        args=[ticket.run, ticket.number],
        job_id=ticket.job,
        timeout=ticket.timeout_s,
        # What an evaluation leaves is its record; RQ removes the job at once.
        result_ttl=0 if ticket.function == EVALUATE else RESULT_TTL_S,
        failure_ttl=RESULT_TTL_S,
        description=f"{ticket.function.rsplit('.', 1)[-1]} {ticket.run} {ticket.number}",
        # A run that has just committed goes on where its worker is; see ``turns`` for the others.
        at_front=ticket.function == AGGREGATE and ticket.attempt == 1,
        pipeline=pipe,
    )


def replace(store: Store, key: str, field_name: str, old: Ticket) -> Ticket | None:
    """
    Publish the next attempt in place of ``old``, if ``old`` is still the newest.

    Args:
        key, field_name: The hash field that holds the newest ticket (a round's jobs, say).

    Returns:
        The new ticket; None when somebody else was faster.
    """
    new = old.next_attempt()
    connection = store.control.redis

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        raw = cast("bytes | None", pipe.hget(key, field_name))
        if raw is None or json.loads(raw).get("job") != old.job:
            return None

        def write() -> None:
            pipe.hset(key, field_name, new.to_json())
            publish(new, pipe, connection)
            # Should we be killed before we forget it, or the reply be lost.
            pipe.expire(FLJob.key_for(old.job), RESULT_TTL_S)

        return write

    if not store.control.transact([key], body):
        return None
    faults.reach("heal.replaced")
    forget(store, old)
    return new


def forget(store: Store, ticket: Ticket) -> None:
    """Remove every trace of a job from RQ's keys: we run no RQ maintenance that would."""
    connection = store.control.redis
    rq_queue = queue(ticket.queue, connection)
    started = StartedJobRegistry(queue=rq_queue)
    executions = [
        member for member in _members(connection, started.key)
        if member.partition(b":")[0] == ticket.job.encode()
    ]  # fmt: skip
    with connection.pipeline() as pipe:
        pipe.lrem(rq_queue.key, 0, ticket.job)
        pipe.lrem(IntermediateQueue.get_intermediate_queue_key(rq_queue.key), 0, ticket.job)
        for member in executions:
            pipe.zrem(started.key, member)
            pipe.delete(b"rq:execution:" + member)
        pipe.zrem(FinishedJobRegistry(queue=rq_queue).key, ticket.job)
        pipe.zrem(FailedJobRegistry(queue=rq_queue).key, ticket.job)
        pipe.delete(
            FLJob.key_for(ticket.job), Result.get_key(ticket.job), f"rq:executions:{ticket.job}"
        )
        # A key of another type stops nothing: the others are removed, and ``sweep`` removes that one.
        pipe.execute(raise_on_error=False)


def _members(connection: Redis, key: str) -> list[bytes]:
    """What a registry of RQ's holds; nothing, when somebody has put something else there."""
    try:
        return cast(list[bytes], connection.zrange(key, 0, -1))
    except ResponseError:
        return []


def failure(store: Store, ticket: Ticket) -> str:
    """Why RQ has a job as failed: the last line of its error."""
    connection = store.control.redis
    try:
        newest = cast(list[Any], connection.xrevrange(Result.get_key(ticket.job), count=1))
    except ResponseError:
        newest = []
    if not newest:
        return "no reason recorded"
    packed = newest[0][1].get(b"exc_string", b"")
    try:
        # No more than a megabyte: anybody who may use the queue could have written it.
        text = zlib.decompressobj().decompress(base64.b64decode(packed), 1 << 20).decode()
    except (ValueError, zlib.error):
        return "no readable reason recorded"
    return plain.printable(text.strip().rpartition("\n")[2][:_LONGEST_REASON]).strip().rstrip(";")


def job_state(store: Store, ticket: Ticket) -> str:
    """What RQ's keys say of a job, in words: ``queued``, ``started by <worker>``, ``failed: ...``."""
    status, worker = _status(store, ticket)
    if status == "failed":
        return f"failed: {failure(store, ticket)}"
    if status == "started":
        return f"started by {worker}"
    return status or "gone"


def finished(store: Store, ticket: Ticket) -> bool:
    """Whether RQ has a job as finished."""
    return _status(store, ticket)[0] == "finished"


def is_queued(store: Store, ticket: Ticket) -> bool:
    """Whether nobody has begun with a job yet."""
    return _status(store, ticket)[0] == "queued"


def has_answered(store: Store, receipt: Receipt | None, ticket: Ticket | None) -> bool:
    """
    Whether a client's answer to a round is in, and nothing more is to come.

    A bad element may be anybody's while the client's job is at work.
    """
    if receipt is None or receipt.answers:
        return receipt is not None
    return ticket is None or (finished(store, ticket) and awaited(store, ticket) is None)


def awaited(store: Store, ticket: Ticket) -> Awaited | None:
    """What a job left at its site, to be decided there; None when it left nothing, or is not the newest."""
    found = store.control.awaited(ticket.who, ticket.run)
    return found if found is not None and found.job == ticket.job else None


def _status(store: Store, ticket: Ticket) -> tuple[str, str]:
    """RQ's status of a job and the worker that has it; empty where there is none."""
    key = FLJob.key_for(ticket.job)
    try:
        raw = cast(list[bytes | None], store.control.redis.hmget(key, "status", "worker_name"))
    except ResponseError:  # No hash: no job.
        return "", ""
    status, worker = (
        plain.printable(value[:_LONGEST_WORD].decode(errors="replace")) if value else ""
        for value in raw
    )
    return status, worker


def sweep(store: Store) -> None:
    """
    Remove what RQ's keys keep of jobs and workers that ended long ago or died without saying so.

    RQ's own maintenance would turn finished jobs into failed ones and run jobs twice; this removes
    names only, of jobs that no longer exist.
    """
    connection = store.control.redis
    for key in ("rq:queues", "rq:workers"):
        if connection.type(key) not in (b"set", b"none"):
            connection.delete(key)
    for raw in cast(set[bytes], connection.smembers("rq:queues")):
        _sweep_queue(store, raw.decode(errors="replace").removeprefix("rq:queue:"))
    _forget_dead_workers(connection)


def _sweep_queue(store: Store, queue_name: str) -> None:
    connection = store.control.redis
    rq_queue = queue(queue_name, connection)
    mend(connection, queue_name)
    intermediate = IntermediateQueue.get_intermediate_queue_key(rq_queue.key)
    for registry in (StartedJobRegistry, FinishedJobRegistry, FailedJobRegistry):
        key = registry(queue=rq_queue).key
        for member in cast(list[bytes], connection.zrange(key, 0, -1)):
            if not connection.exists(b"rq:job:" + member.partition(b":")[0]):
                connection.zrem(key, member)
    for job in cast(list[bytes], connection.lrange(intermediate, 0, -1)):
        if not connection.exists(b"rq:job:" + job):
            connection.lrem(intermediate, 0, cast(str, job))


def _forget_dead_workers(connection: Redis) -> None:
    for key in cast(set[bytes], connection.smembers("rq:workers")):
        if connection.exists(key):
            continue
        name = key.removeprefix(b"rq:worker:")
        with connection.pipeline() as pipe:
            pipe.srem("rq:workers", key)
            for registry in connection.scan_iter(match="rq:workers:*", count=1000):
                pipe.srem(registry, key)
            pipe.delete(b"rq:worker:" + name + b":executions")
            pipe.execute(raise_on_error=False)


def queued(store: Store, queue_name: str) -> list[str]:
    """Ids of the jobs waiting in a queue, the next one first."""
    key = queue(queue_name, store.control.redis).key
    try:
        waiting = cast(list[bytes], store.control.redis.lrange(key, 0, -1))
    except ResponseError:  # No list: its worker removes it.
        return []
    return [job.decode(errors="replace") for job in waiting]


def to_front(store: Store, queue_name: str, job: str) -> None:
    """Have a waiting job be the next one; no effect when it does not wait any more."""
    store.control.move_to_front(queue(queue_name, store.control.redis).key, job)


def to_back(store: Store, queue_name: str, job: str) -> None:
    """Have a waiting job be the last one; no effect when it does not wait any more."""
    store.control.move_to_back(queue(queue_name, store.control.redis).key, job)


@dataclass
class Watch:
    """
    Tells dead jobs from living ones, without RQ's registries.

    A job is dead when RQ failed it or lost it, when its worker is dead, or when its worker's lease does
    not name it. What may be between two states is given some time on this process's monotonic clock.

    Args:
        start_s: For a job to be started once it has left its queue.
        lease_s: For a lease to name the job that is started.
    """

    store: Store
    start_s: float = START_GRACE_S
    lease_s: float = LEASE_GRACE_S
    _suspected: dict[str, float] = field(default_factory=dict)

    def verdict(self, ticket: Ticket) -> str | None:
        """
        Why a job is dead, or None while it lives or has finished.

        Returns:
            A reason for people: ``its worker is dead``, ``failed: ...``, ``lost``.
        """
        reason, grace_s = self._look(ticket)
        if reason is None:
            self._suspected.pop(ticket.job, None)
            return None
        first_seen = self._suspected.setdefault(ticket.job, time.monotonic())
        if grace_s and time.monotonic() - first_seen < grace_s:
            return None
        self._suspected.pop(ticket.job, None)
        return reason

    def _look(self, ticket: Ticket) -> tuple[str | None, float]:
        """Why a job looks dead, and for how long it may look so, seconds."""
        status, worker = _status(self.store, ticket)
        if status == "started":
            return self._look_started(ticket, worker)
        if status == "finished":
            return None, 0.0
        if status == "queued":
            return self._look_queued(ticket)
        if status == "failed":
            return f"failed: {failure(self.store, ticket)}", 0.0
        return status or "lost", 0.0 if status else self.start_s

    def _look_started(self, ticket: Ticket, worker: str) -> tuple[str | None, float]:
        job = self.store.control.at_work(worker)
        if job in (ticket.job, UNNAMED) or self.store.control.settling():
            # After an outage all leases have run out, of the living, too.
            return None, 0.0
        if job is None:
            return "its worker is dead", 0.0
        if _status(self.store, ticket) != ("started", worker):
            return None, 0.0  # It ended while we looked.
        # What RQ wrote of its end is lost: in an outage, or by a server that lost its last writes.
        return f"lost: its worker is at {f'job {job}' if job else 'no job'}", self.lease_s

    def _look_queued(self, ticket: Ticket) -> tuple[str | None, float]:
        connection = self.store.control.redis
        key = queue(ticket.queue, connection).key
        try:
            if connection.lpos(key, ticket.job) is not None:
                return None, 0.0
        except ResponseError:
            mend(connection, ticket.queue)
        # Popped and not started: its worker was killed in between, or is about to start it.
        return "lost between queue and worker", self.start_s
