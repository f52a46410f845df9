"""RQ workers by their leases on the control server: which live, and the job that each is at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from redis.client import Pipeline

from fl_queue.protocol import identifiers
from fl_queue.store import keyspace
from fl_queue.store.batching import ask_many
from fl_queue.store.control.leases import JOB, LEASE_FIELDS, LEASE_S, is_held
from fl_queue.store.control.server import ControlServer, printable_fields

#: Job of a worker whose lease has no such field. No job is called so.
UNNAMED = "?"
#: Workers of one client that are listed; one serves it, and others have just ended.
_WORKERS_EACH = 4
#: Keys looked at in one call of SCAN.
SCANNED = 5000


class Workers:
    """
    Reads of workers, and the job in their leases.

    Args:
        server: The control server.
    """

    def __init__(self, server: ControlServer) -> None:
        self._redis = server.redis

    def is_alive(self, worker: str) -> bool:
        """Whether an RQ worker's lease lives, and its process as far as one can see."""
        return is_held(self.leases([worker])[worker])

    def set_job(self, pipe: Pipeline, worker: str, token: str, job: str) -> None:
        """Have a worker's lease name the job at work, as part of a transaction. Args: ``token``: its own."""
        key = keyspace.worker(worker)
        pipe.hset(key, mapping={"token": token, JOB: job})
        pipe.pexpire(key, int(LEASE_S * 1000))

    def job_of(self, worker: str) -> str | None:
        """
        Id of a living worker's current job by its lease, empty when it is idle.

        Returns:
            None: the worker is dead. ``UNNAMED``: its lease names no jobs, as those of earlier releases.
        """
        return self.jobs_of([worker])[worker]

    def jobs_of(self, workers: Iterable[str]) -> dict[str, str | None]:
        """RQ worker -> the same of it."""
        return {
            worker: lease.get(JOB, UNNAMED) if is_held(lease) else None
            for worker, lease in self.leases(workers).items()
        }

    def leases(self, workers: Iterable[str]) -> dict[str, dict[str, str]]:
        """RQ worker -> its lease; empty when it has none."""
        asked = sorted(set(workers))
        # One command each: the healer reads the leases of all clients in training once a second.
        found = ask_many(
            self._redis, asked, lambda pipe, name: pipe.hmget(keyspace.worker(name), LEASE_FIELDS)
        )
        return {
            worker: printable_fields(dict(zip(LEASE_FIELDS, raw, strict=True)))
            for worker, raw in zip(asked, found, strict=True)
        }

    def is_role_alive(self, role: str) -> bool:
        """Whether a worker of a role (``aggregator``, ``evaluator``, ``client``) is alive."""
        # As supervisors name theirs, and those that RQ's own command starts: no client may write these keys.
        usual = self._workers_like(f"{role}[-_]*") + self._workers_like("_*")
        if any(worker["role"] == role for worker in self._living(usual)):
            return True
        return any(worker["role"] == role for worker in self.living())

    def living(self) -> list[dict[str, str]]:
        """The leases of all living RQ workers (role, host, pid, client, ...); of each client a few at most."""
        return self._living(self._workers_like("*"))

    def _workers_like(self, pattern: str) -> list[str]:
        """Names of workers that have a lease, sorted; of each client a few at most."""
        found: set[str] = set()
        listed: Counter[str] = Counter()
        for key in self._redis.scan_iter(match=keyspace.worker(pattern), count=SCANNED):
            name = key.decode(errors="replace").removeprefix(keyspace.worker(""))
            whose, separator, _ = name.partition("_")
            if name not in found and not (separator and whose and listed[whose] >= _WORKERS_EACH):
                found.add(name)
                listed[whose] += 1
        return sorted(found)

    def _living(self, workers: Iterable[str]) -> list[dict[str, str]]:
        found = [_as_worker(name, lease) for name, lease in self.leases(workers).items()]
        return [worker for worker in found if "role" in worker and is_held(worker)]


def _as_worker(name: str, lease: Mapping[str, str]) -> dict[str, str]:
    fields = dict(lease) | {"name": name}
    whose, separator, _ = name.partition("_")
    if "role" in fields and separator and whose and whose not in identifiers.RESERVED:
        # That client can write this lease, so it counts as a client's, whatever its role field contains.
        fields |= {"role": "client", "client": whose}
    return fields
