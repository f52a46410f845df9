"""
The RQ worker of all roles: one queue, JSON, whitelisted functions, leases, no repairs.

Each job runs in a fork, but for those of the pool (``pool_worker``).

``fl-queue worker`` runs it; a plain ``rq worker`` with this class works, too: docs/reference/rq.md.
"""

from __future__ import annotations

import gc
import importlib
import logging
import mmap
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from rq.serializers import JSONSerializer
from rq.utils import now

from fl_queue.client import pausing
from fl_queue.client.revocation import end_when_revoked, warn_if_unchecked
from fl_queue.client.site import WorkerSettings
from fl_queue.common import collector, failpoints, logs, processes, state_folder, telemetry
from fl_queue.errors import ClientNameTaken, FLQueueError, TrainingLost
from fl_queue.protocol import identifiers, signing
from fl_queue.store import (
    AWAITED,
    LEASE_S,
    PAUSED,
    REDIS_ERRORS,
    Control,
    classify,
    error_log,
    fail_fast,
    keyspace,
    outlast,
    plain_client,
    queries,
    stop_waiting,
)
from fl_queue.store.jobs import rq_types
from fl_queue.store.jobs.dispatch import JobState
from fl_queue.store.jobs.rq_types import FLJob, FLQueue
from workers import EXIT_REFUSED, HELD
from workers.horse import HorseWorker

log = logging.getLogger(__name__)

#: The worker wakes this often, busy or idle, to extend its leases.
HEARTBEAT_S = 2
#: A worker that takes over waits this long for a dead predecessor's lease to run out.
TAKE_OVER_S = 8.0
LOOK_AGAIN_S = 0.2
HORSE_NICENESS = 10
#: What ``torch.optim`` and ``torch.compile`` import on first use: nine hundred modules, two seconds.
COMPILER = "torch._dynamo"
#: A horse ends itself at its job's timeout; after so much more it is killed.
OVERDUE_S = 60.0
#: Pauses between attempts to write how a job ended; after the last one the process ends.
OUTCOME_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0)


class FLWorker(HorseWorker):
    """
    RQ's forking worker with leases, by which the healer alone decides whether it lives.

    Raises:
        ClientNameTaken: On start, when another worker serves the client already.
    """

    max_connection_wait_time = 2.0

    def __init__(self, queues: Any, *args: Any, **kwargs: Any) -> None:
        self.site = WorkerSettings.from_environ()
        state_folder.enter(self.site.state_dir)  # A plain `rq worker` has no supervisor that did.
        options = {
            **kwargs,
            "job_class": FLJob,
            "queue_class": FLQueue,
            "serializer": JSONSerializer,
            "log_job_description": False,
        }
        options["name"] = options.get("name") or self.site.worker
        options["job_monitoring_interval"] = HEARTBEAT_S
        super().__init__(queues, *args, **options)
        self._control = Control(self.connection)
        for queue in cast("list[FLQueue]", self.queues):
            queue.on_refused = self._record_refused
        self._written: dict[str, str] = {PAUSED: "", AWAITED: ""}
        #: Id of the job at work, which the lease names; empty when idle.
        self._at_work = ""
        self._compiler_wanted = mmap.mmap(-1, 1)  # Shared with the horses.

    @property
    def dequeue_timeout(self) -> int:
        """Seconds that RQ waits for a job at a time."""
        return HEARTBEAT_S

    def register_birth(self) -> None:
        """Take the leases, then register."""
        waited_s = 0.0  # An outage of the control server in between is no waiting.
        while not self._extend():
            if waited_s > TAKE_OVER_S:
                raise ClientNameTaken(self.site.client, self._holder())
            time.sleep(LOOK_AGAIN_S)
            waited_s += LOOK_AGAIN_S
        if self.site.client:
            pausing.register_client(self.site)
            self._written = self._site_status()
            self._control.clients.register_worker(self.site.client, self._written)
        # RQ's sets of all workers are written by none of ours: a client could remove others from them.
        self.birth_date = self.last_heartbeat = now()
        with self.connection.pipeline() as pipe:
            pipe.delete(self.key)
            pipe.hset(self.key, mapping=self.serialize())
            pipe.expire(self.key, self.worker_ttl + 60)
            pipe.execute()

    def register_death(self) -> None:
        """Remove the worker's keys."""
        self.connection.delete(self.key, self.executions_key)

    def check_for_suspension(self, burst: bool) -> None:
        """Do nothing."""
        # RQ's global suspend key is ignored: clients have no permission to read it.
        return

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Extend the leases."""
        super().heartbeat(timeout, pipeline)
        if self._compiler_wanted[0] and not self.is_horse and not self.horse_pid:
            importlib.import_module(COMPILER)
            self._compiler_wanted[0] = 0
        if self.is_horse:
            if pipeline is not None:
                self._name_job(pipeline)
            return
        if self._extend():
            self._write_status()
            return
        # We were asleep for longer than a lease, and another worker serves our client now.
        log.error(
            "client %s is served by another worker (%s): ending", self.site.client, self._holder()
        )
        if self.horse_pid:
            self.kill_horse()
        sys.exit(EXIT_REFUSED)

    def execute_job(self, job: Any, queue: Any) -> Any:
        """Run a job in a fork, named by the lease."""
        failpoints.failpoint("job.popped")
        self._at_work = job.id
        try:
            return super().execute_job(job, queue)
        finally:
            self._at_work = ""

    def handle_job_failure(self, job: Any, *args: Any, **kwargs: Any) -> None:
        """
        Write that a job failed, and make sure of it; of its error no more than may leave a site.

        RQ would write the traceback, and where it could not write it would log that and go on: the job
        would be ``started`` for ever.

        Raises:
            RedisConnectionError: It could not be written in time; the process ends, and that is noticed.
        """
        kwargs["exc_string"] = self._outcome(job, str(kwargs.get("exc_string", "")))
        for pause_s in (*OUTCOME_PAUSES_S, 0.0):
            super().handle_job_failure(job, *args, **kwargs)
            if self._is_settled(job):
                return
            log.warning("how job %s ended is not written; trying again", job.id)
            time.sleep(pause_s)
        raise RedisConnectionError(f"how job {job.id} ended could not be written")

    def _outcome(self, job: Any, text: str) -> str:
        """Text of a job's failure for Redis. Args: ``text``: RQ's; a traceback, or a line without data."""
        error = sys.exc_info()[1]
        if isinstance(error, rq_types.TimedOut):
            return f"it exceeded its timeout of {job.timeout} s"
        if isinstance(error, TrainingLost) and error.public:
            return error.public
        if error is not None and _role(job.origin) != identifiers.AGGREGATOR:
            from fl_queue.tasks.error_disclosure import disclosed

            return disclosed(error)
        return text

    def _is_settled(self, job: Any) -> bool:
        """Whether Redis has a job as ended, or does not have it any more."""
        try:
            return self.connection.hget(job.key, "status") not in (
                JobState.started.encode(),
                JobState.queued.encode(),
            )
        except ResponseError:  # No hash: no job.
            return True
        except RedisError:
            return False

    def monitor_work_horse(self, job: Any, queue: Any, execution: Any) -> None:
        """Watch a job, its time counted by the monotonic clock."""
        # RQ measures a job's time by the wall clock: a jump of an hour would kill a healthy one.
        self._timeout_s = float(job.timeout)
        self._forked_at = time.monotonic()
        job.timeout = -1
        super().monitor_work_horse(job, queue, execution)

    def maintain_heartbeats(self, job: Any, execution: Any) -> None:
        """Extend the leases, and stop a job that is overdue or not wanted any more."""
        if self._is_overdue():
            log.error("job %s did not end at its timeout: killing it", job.id)
            self.kill_horse()
        try:
            with fail_fast():
                super().maintain_heartbeats(job, execution)
                is_pointless = self._is_pointless(job)
        except REDIS_ERRORS as exc:
            if classify(exc) is None:
                raise
            # RQ's own worker would end here, and its training with it.
            error_log.write(exc, f"job {job.id} goes on: ")
            return
        except SystemExit:
            self.kill_horse()
            raise
        if is_pointless:
            log.info("the round of job %s has ended: stopping it", job.id)
            self.kill_horse()

    def main_work_horse(self, job: Any, queue: Any) -> None:
        """Be the work-horse: a process that ends with its worker."""
        processes.die_with_parent(self.pid or 0)
        if _role(queue.name) != "aggregator":
            # On a machine that several share, training gives way to leases, merging and restarts.
            os.nice(HORSE_NICENESS)
        super().main_work_horse(job, queue)

    def perform_job(self, job: Any, queue: Any, execution: Any = None) -> bool:
        """Perform a job, and note whether it imported torch's compiler."""
        known = COMPILER in sys.modules
        done: bool = super().perform_job(job, queue, execution)
        # A task with its own optimiser or a compiled model: later horses find it loaded.
        self._compiler_wanted[0] = COMPILER in sys.modules and not known
        return done

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """False: the healer alone repairs."""
        return False

    def prepare_execution(self, job: Any) -> Any:
        """Mark a job as started; a key of a wrong type is removed first."""
        try:
            return super().prepare_execution(job)
        except ResponseError as exc:
            if classify(exc) is not None:
                raise
            # A key of another type where RQ counts what is at work: it would stop every later job.
            own = f"rq:executions:{job.id}"
            if self.connection.type(own) not in (b"zset", b"none"):
                self.connection.delete(own)
            rq_types.mend(self.connection, job.origin)
            return super().prepare_execution(job)

    def subscribe(self) -> None:
        """Do nothing."""
        # RQ's command channel lets every user of Redis stop a worker; signals and leases replace it.
        return

    def unsubscribe(self) -> None:
        """Do nothing."""
        return

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Stop, without waiting for a server."""
        stop_waiting()
        super().request_stop(signum, frame)

    def set_shutdown_requested_date(self) -> None:
        """Note the stop, if the server can be used."""
        with _if_redis_can():
            super().set_shutdown_requested_date()

    def handle_exception(self, job: Any, *exc_info: Any) -> None:
        """Handle an error of a job; an outage is only logged, and the end of its training process in one line."""
        if isinstance(exc_info[1], TrainingLost):
            log.warning("job %s: %s", job.id, exc_info[1])
        elif classify(exc_info[1]) is None:
            super().handle_exception(job, *exc_info)
        else:
            error_log.write(exc_info[1], f"job {job.id}: ")

    def teardown(self) -> None:
        """Release the leases."""
        with _if_redis_can():
            if not self.is_horse:
                self._control.leases.release(keyspace.worker(self.name), self.site.token)
                if self.site.client:
                    self._control.leases.release(
                        keyspace.client_holder(self.site.client), self.site.token, self.site.client
                    )
            super().teardown()

    def _is_overdue(self) -> bool:
        """Whether the horse has outlived the timeout that it should have seen itself."""
        longest_s = self._timeout_s + OVERDUE_S
        return self._timeout_s > 0 and time.monotonic() - self._forked_at > longest_s

    def _is_pointless(self, job: Any) -> bool:
        """Whether a client's job is not wanted any more: its round has ended."""
        if job.func_name not in rq_types.OF_A_ROUND:
            return False
        run, number = job.call()
        trains = job.func_name == rq_types.TRAIN
        return queries.has_ended(self._control, run, number, job.id.partition("_")[0], trains)

    def _record_refused(self, job: str, reason: str) -> None:
        """Record that an entry of this queue was refused: in the log, and in the events."""
        from fl_queue.protocol.events import JobRefusedEvent

        log.warning("%s", reason)
        event = JobRefusedEvent(job=job, reason=reason, by=self.name)
        try:
            with fail_fast():
                if self.site.client:
                    self._control.events.add_of_client(self.site.client, event)
                    return
                self._control.events.add(f"{job}__".split("_")[1], event)
        except REDIS_ERRORS as exc:  # Such as a key of another type: the log has it.
            log.warning("no event of job %s: %s", job, exc)

    def _site_status(self) -> dict[str, str]:
        """Facts of this site for rounds, by field of the client's hash; empty: none."""
        return {PAUSED: pausing.why_paused(self.site), AWAITED: self._awaited()}

    def _awaited(self) -> str:
        if not any(self.site.outbox.glob(f"{self.site.client}_*")):
            return ""
        # Here, as it reads updates: a worker that becomes ready at a site without any does not need it.
        from fl_queue.client import approval

        return approval.pending_as_json(self.site)

    def _write_status(self) -> None:
        """Write the site's status once it has changed: each time is a write to disk."""
        if self.site.client and (status := self._site_status()) != self._written:
            if status[PAUSED] != self._written[PAUSED]:
                log.info("client %s: %s", self.site.client, status[PAUSED] or "not paused any more")
            self._control.clients.set_status(self.site.client, status)
            self._written = status

    def _extend(self) -> bool:
        fields = {
            "process": processes.process_identity(),
            "role": _role(self.queues[0].name),
            "host": self.hostname,
            "pid": self.pid,
            "client": self.site.client,
            "job": self._at_work,
        }
        client = self.site.client
        if client and not self._control.leases.hold(
            keyspace.client_holder(client),
            self.site.token,
            LEASE_S,
            {**fields, "worker": self.name},
        ):
            return False
        return self._control.leases.hold(
            keyspace.worker(self.name), self.site.token, LEASE_S, fields
        )

    def _name_job(self, pipeline: Any) -> None:
        """
        Have the lease name the job in the transaction that makes it ``started``.

        So a started job that its worker's lease does not name has been lost; see ``dead_jobs.Watch``.
        """
        if self._at_work:
            self._control.workers.set_job(pipeline, self.name, self.site.token, self._at_work)

    def _holder(self) -> str:
        lease = self._control.leases.get(keyspace.client_holder(self.site.client))
        return (
            f"{lease.get('worker', '?')} on {lease.get('host', '?')}, pid {lease.get('pid', '?')}"
        )


@contextmanager
def _if_redis_can() -> Iterator[None]:
    """For the last writes of a worker that stops: it does not wait for a server that cannot be used."""
    try:
        with fail_fast():
            yield
    except REDIS_ERRORS as exc:
        if classify(exc) is None:
            raise
        error_log.write(exc)


def _role(queue: str) -> str:
    return {
        keyspace.AGGREGATE_QUEUE: identifiers.AGGREGATOR,
        keyspace.EVALUATE_QUEUE: identifiers.EVALUATOR,
        keyspace.POOL_QUEUE: identifiers.POOL,
    }.get(queue, "client")


def run(queue: str, kind: type[FLWorker] = FLWorker) -> int:
    """
    Serve one queue until stopped; what ``python -m workers.<role>`` does.

    Args:
        kind: How jobs are run: each in a fork, or in this process.

    Returns:
        Exit status: 0 after a warm stop, 2 when another worker serves the client, 70 when RQ gave up;
        77 (SystemExit) when the login of an enrolled site is refused for good.
    """
    collector.started()
    telemetry.let_in()
    logs.set_up_worker()
    supervisor = os.environ.get("FLQ_SITE_SUPERVISOR")
    if supervisor:
        processes.die_with_parent(int(supervisor))
    _wait_for_supervisor()
    site = WorkerSettings.from_environ()
    if site.credentials or queue == keyspace.AGGREGATE_QUEUE:
        signing.preload()
    if site.credentials:
        end_when_revoked(site)
        warn_if_unchecked(site)
    try:
        url, _ = site.urls()
        connection: Redis = plain_client(url, HEARTBEAT_S + 10, site.other_users())
        worker = outlast(lambda: _made(kind, queue, connection))
        # What is here now stays: a collection in a work-horse would copy every page it looks at.
        gc.freeze()
        worker.work(logging_level="WARNING")
    except FLQueueError as exc:
        log.error("%s", exc)
        return exc.exit_code
    # RQ returns normally from trouble it has logged; the supervisor starts us again.
    return 0 if worker._shutdown_requested_date else 70


def _wait_for_supervisor() -> None:
    """Wait until the supervisor has seen the servers; end where it has ended instead."""
    if held := os.environ.pop(HELD, ""):
        is_told = os.read(int(held), 1)
        os.close(int(held))
        if not is_told:
            sys.exit(EXIT_REFUSED)


def _made(kind: type[FLWorker], queue: str, connection: Redis) -> FLWorker:
    with fail_fast():  # RQ reads the connection's own address, and can do without it.
        return kind([queue], connection=connection)
