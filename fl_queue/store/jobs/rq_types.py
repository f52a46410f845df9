"""
RQ's job and queue types, restricted to this program's jobs; workers refuse any other job.

JSON instead of pickle is no protection by itself: RQ imports any dotted path that a hash names, ``os.system``
included, follows callbacks and webhooks, and its worker quits at a hash that it cannot read. Here a hash is
read field by field, each of bounded size. It must be a call of one of its queue's functions with a run id
and a number; otherwise it is removed from the queue with a reason, and the worker goes on.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from redis import Redis
from redis.exceptions import RedisError, ResponseError
from rq import Queue
from rq.exceptions import DequeueTimeout, InvalidJobOperation, NoSuchJobError
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.timeouts import JobTimeoutException
from rq.utils import str_to_date

from fl_queue.errors import JobRefused, Trouble
from fl_queue.protocol import identifiers
from fl_queue.store import classify, fail_fast, keyspace, outlast, waits_for

log = logging.getLogger(__name__)

#: Exception that is raised in a job at its timeout.
TimedOut = JobTimeoutException

TRAIN = "workers.client.train"
CLIENT_EVALUATE = "workers.client.evaluate"
CLIENT_INITIALISE = "workers.client.initialise"
CLIENT_SUMS = "workers.client.sums"
CLIENT_UNMASK = "workers.client.unmask"
CLIENT_TELL = "workers.client.tell_facts"
POOL_TRAIN = "workers.pool.train"
POOL_EVALUATE = "workers.pool.evaluate"
POOL_INITIALISE = "workers.pool.initialise"
AGGREGATE = "workers.aggregator.aggregate"
EVALUATE = "workers.evaluator.evaluate"
INITIALISE = "workers.evaluator.initialise"
_OF_CLIENTS = frozenset(
    {TRAIN, CLIENT_EVALUATE, CLIENT_INITIALISE, CLIENT_SUMS, CLIENT_UNMASK, CLIENT_TELL}
)
_OF_QUEUES = {
    keyspace.AGGREGATE_QUEUE: frozenset({AGGREGATE}),
    keyspace.EVALUATE_QUEUE: frozenset({EVALUATE, INITIALISE}),
    keyspace.POOL_QUEUE: frozenset({POOL_TRAIN, POOL_EVALUATE, POOL_INITIALISE}),
}
#: Functions of jobs that belong to a round.
OF_A_ROUND = (_OF_CLIENTS | _OF_QUEUES[keyspace.POOL_QUEUE] | {INITIALISE}) - {CLIENT_TELL}

RESULT_TTL_S = 600
#: Limit of each field that is read, in bytes; other fields of a hash are not read.
_LONGEST = {
    "data": 1024,
    "origin": 128,
    "status": 32,
    "timeout": 16,
    "created_at": 40,
    "enqueued_at": 40,
}
#: Fields with which RQ would do more than run a function.
_REFUSED = (
    "success_callback_name",
    "failure_callback_name",
    "stopped_callback_name",
    "webhooks",
    "dependency_id",
    "dependency_ids",
    "retries_left",
    "retry_intervals",
    "repeats_left",
    "repeat_intervals",
    "rate_limit_key",
    "group_id",
)
#: What is packed in ``data``: function, run id and number, as JSON.
_MAX_CALL = 2048
_MAX_TIMEOUT_S = 2**31 - 1
_LARGEST_NUMBER = 2**32 - 1


def allowed(queue_name: str) -> frozenset[str]:
    """The functions that the worker of a queue may run."""
    if queue_name.startswith(keyspace.client_queue("")):
        return _OF_CLIENTS
    return _OF_QUEUES.get(queue_name, frozenset())


class FLJob(Job):
    """A job that is a call of one of its queue's functions, or does not come into being."""

    def refresh(self) -> None:
        """
        Read the hash, none of it beyond its bounds.

        Raises:
            JobRefused: It is no hash, or no call of one of its queue's functions.
            NoSuchJobError: There is none.
        """
        self.restore(self._fields())

    def restore(self, raw_data: Mapping[Any, Any]) -> None:
        """Set the fields from a job hash. Raises JobRefused for one that is not allowed."""
        raw = {
            key.decode(errors="replace") if isinstance(key, bytes) else key: value
            for key, value in raw_data.items()
        }
        for name in _REFUSED:
            if raw.get(name):
                raise self.refused(f"{name} is set")
        if not raw.get("data"):
            raise NoSuchJobError(f"No such job: {self.key}")
        self.origin = self._text(raw, "origin")
        self._status = self._parsed("status", JobStatus, self._text(raw, "status"))
        self.timeout = self._parsed("timeout", _seconds, self._text(raw, "timeout"))
        self.created_at = self._parsed("created_at", str_to_date, self._text(raw, "created_at"))
        enqueued_at = self._text(raw, "enqueued_at")
        self.enqueued_at = self._parsed("enqueued_at", str_to_date, enqueued_at)
        self.data = self._unpacked(raw["data"])
        self._check_call()
        # Not the hash's own value. An evaluation leaves its record, and needs no result.
        self.result_ttl = 0 if self.func_name == EVALUATE else RESULT_TTL_S
        self.failure_ttl = RESULT_TTL_S
        function = str(self.func_name).rpartition(".")[2]
        self.description = f"{function} {self.args[0]} {self.args[1]}"

    def refused(self, reason: str) -> JobRefused:
        """The error with a reason; at most one line, as it may quote the hash."""
        return JobRefused(f"job {self.id}: {reason[:200]!s}")

    def _fields(self) -> dict[str, bytes]:
        asked = (*_LONGEST, *_REFUSED)
        try:
            with fail_fast(), self.connection.pipeline(transaction=False) as pipe:
                for name in asked:
                    pipe.hstrlen(self.key, name)
                lengths = dict(zip(asked, cast("list[int]", pipe.execute()), strict=True))
            for name, longest in _LONGEST.items():
                if lengths[name] > longest:
                    raise self.refused(f"{name} has {lengths[name]} bytes, more than {longest}")
            values = cast("list[bytes | None]", self.connection.hmget(self.key, list(_LONGEST)))
        except ResponseError as exc:
            if classify(exc) not in (None, Trouble.not_allowed):
                raise
            # Not a hash, or none that we may read.
            raise self.refused(str(exc)) from exc
        found = {name: value for name, value in zip(_LONGEST, values, strict=True) if value}
        # Their existence is enough to refuse the job; their content is not read.
        return found | {name: b"set" for name in _REFUSED if lengths[name]}

    def _text(self, raw: Mapping[str, Any], name: str) -> str:
        value = raw.get(name, b"")
        try:
            return value.decode() if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError as exc:
            raise self.refused(f"{name} is not text") from exc

    def _parsed(self, name: str, parse: Callable[[str], Any], text: str) -> Any:
        try:
            return parse(text)
        except ValueError as exc:
            raise self.refused(f"{name} is {text!r}") from exc

    def _unpacked(self, packed: bytes) -> bytes:
        inflate = zlib.decompressobj()
        try:
            # No more than that: a kilobyte can stand for a megabyte, and ten for a gigabyte.
            data = inflate.decompress(packed, _MAX_CALL)
        except zlib.error as exc:
            raise self.refused("data is not compressed") from exc
        if not inflate.eof:
            raise self.refused(f"data is cut off, or more than {_MAX_CALL} bytes")
        return data

    def _check_call(self) -> None:
        """
        Refuse ``data`` that is no call of the queue's worker, or another than the job's id names.

        Raises:
            JobRefused: Anything else.
        """
        try:
            call = json.loads(self.data)
        except (ValueError, RecursionError) as exc:
            raise self.refused("data is not JSON") from exc
        if type(call) is not list or len(call) != 4:
            raise self.refused("data is not [function, null, arguments, {}]")
        function, instance, args, kwargs = call
        if instance is not None:
            raise self.refused("methods are not run")
        if type(function) is not str or function not in allowed(self.origin):
            raise self.refused(f"{str(function)[:80]!r} is no function of queue {self.origin}")
        if kwargs != {} or type(args) is not list or not _is_call(args):
            raise self.refused("the arguments are not (run id, number)")
        if self.id.split("_")[1:3] != [args[0], str(args[1])]:
            raise self.refused("its id is that of another run or round")
        if self.origin != keyspace.client_queue(self.id.partition("_")[0]) and (
            allowed(self.origin) is _OF_CLIENTS
        ):
            raise self.refused("its id is that of another client")
        self._func_name, self._instance, self._args, self._kwargs = function, None, args, {}

    @property
    def func(self) -> Callable[..., Any]:
        """The function to call. Raises JobRefused before anything is imported."""
        self._check_call()
        return cast("Callable[..., Any]", super().func)

    def perform(self) -> Any:
        """Check the call again, then run it. Raises JobRefused before anything is imported."""
        self._check_call()
        # Each function may be called again; this costs less time than another attempt.
        return outlast(super().perform)

    def call(self) -> tuple[str, int]:
        """The arguments of the job: run id and number."""
        return self.args[0], self.args[1]

    def get_status(self, refresh: bool = True) -> JobStatus:
        """The status in the hash. Raises InvalidJobOperation for an invalid one."""
        try:
            return cast(JobStatus, super().get_status(refresh))
        except (ValueError, ResponseError) as exc:
            if classify(exc) is not None:
                raise
            # The hash was changed meanwhile.
            raise InvalidJobOperation(f"job {self.id} has no status") from exc

    @property
    def success_callback(self) -> None:
        """No callback: none is followed from a hash."""
        return None

    @property
    def failure_callback(self) -> None:
        """No callback: none is followed from a hash."""
        return None

    @property
    def stopped_callback(self) -> None:
        """No callback: none is followed from a hash."""
        return None


def _seconds(text: str) -> int:
    seconds = int(text)
    if seconds != -1 and not 1 <= seconds <= _MAX_TIMEOUT_S:
        raise ValueError(text)
    return seconds


def _is_call(args: list[Any]) -> bool:
    if len(args) != 2 or type(args[0]) is not str or type(args[1]) is not int:
        return False
    return identifiers.is_run_id(args[0]) and 0 <= args[1] <= _LARGEST_NUMBER


class FLQueue(Queue):
    """
    A queue whose worker survives any invalid entry.

    ``on_refused`` is called for each refused entry, with its id and the reason.
    """

    on_refused: Callable[[str, str], None] = staticmethod(
        lambda job, reason: log.warning("%s", reason)
    )

    @classmethod
    def dequeue_any(  # type: ignore[override]
        cls, queues: Iterable[FLQueue], timeout: int | None, **options: Any
    ) -> tuple[FLJob, FLQueue] | None:
        """
        The next good job of a queue, and the queue; None when ``timeout`` is None and it is empty.

        Raises:
            DequeueTimeout: There was none, or one that was refused: the worker beats its heart now.
        """
        (queue,) = queues
        try:
            with fail_fast():
                raw = queue._take(timeout)
        except RedisError as exc:
            if waits_for(exc):
                # Before anything is taken the worker extends its leases.
                raise DequeueTimeout(timeout, queue.key) from exc
            if not isinstance(exc, ResponseError) or classify(exc) is not None:
                raise
            if not mend(queue.connection, queue.name):
                raise
            queue.on_refused("", f"queue {queue.name}: {exc}; what was no list was removed")
            raise DequeueTimeout(timeout, queue.key) from exc
        if raw is None:
            if timeout is None:
                return None
            raise DequeueTimeout(timeout, queue.key)
        job = queue._fetched(raw)
        if job is None:
            raise DequeueTimeout(timeout, queue.key)
        return job, queue

    def _take(self, timeout: int | None) -> bytes | None:
        target = IntermediateQueue.get_intermediate_queue_key(self.key)
        if timeout is None:
            return cast("bytes | None", self.connection.lmove(self.key, target))
        return cast("bytes | None", self.connection.blmove(self.key, target, timeout))

    def _fetched(self, raw: bytes) -> FLJob | None:
        try:
            job = FLJob(raw.decode(), connection=self.connection, serializer=JSONSerializer)
            outlast(job.refresh)
            if job.origin != self.name:
                raise job.refused(f"it is one of queue {job.origin}")
            if job.get_status(refresh=False) != JobStatus.QUEUED:
                raise job.refused(f"it is {job.get_status(refresh=False).value}, not queued")
            return job
        except NoSuchJobError:  # Replaced by a new attempt, or deleted with its run.
            self._drop(raw)
        except (JobRefused, ValueError) as exc:  # ValueError: no job id.
            self._drop(raw)
            name = ascii(raw.decode(errors="replace")[:200])
            reason = str(exc) if isinstance(exc, JobRefused) else f"{name} is no job id"
            self.on_refused(name.strip("'"), reason)
        return None

    def _drop(self, raw: bytes) -> None:
        """Out of RQ's intermediate list. The hash stays: it may be one of another queue."""
        target = IntermediateQueue.get_intermediate_queue_key(self.key)
        self.connection.lrem(target, 1, cast(str, raw))

    def move_dependents_to_ready(self, job: Job, *args: Any, **kwargs: Any) -> dict[str, list[str]]:
        """Nothing of ours depends on a job."""
        return {}

    def enqueue_dependents(self, job: Job, *args: Any, **kwargs: Any) -> dict[str, list[str]]:
        """Nothing of ours depends on a job."""
        return {}


def queue(name: str, connection: Redis) -> FLQueue:
    """An RQ queue with our job class and serializer."""
    return FLQueue(name, connection=connection, job_class=FLJob, serializer=JSONSerializer)


def mend(connection: Redis, queue_name: str) -> list[str]:
    """
    Remove those of a queue's keys that are of another type than RQ's: no worker could go on with them.

    Returns:
        The keys removed.
    """
    rq_queue = queue(queue_name, connection)
    wanted = {rq_queue.key: b"list"}
    wanted[IntermediateQueue.get_intermediate_queue_key(rq_queue.key)] = b"list"
    for registry in (StartedJobRegistry, FinishedJobRegistry, FailedJobRegistry):
        wanted[registry(queue=rq_queue).key] = b"zset"
    removed = []
    for key, kind in wanted.items():
        if connection.type(key) not in (kind, b"none"):
            connection.delete(key)
            removed.append(key)
    if removed:
        log.warning("removed what was no %s", " and no ".join(removed))
    return removed
