"""Start-up times of commands and workers: ``python -m benchmarks.cases.startup [--quick]``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness.federation import servers
from benchmarks.harness.table import markdown, spread
from fl_queue.store import Store, keyspace
from fl_queue.store.embedded.server_pair import EmbeddedRedis

PATIENCE_S = 60
#: The console script of this environment.
FL_QUEUE = str(Path(sys.executable).parent / "fl-queue")


def command(redis: EmbeddedRedis, *arguments: str) -> float:
    """Seconds a command takes, from its start to its end."""
    began = time.perf_counter()
    subprocess.run(
        [FL_QUEUE, *arguments],
        env={**os.environ, "FLQ_STATE_DIR": str(redis.state_dir)},
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=PATIENCE_S,
    )
    return time.perf_counter() - began


def client_ready(redis: EmbeddedRedis, store: Store, client: str) -> float:
    """
    Seconds from the start of ``fl-queue worker client`` to its lease in Redis.

    Raises:
        TimeoutError: It took none.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [FL_QUEUE, "worker", "client", "--client", client],
        env={**os.environ, "FLQ_STATE_DIR": str(redis.state_dir)},
        stderr=subprocess.DEVNULL,
    )
    try:
        while not store.control.leases.get(keyspace.client_holder(client)):
            if time.perf_counter() - began > PATIENCE_S:
                raise TimeoutError(f"no lease of {client} after {PATIENCE_S} s")
            time.sleep(0.005)
        return time.perf_counter() - began
    finally:
        for _ in range(2):  # The second signal does not wait for the worker to look up.
            process.terminate()
            time.sleep(0.3)
        process.wait(PATIENCE_S)


def report(quick: bool = False) -> str:
    """The table."""
    count = 2 if quick else 7
    with servers() as redis, Store.open(redis.url, redis.blob_url, redis.state_dir) as store:
        command(redis, "--help")  # Compiles what is not compiled yet.
        rows = [
            ["`fl-queue --help`", spread([command(redis, "--help") for _ in range(count)])],
            ["`fl-queue status`", spread([command(redis, "status") for _ in range(count)])],
            [
                "`fl-queue worker client`, ready",
                spread([client_ready(redis, store, f"site-{n + 1}") for n in range(count)]),
            ],
        ]
    return markdown(("", f"s, median of {count} (least-most)"), rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="medians of 2")
    print(report(parser.parse_args().quick))


if __name__ == "__main__":
    main()
