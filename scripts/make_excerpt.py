"""
Make the MNIST excerpt that ships in fl_queue/data from the four full IDX files.

    python scripts/make_excerpt.py FOLDER

Takes the first 1,000 training and 200 test images of each digit, in the order of the source files.
Running it again gives the same bytes (with the same zlib).
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np

from fl_queue.data.idx import encode_idx, read_idx

TARGET = Path(__file__).parent.parent / "fl_queue" / "data"
PER_DIGIT = {"train": 1000, "t10k": 200}


def first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Sorted indices of the first ``count`` samples of every digit: (N,) -> (10 * count,)."""
    return np.sort(np.concatenate([np.flatnonzero(labels == digit)[:count] for digit in range(10)]))


def main(source: Path) -> None:
    """Write the excerpt of the files in ``source`` to ``TARGET``."""
    for prefix, count in PER_DIGIT.items():
        images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz", 3)
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz", 1)
        chosen = first_of_each(labels, count)
        for array, kind in ((images[chosen], "images-idx3"), (labels[chosen], "labels-idx1")):
            file = TARGET / f"{prefix}-{kind}-ubyte.gz"
            # No time stamp: equal content gives equal bytes.
            file.write_bytes(gzip.compress(encode_idx(array), compresslevel=9, mtime=0))
            print(f"{file}: {len(array)} records, {file.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
