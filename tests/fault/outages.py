"""
What a federation does while a Redis server answers that it cannot serve, and how soon it goes on after.

``python -m tests.fault.outages`` walks the whole matrix and prints the seconds of each cell: reply x
server x moment x kind of fleet. Each cell is a round of one run; the versions of all must be those of an
undisturbed run.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

import redis
from rich.console import Console
from rich.table import Table

from fl_queue.config import loading
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.errors import StoreUnavailable
from fl_queue.store.embedded.redis_server import Role
from fl_queue.store.embedded.server_pair import EmbeddedRedis, start
from tests.support.answering_proxy import Answering
from tests.support.checkout import ROOT
from tests.support.federation import Federation, wait_for
from tests.support.server_binaries import chosen_server

Kind = Literal["sites", "pool"]
Moment = Literal["training", "push", "commit", "idle"]
MOMENTS: tuple[Moment, ...] = ("training", "push", "commit", "idle")
#: Where the process is stopped until the outage has begun.
_POINTS = {"push": "outbox.written", "commit": "checkpoint.written"}
#: Trains once the gate of its round is open, and leaves a line for each training.
TASK = """
import os
import time
from pathlib import Path
from fl_queue.tasks.mnist import ThreesAndSevens

class Gated(ThreesAndSevens):
    def train(self, model, data, context, on_epoch):
        folder = Path(os.environ["GATES"])
        with (folder / "trainings").open("a") as file:
            file.write(f"{context.run} {context.round} {context.client}\\n")
        while not ((folder / "open").exists() or (folder / f"{context.run}-{context.round}").exists()):
            time.sleep(0.05)
        return super().train(model, data, context, on_epoch)
"""
ONE_EACH = (
    *("run.task=gated:Gated", "round.cohort=1.0", "train.epochs=2", "round.deadline_s=900"),
    *("run.preflight=off", "train.timeout_s=900"),
)
KINDS: dict[Kind, tuple[str, ...]] = {
    "sites": ONE_EACH,
    "pool": (*ONE_EACH, "clients.kind=simulation", "clients.count=2", "clients.processes=1"),
}


class Outage:
    """Brings one reply about, on one server, and undoes it."""

    def __init__(self, fleet: Fleet, role: Role) -> None:
        self.fleet, self.role = fleet, role
        self.redis = fleet.redis
        url = self.redis.url if role == "control" else self.redis.blob_url
        self.path = unquote(urlsplit(url).path)

    def connect(self) -> redis.Redis:
        """As an operator whom no ACL holds back."""
        return redis.Redis(
            unix_socket_path=self.path, username="operator", password="x", socket_timeout=60
        )

    @contextmanager
    def of(self, reply: str) -> Iterator[None]:
        """While this lasts the server answers so."""
        make = getattr(self, f"_{reply}", None)
        with ExitStack() as undo:
            if make is None:
                proxy = self.fleet.proxies[self.role]
                proxy.answer = ANSWERS[reply]
                undo.callback(setattr, proxy, "answer", "")
            else:
                undo.enter_context(make())
            yield

    @contextmanager
    def _settings(self, *changed: tuple[str, object, object]) -> Iterator[redis.Redis]:
        operator = self.connect()
        for name, value, _ in changed:
            operator.config_set(name, value)  # type: ignore[arg-type]
        try:
            yield operator
        finally:
            for name, _, value in changed:
                operator.config_set(name, value)  # type: ignore[arg-type]
            operator.close()

    @contextmanager
    def _NOREPLICAS(self) -> Iterator[None]:
        with self._settings(("min-replicas-to-write", 1, 0)):
            yield

    @contextmanager
    def _OOM(self) -> Iterator[None]:
        with self._settings(("maxmemory", 1, 0)):
            yield

    @contextmanager
    def _READONLY(self) -> Iterator[None]:
        operator = self.connect()
        operator.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            yield
        finally:
            operator.execute_command("REPLICAOF", "NO", "ONE")
            operator.close()

    @contextmanager
    def _MASTERDOWN(self) -> Iterator[None]:
        with self._settings(("replica-serve-stale-data", "no", "yes")), self._READONLY():
            yield

    @contextmanager
    def _MISCONF(self) -> Iterator[None]:
        # A folder where the snapshot should be: as with a full disk, it cannot be written.
        with self.connect() as operator:
            folder = Path(operator.config_get("dir")["dir"])
        snapshot = folder / "dump.rdb"
        snapshot.unlink(missing_ok=True)
        (snapshot / "x").mkdir(parents=True)
        with self._settings(("save", "3600 1", "")) as operator:
            _snapshot(operator, "err")
            try:
                yield
            finally:
                (snapshot / "x").rmdir()
                snapshot.rmdir()
                _snapshot(operator, "ok")

    @contextmanager
    def _BUSY(self) -> Iterator[None]:
        def spin() -> None:
            with suppress(redis.RedisError), self.connect() as client:
                client.eval("while true do end", 0)

        with self._settings(("lua-time-limit", 50, 5000)) as operator:
            thread = threading.Thread(target=spin)
            thread.start()
            try:
                yield
            finally:
                wait_for("the script to be killed", lambda: _killed(operator))
                thread.join()

    @contextmanager
    def _MAXCLIENTS(self) -> Iterator[None]:
        with self._settings(("maxclients", 1, 10000)) as operator:
            operator.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            yield

    @contextmanager
    def _NOPERM(self) -> Iterator[None]:
        with self.connect() as operator:
            operator.execute_command("ACL", "SETUSER", "default", "-@all", "+ping")
            try:
                yield
            finally:
                operator.execute_command("ACL", "SETUSER", "default", "+@all")

    @contextmanager
    def _restart(self) -> Iterator[None]:
        self.redis.kill(self.role)
        try:
            yield
        finally:
            self.redis.restart(self.role)
            self.fleet.introduce_operator(self.role)


#: Replies for which a proxy stands in.
ANSWERS = {
    "LOADING": "LOADING Redis is loading the dataset in memory",
    "TOMORROW": "TOMORROW A word that no server of today knows",
}
REPLIES = (
    *("MISCONF", "NOREPLICAS", "READONLY", "MASTERDOWN", "OOM", "BUSY", "MAXCLIENTS", "NOPERM"),
    *("LOADING", "TOMORROW", "restart"),
)


def _snapshot(operator: redis.Redis, outcome: str) -> None:
    def done() -> bool:
        with suppress(redis.ResponseError):  # One is under way.
            operator.bgsave()
        return operator.info("persistence")["rdb_last_bgsave_status"] == outcome

    wait_for(f"a snapshot that ends {outcome}", done)


def _killed(operator: redis.Redis) -> bool:
    try:
        operator.execute_command("SCRIPT", "KILL")
    except redis.ResponseError as exc:
        return "NOTBUSY" in str(exc)
    return False


@dataclass(frozen=True)
class Cell:
    """One outage: which reply of which server, at which moment."""

    reply: str
    role: Role
    moment: Moment


class Fleet:
    """A federation that reaches its servers through proxies. Args: ``kind``: who trains."""

    def __init__(self, folder: Path, kind: Kind, redis: EmbeddedRedis) -> None:
        self.kind, self.redis, self.folder = kind, redis, folder
        (folder / "gated.py").write_text(TASK)
        self._stack = ExitStack()
        urls: dict[Role, str] = {"control": redis.url, "data": redis.blob_url}
        self.proxies = {
            role: self._stack.enter_context(Answering(url)) for role, url in urls.items()
        }
        for role in urls:
            self.introduce_operator(role)
        environment = {
            "PYTHONPATH": f"{folder}:{ROOT}",
            "GATES": str(folder),
            "FLQ_REDIS_URL": self.proxies["control"].url,
            "FLQ_REDIS_BLOB_URL": self.proxies["data"].url,
        }
        count = 1 if kind == "sites" else 0
        self.federation = Federation(redis, folder, count, environment, "gated:Gated")
        self._stack.callback(self.federation.close)
        if kind == "pool":
            self.federation.start("pool", "--processes", "1")
            wait_for(
                "the pool", lambda: len(self.federation.store.control.workers.living()) == 3, 120
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def introduce_operator(self, role: Role) -> None:
        """A user whom no outage touches."""
        url = self.redis.url if role == "control" else self.redis.blob_url
        with redis.Redis.from_url(url) as client:
            client.execute_command("ACL", "SETUSER", "operator", "on", ">x", "~*", "&*", "+@all")

    def begin(self, name: str, count: int) -> str:
        """Start a run of so many rounds; its id."""
        loaded = loading.load("mnist-3v7", (*KINDS[self.kind], f"run.rounds={count}"))
        state = runs.start_run(self.federation.store, name, loaded, count)
        lifecycle.advance(self.federation.store, state.run_id)
        return state.run_id

    def calm(self, name: str, count: int) -> list[str]:
        """Digests of an undisturbed run; its name is free again."""
        opened = self.folder / "open"
        opened.touch()
        run = self.begin(name, count)
        assert self.federation.finish(run, 300).state == "completed"
        opened.unlink()
        (self.folder / "trainings").unlink()
        return self.federation.free(run)

    def trainings(self) -> list[str]:
        """``<run> <round> <client>`` of each training that was begun."""
        file = self.folder / "trainings"
        return file.read_text().splitlines() if file.exists() else []

    def open_gate(self, name: str, number: int) -> None:
        """Have the trainings of a round go on."""
        (self.folder / f"{name}-{number}").touch()

    def pids(self) -> dict[str, tuple[int, int]]:
        """Name -> pid of supervisor and worker."""
        return {
            name: (process.pid, self.federation.worker_pid(name))
            for name, process in self.federation.processes.items()
            if process.poll() is None
        }

    def restarts(self) -> list[str]:
        """What supervisors logged of workers that ended."""
        return [
            f"{log.name}: {line}"
            for log in sorted(self.folder.glob("*.log"))
            for line in log.read_text().splitlines()
            if "starting it again" in line
        ]

    def tracebacks(self) -> list[str]:
        """What the processes logged that is no line."""
        return [
            f"{log.name}: {line}"
            for log in sorted(self.folder.glob("*.log"))
            for line in log.read_text().splitlines()
            if "Traceback" in line or "unhandled exception" in line
        ]


class Walk:
    """One run through all cells of a fleet, a round each. Args: ``hold_s``: how long each outage lasts."""

    def __init__(
        self, fleet: Fleet, cells: Sequence[Cell], hold_s: float, name: str = "walk"
    ) -> None:
        self.fleet, self.hold_s, self.name = fleet, hold_s, name
        self.cells = [cell for cell in cells if cell.moment != "idle"]
        self.idle = [cell for cell in cells if cell.moment == "idle"]
        self.seconds: dict[Cell, float] = {}

    def run(self) -> None:
        """
        Walk them; ``seconds`` then has for each cell how soon after its outage work went on.

        Raises:
            AssertionError: Something was lost, done twice, or ended.
        """
        fleet = self.fleet
        expected = fleet.calm(self.name, max(1, len(self.cells)))
        before = fleet.pids()
        for number, cell in enumerate(self.idle, 1):
            self.seconds[cell] = self._while_idle(cell, f"idle-{number}")
        if self.cells:
            run = fleet.begin(self.name, len(self.cells))
            for number, cell in enumerate(self.cells, 1):
                self.seconds[cell] = self._in_round(cell, run, number)
            state = fleet.federation.finish(run, 120)
            assert state.state == "completed", state.reason
            assert fleet.federation.free(run) == expected
        assert fleet.pids() == before, f"{before} before, {fleet.pids()} now; {fleet.restarts()}"
        begun = fleet.trainings()
        assert len(begun) == len(set(begun)), begun
        assert fleet.tracebacks() == []

    def _in_round(self, cell: Cell, run: str, number: int) -> float:
        fleet = self.fleet
        wait_for(f"the training of round {number}", lambda: self._begun(number))
        point = _POINTS.get(cell.moment)
        stopped = 0
        if point is not None:
            fired = fleet.federation.arm(point, "stop")
            fleet.open_gate(self.name, number)
            wait_for(point, fired.exists)
            stopped = int(fired.read_text())
        with Outage(fleet, cell.role).of(cell.reply):
            if stopped:
                os.kill(stopped, signal.SIGCONT)
            time.sleep(self.hold_s)
        fleet.open_gate(self.name, number)
        return _seconds(lambda: number in fleet.federation.store.control.versions.all(run))

    def _begun(self, number: int) -> bool:
        lines = [line.split() for line in self.fleet.trainings()]
        return any(line[:2] == [self.name, str(number)] for line in lines)

    def _while_idle(self, cell: Cell, name: str) -> float:
        fleet = self.fleet
        fleet.open_gate(name, 1)
        with Outage(fleet, cell.role).of(cell.reply):
            time.sleep(self.hold_s)
        began = time.monotonic()
        run = wait_for("the run to begin", lambda: _calmly(lambda: fleet.begin(name, 1)))
        _seconds(lambda: 0 in fleet.federation.store.control.versions.all(run))
        seconds = time.monotonic() - began
        assert fleet.federation.finish(run, 120).state == "completed"
        return seconds


def _seconds(sign: Callable[[], bool]) -> float:
    began = time.monotonic()
    wait_for("work to go on", lambda: _calmly(sign), 180)
    return time.monotonic() - began


def _calmly(ask: Callable[[], object]) -> object:
    try:
        return ask()
    except StoreUnavailable:
        return None


@contextmanager
def fleet_of(folder: Path, kind: Kind) -> Iterator[Fleet]:
    """A fleet on servers of its own."""
    with (
        start(folder / "state", server=chosen_server()) as servers,
        Fleet(folder, kind, servers) as made,
    ):
        yield made


def cells(
    replies: Sequence[str],
    roles: Sequence[Role] = ("control", "data"),
    moments: Sequence[Moment] = MOMENTS,
) -> list[Cell]:
    """All of a product."""
    return [Cell(*cell) for cell in ((a, b, c) for a in replies for b in roles for c in moments)]


def main() -> int:
    """Walk the matrix and print how soon each cell went on."""
    parser = argparse.ArgumentParser(prog="tests.fault.outages", description=__doc__)
    parser.add_argument("--hold", type=float, default=5.0, help="seconds that each outage lasts")
    parser.add_argument("--replies", default=",".join(REPLIES))
    parser.add_argument("--roles", default="control,data")
    parser.add_argument("--moments", default=",".join(MOMENTS))
    parser.add_argument("--kinds", default="sites,pool")
    given = parser.parse_args()
    wanted = cells(given.replies.split(","), given.roles.split(","), given.moments.split(","))
    for kind in given.kinds.split(","):
        with (
            tempfile.TemporaryDirectory(prefix="flq-out-") as folder,
            fleet_of(Path(folder), kind) as fleet,
        ):
            walk = Walk(fleet, wanted, given.hold)
            try:
                walk.run()
            finally:
                Console(width=100).print(table(kind, walk))
    return 0


def table(kind: str, walk: Walk) -> Table:
    """Seconds from the end of an outage to the next sign of work."""
    made = Table(
        "reply", "server", *MOMENTS, title=f"{kind}: {walk.hold_s:g} s each, seconds to go on"
    )
    for reply, role in dict.fromkeys((cell.reply, cell.role) for cell in walk.seconds):
        row = [walk.seconds.get(Cell(reply, role, moment)) for moment in MOMENTS]
        made.add_row(reply, role, *("" if cell is None else f"{cell:.1f}" for cell in row))
    return made


if __name__ == "__main__":
    sys.exit(main())
