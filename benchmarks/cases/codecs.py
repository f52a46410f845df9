"""
Codecs: ``python -m benchmarks.cases.codecs [--quick] [--data FOLDER]``.

Accuracy after 20 rounds of MNIST 2NN, ten of a hundred virtual clients, for each pair of codecs. And two
clients, each behind a link of its own of 20 Mbit/s in either direction: bytes that really pass, and seconds
a round, with a training that costs nothing, for a model of that size and one eight times as large.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from benchmarks.harness.federation import ROOT, Federation, servers
from benchmarks.harness.table import markdown, spread
from fl_queue.client.site import WorkerSettings
from fl_queue.common.own_modules import python_command
from fl_queue.models import selection
from fl_queue.store import Store

CONFIG = ROOT / "config" / "mnist-2nn-100.toml"
#: Of MNIST 2NN, and of the convolutional network of the same paper.
PARAMETERS, LARGER = 199_210, 1_663_370
BYTES_PER_S = 20e6 / 8
#: (what clients send, with top-k's fraction and error feedback; what they fetch)
PAIRS = [
    ("float32", "float32"),
    ("bfloat16", "float32"),
    ("int8", "float32"),
    ("float32", "bfloat16"),
    ("bfloat16", "bfloat16"),
    ("int8", "bfloat16"),
    ("topk 0.01", "float32"),
    ("topk 0.01 feedback", "float32"),
    ("topk 0.1 feedback", "float32"),
]
SOME = [PAIRS[0], PAIRS[5]]
PATIENCE_S = 300


def settings_of(pair: tuple[str, str]) -> list[str]:
    """The config fields of a pair, as ``--set`` takes them."""
    name, *options = pair[0].split()
    settings = [f"update.codec={name}", f"model.codec={pair[1]}"]
    settings += [f"update.fraction={part}" for part in options if part != "feedback"]
    return settings + ["update.error_feedback=true"] * ("feedback" in options)


class Link:
    """
    A throttling TCP proxy before a redis-server, for all connections of one client together.

    Args:
        upstream: URL of the server, ``unix:///path``.
        bytes_per_s: In each direction.
    """

    PIECE = 16 * 1024
    UP, DOWN = 0, 1

    def __init__(self, upstream: str, bytes_per_s: float) -> None:
        self._path = unquote(urlsplit(upstream).path)
        self._bytes_per_s = bytes_per_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._free_at = [0.0, 0.0]
        #: Bytes that have passed: up, down.
        self.passed = [0, 0]

    @property
    def url(self) -> str:
        """URL for the client."""
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # Closed.
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._path)
                for way in ((client, server, self.UP), (server, client, self.DOWN)):
                    threading.Thread(target=self._pump, args=way, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, way: int) -> None:
        with suppress(OSError):  # Either end has gone.
            while piece := source.recv(self.PIECE):
                self._wait(way, len(piece))
                target.sendall(piece)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _wait(self, way: int, count: int) -> None:
        """Wait for the link to have passed so many bytes after what is on it already."""
        with self._lock:
            until = max(time.monotonic(), self._free_at[way]) + count / self._bytes_per_s
            self._free_at[way] = until
            self.passed[way] += count
        time.sleep(max(0.0, until - time.monotonic()))


class Linked(Federation):
    """A federation whose clients reach Redis over links of their own."""

    def __enter__(self) -> Self:
        self.links: dict[str, Link] = {}
        return super().__enter__()

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)  # type: ignore[arg-type]
        for link in self.links.values():
            link.__exit__()

    def _start(self, name: str, role: str) -> None:
        if role != "client":
            super()._start(name, role)
            return
        link = self.links[name] = Link(self.redis.url, BYTES_PER_S).__enter__()
        folder = self.redis.state_dir / name
        site = WorkerSettings(
            link.url,
            "",
            folder,
            name,
            allow=("benchmarks.harness.noop_tasks:*", "mnist"),
            min_examples=1,
        )
        command = python_command("-m", "workers.supervisor", role, "--parent", str(os.getpid()))
        self.processes[name] = subprocess.Popen(
            command,
            env={**os.environ, **site.to_environ(), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def passed(self) -> list[int]:
        """Bytes up and down, of all clients."""
        return [sum(link.passed[way] for link in self.links.values()) for way in (0, 1)]


def over_links(
    pairs: list[tuple[str, str]], count: int, parameters: int
) -> dict[tuple[str, str], list[object]]:
    """For each pair: KB up and down a client and round, median and range of seconds a round."""
    found: dict[tuple[str, str], list[object]] = {}
    with Linked(clients=2, one_server=True) as federation:
        for number, pair in enumerate(pairs):
            settings = (
                f"task.parameters={parameters}",
                *settings_of(pair),
                "run.evaluate_every=0",
            )
            # Version 0 goes up whole, and is no part of a round: it is in this start.
            federation.finish(federation.begin(f"linked-{number}", 1, *settings))
            before = federation.passed()
            run = federation.begin(f"linked-{number}", count, *settings)
            # The first round's model has been fetched for the evaluation that closed the first start.
            timings = federation.finish_all(run)[1 - count :]
            each = [
                (after - was) / count / federation.clients / 1000
                for was, after in zip(before, federation.passed(), strict=True)
            ]
            periods = [timing.period for timing in timings]
            found[pair] = [*(f"{kilobytes:.0f}" for kilobytes in each), spread(periods)]
    return found


def accuracy(pair: tuple[str, str], rounds: int, data: Path | None) -> float:
    """
    On the test set, of the last version of a simulation.

    Raises:
        RuntimeError: The run, or the evaluation of its last version, failed.
    """
    settings = [*settings_of(pair), f"run.evaluate_every={rounds}"]
    settings += ["data.source=full", f"data.dir={data}"] if data else ["data.source=excerpt"]
    options = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "fl_queue", "start-round", str(CONFIG), "--run", "bench"]
    with servers() as redis, Store.open(redis.url, redis.blob_url, redis.state_dir) as store:
        done = subprocess.run(
            [*command, "--rounds", str(rounds), *options],
            cwd=ROOT,
            env={**os.environ, "FLQ_STATE_DIR": str(redis.state_dir)},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        tested = selection.test_metrics(store, store.control.runs.names().get("bench", ""))
        if done.returncode or rounds not in tested:
            raise RuntimeError(f"start-round ended with {done.returncode}: {done.stderr[-500:]}")
        return tested[rounds]["accuracy"]


def report(quick: bool = False, data: Path | None = None) -> str:
    """The table. Args: ``data``: folder of the whole of MNIST; None: the excerpt."""
    pairs = PAIRS[::5] if quick else PAIRS
    rounds = 2 if quick else 20
    head = ("update", "model", "KB up", "KB down", "s a round")
    linked = over_links(pairs, 3 if quick else 6, PARAMETERS)
    larger = over_links(SOME, 2, LARGER)
    rows = [(*pair, *linked[pair], f"{accuracy(pair, rounds, data):.4f}") for pair in pairs]
    return "\n".join(
        (
            "KB of each client in a round; 20 Mbit/s for each client, in either direction.\n",
            f"{PARAMETERS:,} parameters (MNIST 2NN):\n",
            markdown((*head, f"accuracy after {rounds} rounds"), rows),
            f"{LARGER:,} parameters:\n",
            markdown(head, [(*pair, *row) for pair, row in larger.items()]),
        )
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two pairs, fewer rounds")
    parser.add_argument("--data", type=Path, help="folder of MNIST; default: the excerpt")
    arguments = parser.parse_args()
    print(report(arguments.quick, arguments.data))


if __name__ == "__main__":
    main()
