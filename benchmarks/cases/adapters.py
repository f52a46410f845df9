"""
What a round of adapters moves and keeps: ``python -m benchmarks.cases.adapters [--quick]``.

5.6 M frozen numbers, adapters of rank 4, two clients with folders of their own, five rounds. What the data
server sends is read from its ``INFO stats``, less what the aggregator reads: version 0 with its base, and each
update, once. What is kept is read from the sizes of the files. Factors are over the adapters of one version; a
version is sent six times in five rounds, as clients validate the last one, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

from benchmarks.harness.federation import Federation
from benchmarks.harness.table import markdown
from fl_queue.store import Store

LAYERS, WIDTH, RANK = 4, 1184, 4
CLIENTS, ROUNDS = 2, 5
MIB = 1 << 20


def sent_bytes(store: Store) -> int:
    """All bytes that the data server has sent so far."""
    return cast(int, store.data.redis.info("stats")["total_net_output_bytes"])


def folder_bytes(folder: Path) -> int:
    """Size of the files in a folder, bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measured(width: int, is_foreign: bool) -> list[object]:
    """A row: bytes a client and round, and of the checkpoints of all versions, in multiples of the adapters."""
    adapters, frozen = 4 * LAYERS * 2 * RANK * width, 4 * LAYERS * width * width
    options = (f"task.layers={LAYERS}", f"task.width={width}", f"task.rank={RANK}")
    with Federation(CLIENTS, evaluator=True) as federation:
        run = federation.begin(
            "adapters", ROUNDS, *options, f"task.foreign={str(is_foreign).lower()}",
            "model.keep_versions=0", "run.evaluate_every=0", task="Adapters",
        )  # fmt: skip
        federation.finish_all(run)
        sent = sent_bytes(federation.store) - frozen - adapters * (1 + ROUNDS * CLIENTS)
        sent //= CLIENTS
        kept = folder_bytes(federation.state_dir / "checkpoints" / run)
    bases = sent // frozen
    moved = (sent - bases * frozen) / ROUNDS / adapters
    return [
        "fetched by each client" if is_foreign else "the clients' own",
        f"{adapters / 1024:.0f} KiB",
        f"{frozen / adapters:.0f} x",
        f"{moved:.2f} x",
        bases,
        f"{kept / MIB:.1f} MiB: the base and {(kept - frozen) / adapters:.2f} x",
    ]


def report(quick: bool = False) -> str:
    """The table."""
    width = 296 if quick else WIDTH
    head = (
        "frozen base", "adapters", "base over them", "sent to a client in a round", "bases sent to it",
        f"{ROUNDS + 1} checkpoints",
    )  # fmt: skip
    return markdown(head, [measured(width, is_foreign) for is_foreign in (False, True)])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a base of 0.35 M numbers")
    print(report(parser.parse_args().quick))


if __name__ == "__main__":
    main()
