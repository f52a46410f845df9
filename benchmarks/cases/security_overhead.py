"""
Cost of TLS, Redis users and signed updates: ``python -m benchmarks.cases.security_overhead [--quick]``.

Two federations at a time, with the same kind of servers on TCP loopback: one plain, and one with
mutual TLS, a Redis user for each client, signed updates and enrolment required. They take turns, a
few rounds each, so that other work on the machine meets both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import redis

from benchmarks.harness.federation import Federation, servers
from benchmarks.harness.open_round import SignedRound, signed_round
from benchmarks.harness.table import markdown, median, spread
from benchmarks.harness.tls_servers import Authority, tls_server, url
from fl_queue.client.site import WorkerSettings
from fl_queue.coordinator.aggregator.authentication import MessageAuthenticator
from fl_queue.coordinator.operations import enrolment
from fl_queue.coordinator.operations.enrolment import RedisEndpoints
from fl_queue.protocol import signing
from fl_queue.store import Store, credentials
from fl_queue.store.bulk_transfer import read_values, write_values

CLIENTS = 4
SIZES = (200_000, 1_660_000, 25_000_000)
PASSWORD = "for-benchmarks"
CHUNK_BYTES = 4_190_208
HEAD = ("parameters", "plain: round s", "secured: round s", "ratio of medians")


class Secured(Federation):
    """A federation with mutual TLS, a Redis user for each client, and enrolment."""

    def _start_servers(self) -> None:
        authority = Authority(self.state_dir / "ca")
        own = authority.issue("operator")
        with ExitStack() as running:
            urls = []
            for role in ("control", "data"):
                server = tls_server(
                    self.state_dir / role, authority, PASSWORD, durable=role == "control"
                )
                urls.append(url(running.enter_context(server), PASSWORD, authority, own))
            self.url, self.blob_url = urls
            with Store(self.url, self.blob_url) as store:
                for number in range(self.clients):
                    self._enroll(store, authority, f"site-{number + 1}")
            self._running = running.pop_all()

    def _enroll(self, store: Store, authority: Authority, client: str) -> None:
        own = authority.issue(client)
        parts = {"ca": authority.certificate, "certificate": own.certificate, "key": own.key}
        tls = {part: path.read_text() for part, path in parts.items()}
        made = enrolment.enroll(
            store, client, RedisEndpoints(self.url, self.blob_url, tls), 0, use_acl=True
        )
        credentials.write(self._file(client), made.credentials)

    def _file(self, client: str) -> Path:
        return self.state_dir / f"{client}.toml"

    def _stop_servers(self) -> None:
        self._running.close()

    def _site(self, client: str, folder: Path) -> WorkerSettings:
        plain = super()._site(client, folder)
        if not client:
            return plain
        return replace(plain, url="", blob_url="", credentials=str(self._file(client)))


def rounds_table(sizes: tuple[int, ...], turns: int) -> str:
    """Duration of rounds on both federations, and the ratio."""
    sides = {
        "plain": (Federation(CLIENTS, tcp=True), ()),
        "secured": (Secured(CLIENTS), ("security.require_enrolment=true",)),
    }
    found: dict[tuple[int, str], list[float]] = {}
    with sides["plain"][0], sides["secured"][0]:
        for size in sizes:
            for turn in range(turns):
                for side, (federation, overrides) in sides.items():
                    run = federation.begin(
                        f"{side}-{size}-{turn}",
                        7 if size < 10_000_000 else 3,
                        f"task.parameters={size}",
                        *overrides,
                    )
                    periods = [timing.period for timing in federation.finish(run)]
                    found.setdefault((size, side), []).extend(periods)
                    federation.store.data.redis.flushall()
    rows = []
    for size in sizes:
        plain, secured = found[size, "plain"], found[size, "secured"]
        ratio = f"{median(secured) / median(plain):.2f}"
        rows.append([f"{size / 1e6:g} M", spread(plain), spread(secured), ratio])
    return markdown(HEAD, rows)


# Each part by itself


def milliseconds(call: Callable[[], object], count: int) -> str:
    """Median and range of the duration of a call, after one that warms up."""
    call()
    found = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        found.append(1000 * (time.perf_counter() - began))
    return spread(found)


def connect_by_redis_py(where: str) -> None:
    """Connect as redis-py does."""
    with redis.Redis.from_url(where) as client:
        client.ping()


def connect(where: str) -> None:
    """Connect as fl-queue does."""
    with Store(where, where) as store:
        store.control.redis.ping()


def moved(store: Store, nbytes: int) -> tuple[float, float]:
    """GB/s of writing chunks to a server, and of reading them."""
    piece = memoryview(bytearray(CHUNK_BYTES))
    keys = [f"flq:chunk:bench:{index}" for index in range(max(1, nbytes // CHUNK_BYTES))]
    began = time.perf_counter()
    write_values(store.data.redis, ((key, piece) for key in keys), 60)
    written = time.perf_counter()
    for _ in read_values(store.data.redis, ((key, piece) for key in keys)):
        pass
    read = time.perf_counter()
    size = len(keys) * CHUNK_BYTES / 1e9
    return size / (written - began), size / (read - written)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="flq-bench-") as folder:
        yield Path(folder)


@contextmanager
def both_servers() -> Iterator[tuple[str, str]]:
    """URLs of a plain data server and of one with mutual TLS."""
    with servers(tcp=True) as plain, temporary_folder() as folder:
        authority = Authority(folder / "ca")
        with tls_server(folder / "server", authority, PASSWORD) as port:
            yield plain.blob_url, url(port, PASSWORD, authority, authority.issue("operator"))


def parts_table(nbytes: int, count: int) -> str:
    """Connections, throughput, signing and verifying."""
    with both_servers() as (plain, secured):
        rows = [
            ["a connection, TCP", f"{milliseconds(lambda: connect(plain), count)} ms"],
            ["a connection, mutual TLS", f"{milliseconds(lambda: connect(secured), count)} ms"],
            [
                "the same, all certificates read each time (redis-py)",
                f"{milliseconds(lambda: connect_by_redis_py(secured), count)} ms",
            ],
        ]
        for name, where in (("TCP", plain), ("TLS", secured)):
            with Store(where, where) as store:
                rates = [moved(store, nbytes) for _ in range(3)]
            for what, index in (("written", 0), ("read", 1)):
                rows.append(
                    [f"chunks {what}, {name}", f"{spread([r[index] for r in rates], 2)} GB/s"]
                )
    return markdown(("part", "median (least-most)"), [*rows, *_signature_rows(count)])


def _signature_rows(count: int) -> list[list[str]]:
    rows = []
    with temporary_folder() as folder, signed_round(folder, 10) as current:
        element = current.element("a")
        sealed = current.seal("a", element)
        gate = MessageAuthenticator(current.store.control, current.run, required=True)
        rows.append(["sign", f"{milliseconds(lambda: current.seal('a', element), count)} ms"])
        rows.append(
            ["verify, the key asked for", f"{milliseconds(lambda: gate.open(sealed), count)} ms"]
        )
    return rows


# Rejected elements


def refused(current: SignedRound) -> dict[str, bytes]:
    """Elements in the name of client a that the aggregator rejects, by the reason."""
    plain = current.element("a")
    return {
        "unsigned": plain,
        "signed by another client": signing.seal(plain, "b", current.keys["b"]),
        "signed again, with another key": signing.seal(plain, "a", current.keys["b"]),
        "replayed from another run": current.seal("a", current.element("a", run="other-123456")),
        "replayed from an earlier round": current.seal("a", current.element("a", round=0)),
        "of a later round": current.seal("a", current.element("a", round=9)),
        "of an unknown client": signing.seal(
            current.element("a", client="z"), "z", signing.new_key()[0]
        ),
    }


def refusals_table(parameters: int, count: int) -> str:
    """Time of the aggregator to reject each, beside the time to read as many bytes."""
    rows = []
    with temporary_folder() as folder, signed_round(folder, parameters) as current:
        intake = current.intake()
        elements = refused(current)
        for name, element in elements.items():
            took, looked, busy = [], [], []
            for _ in range(count):
                current.store.data.results.push(current.run, element)
                began = time.perf_counter()
                [taken] = current.store.data.taken.take(
                    current.run, intake.incarnation.fence, intake.incarnation.token
                )
                arrived = time.perf_counter()
                before = time.thread_time()
                intake.process(taken)
                looked.append(1000 * (time.perf_counter() - arrived))
                busy.append(1000 * (time.thread_time() - before))
                took.append(1000 * (arrived - began))
            rows.append([name, spread(looked), spread(busy), spread(took)])
        assert intake.received() == 0
    size = len(elements["unsigned"]) / 1e6
    head = (f"an element of {size:.2g} MB, ms", "to reject it", "of the processor", "to take it")
    return markdown(head, rows)


def report(quick: bool = False) -> str:
    """All tables."""
    sizes, turns = (SIZES[:1], 1) if quick else (SIZES, 3)
    whole = rounds_table(sizes, turns)
    parts = parts_table(20_000_000 if quick else 400_000_000, 5 if quick else 30)
    refusals = refusals_table(25_000 if quick else 250_000, 5 if quick else 50)
    return (
        f"Whole rounds of {CLIENTS} clients, taking turns; secured: mutual TLS, a Redis user for "
        f"each client, signed updates, enrolment required:\n\n{whole}\nEach part:\n\n{parts}\n"
        f"What the aggregator spends on what is not from an enrolled client:\n\n{refusals}"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model, few rounds")
    print(report(parser.parse_args().quick))


if __name__ == "__main__":
    main()
