"""
The exact sum beside a plain copy: ``python -m benchmarks.cases.exact_sum [--quick]``.

One thread. A total has 8 bytes an element; copying an array of such totals is the measure of what
the memory gives, and is timed in turns with the rest.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
from blake3 import blake3

from benchmarks.harness.table import markdown, median
from fl_queue.aggregation import exact_sum
from fl_queue.aggregation.merge import UpdateMerger
from fl_queue.aggregation.scales import choose_scales
from fl_queue.config.loading import load
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.arrays import Blocks
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest, TensorSpec

REPEATS = 7
UPDATES = 64
W_MAX = 1000
#: As tasks' models have: several tensors.
TENSORS = 5


class Subject:
    """A round's sum of ``size`` parameters (a multiple of ``TENSORS``), and an update to add."""

    def __init__(self, size: int) -> None:
        self.size = size
        specs = (TensorSpec(f"w{i}", (size // TENSORS,), "parameter") for i in range(TENSORS))
        manifest = Manifest(tuple(specs))
        scales = choose_scales(UPDATES, W_MAX, {"parameter": 64.0, "float_buffer": 64.0})
        self.merge = UpdateMerger(manifest, load(None, environ={}).aggregation, scales, W_MAX)
        self.update = np.random.default_rng(1).normal(0, 0.01, size).astype(np.float32)
        self.body = self.update.data.cast("B")
        flat = {
            name: tensor.reshape(-1)
            for name, tensor in tensor_layout.views(manifest, self.body).items()
        }
        self.blocks: Blocks = lambda spec: [flat[spec.name]]
        self.header = Header(
            kind="update",
            run="bench-000000",
            round=1,
            client="site-1",
            num_examples=4,
            tensors=tensor_layout.entries(manifest),
            body_bytes=len(self.body),
            body_digest=blake3(self.body).hexdigest(),
        )
        self.totals, self.copy = np.ones(size, np.int64), np.ones(size, np.int64)
        self.floats = np.ones(size, np.float32)
        self.factor = math.ldexp(1.0, scales["parameter"].s)

    def ways(self) -> dict[str, Callable[[], object]]:
        """What is measured, by its name in the table; the copy first."""
        return {
            "numpy.copyto of the totals": lambda: np.copyto(self.copy, self.totals),
            "ExactSum.add_blocks": lambda: self.merge.total.add_blocks(self.blocks, 1),
            "with BLAKE3 and all checks (UpdateMerger.add)": lambda: self.merge.add(
                self.header, self.body
            ),
            "without numba": lambda: exact_sum._add_numpy(
                self.totals, self.update, 1, self.factor, 64.0
            ),
        }


def seconds(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, measured in turns after one that warms up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            found[name].append(time.perf_counter() - began)
    return {name: median(values[1:]) for name, values in found.items()}


def many(subject: Subject) -> str:
    """``UPDATES`` updates merged one after the other, beside float32 additions in place."""
    ways: dict[str, Callable[[], object]] = {
        "ExactSum.add_blocks": lambda: subject.merge.total.add_blocks(subject.blocks, 1),
        "float32 numpy.add in place": lambda: np.add(
            subject.floats, subject.update, out=subject.floats
        ),
    }
    rows = []
    for name, way in ways.items():
        began = time.perf_counter()
        for _ in range(UPDATES):
            way()
        spent = time.perf_counter() - began
        rate = UPDATES * subject.update.nbytes / spent / 1e9
        rows.append([name, f"{spent:.2f}", f"{rate:.1f}"])
    return markdown((f"merging {UPDATES} updates", "s", "GB/s of updates"), rows)


def report(quick: bool = False) -> str:
    """Both tables."""
    size = 1_000_000 if quick else 25_000_000
    exact_sum.warm_up()
    subject = Subject(size)
    found = seconds(subject.ways(), REPEATS)
    copy = next(iter(found.values()))
    rows = [
        [name, f"{8 * size / spent / 1e9:.1f}", f"{copy / spent:.0%}"]
        for name, spent in found.items()
    ]
    head = (f"{size / 1e6:g} M parameters", "GB/s of totals", "of the copy")
    return f"{markdown(head, rows)}\n{many(subject)}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a million parameters")
    print(report(parser.parse_args().quick))


if __name__ == "__main__":
    main()
