"""
What distrust costs: ``python -m benchmarks.cases.security_overhead [--quick]``.

Two federations at a time, with the same kind of servers on TCP loopback: one plain, and one with
mutual TLS, a Redis user for each client, signed updates and enrolment required. They take turns, a
few rounds each, so that other work on the machine meets both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import redis

from benchmarks.harness.federation import Federation, servers
from benchmarks.harness.table import markdown, median, spread
from fl_queue.client.site import WorkerSettings
from fl_queue.coordinator.aggregator.authentication import MessageAuthenticator
from fl_queue.coordinator.operations import enrolment
from fl_queue.coordinator.operations.enrolment import RedisEndpoints
from fl_queue.protocol import message, signing
from fl_queue.protocol.records import Enrolment
from fl_queue.store import Store, credentials
from fl_queue.store.bulk_transfer import read_values, write_values
from tests.support.manual_run import ManualRun
from tests.support.tls_servers import Authority, TLSServer, tls_servers, url

CLIENTS = 4
SIZES = (200_000, 1_660_000, 25_000_000)
PASSWORD = "for-benchmarks"
CHUNK_BYTES = 4_190_208
HEAD = ("parameters", "plain: round s", "secured: round s", "ratio of medians")


class Secured(Federation):
    """A federation whose parties do not trust each other."""

    def _start_servers(self) -> None:
        authority = Authority(self.state_dir / "ca")
        self._running = tls_servers(self.state_dir / "servers", authority, PASSWORD)
        control, data = self._running.__enter__()
        own = authority.issue("operator")
        self.url, self.blob_url = (
            url(server, PASSWORD, authority.cert, own) for server in (control, data)
        )
        with Store(self.url, self.blob_url) as store:
            for number in range(self.clients):
                self._enroll(store, authority, f"site-{number + 1}")

    def _enroll(self, store: Store, authority: Authority, client: str) -> None:
        own = authority.issue(client)
        parts = {"ca": authority.cert, "certificate": own.cert, "key": own.key}
        tls = {part: path.read_text() for part, path in parts.items()}
        made = enrolment.enroll(
            store, client, RedisEndpoints(self.url, self.blob_url, tls), 0, use_acl=True
        )
        credentials.write(self._file(client), made.credentials)

    def _file(self, client: str) -> Path:
        return self.state_dir / f"{client}.toml"

    def _stop_servers(self) -> None:
        self._running.__exit__(None, None, None)

    def _site(self, client: str, folder: Path) -> WorkerSettings:
        plain = super()._site(client, folder)
        if not client:
            return plain
        return replace(plain, url="", blob_url="", credentials=str(self._file(client)))


def rounds_table(sizes: tuple[int, ...], turns: int) -> str:
    """Whole rounds of both, and what one takes of the other."""
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
    """Of a call, median and range of so many after a first one."""
    call()
    found = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        found.append(1000 * (time.perf_counter() - began))
    return spread(found)


def opened_anew(where: str) -> None:
    """A connection as redis-py makes it."""
    with redis.Redis.from_url(where) as client:
        client.ping()


def opened(where: str) -> None:
    """A connection as ours are made."""
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
def both_servers() -> Iterator[tuple[str, str]]:
    """URLs of a plain data server and of one with mutual TLS."""
    with servers(tcp=True) as plain, tempfile.TemporaryDirectory(prefix="flq-bench-") as folder:
        authority = Authority(Path(folder) / "ca")
        server = TLSServer(Path(folder) / "server", authority, PASSWORD)
        server.start()
        try:
            yield plain.blob_url, url(server, PASSWORD, authority.cert, authority.issue("me"))
        finally:
            server.kill()


def parts_table(nbytes: int, count: int) -> str:
    """Connections, throughput, signing and verifying."""
    with both_servers() as (plain, secured):
        rows = [
            ["a connection, TCP", f"{milliseconds(lambda: opened(plain), count)} ms"],
            ["a connection, mutual TLS", f"{milliseconds(lambda: opened(secured), count)} ms"],
            [
                "the same, all certificates read each time (redis-py)",
                f"{milliseconds(lambda: opened_anew(secured), count)} ms",
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
    with signed_run(10) as hand:
        element = element_of(hand, "a")
        sealed = hand.seal("a", element)
        gate = MessageAuthenticator(hand.store.control, hand.run, required=True)
        rows.append(["sign", f"{milliseconds(lambda: hand.seal('a', element), count)} ms"])
        rows.append(
            ["verify, the key asked for", f"{milliseconds(lambda: gate.open(sealed), count)} ms"]
        )
    return rows


# What is refused


@contextmanager
def signed_run(size: int) -> Iterator[ManualRun]:
    """A run of two enrolled clients, round 1 open, that the caller works on step by step."""
    pairs = {client: signing.new_key() for client in "ab"}
    keys = {client: secret for client, (secret, _) in pairs.items()}
    with (
        servers() as private,
        tempfile.TemporaryDirectory(prefix="flq-bench-") as folder,
        Store.open(private.url, private.blob_url, Path(folder)) as store,
    ):
        for client, (_, public) in pairs.items():
            store.control.enrolments.write(client, Enrolment(public))
        required = "security.require_enrolment=true"
        yield ManualRun(store, Path(folder), "ab", size, required, keys=keys)


def element_of(hand: ManualRun, client: str, /, **changes: object) -> bytes:
    """An update as it travels in one element, not signed."""
    body = hand.body(client)
    return message.pack(replace(hand.header("update", client, body), **changes), body)  # type: ignore[arg-type]


def refused(hand: ManualRun) -> dict[str, bytes]:
    """What is no update of a, in a's name; and one that is, for comparison."""
    plain = element_of(hand, "a")
    return {
        "unsigned": plain,
        "signed by another client": signing.seal(plain, "b", hand.keys["b"]),
        "signed again, with another key": signing.seal(plain, "a", hand.keys["b"]),
        "replayed from another run": hand.seal("a", element_of(hand, "a", run="other-123456")),
        "replayed from an earlier round": hand.seal("a", element_of(hand, "a", round=0)),
        "of a later round": hand.seal("a", element_of(hand, "a", round=9)),
        "of an unknown client": signing.seal(
            element_of(hand, "a", client="z"), "z", signing.new_key()[0]
        ),
    }


def refusals_table(parameters: int, count: int) -> str:
    """Time of the aggregator for each, beside that of moving as many bytes."""
    rows = []
    with signed_run(parameters) as hand:
        intake = hand.intake()
        elements = refused(hand)
        for name, element in elements.items():
            took, looked, busy = [], [], []
            for _ in range(count):
                hand.store.data.results.push(hand.run, element)
                began = time.perf_counter()
                [taken] = hand.store.data.taken.take(
                    hand.run, intake.incarnation.fence, intake.incarnation.token
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
