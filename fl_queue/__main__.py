"""``python -m fl_queue``: the same as ``fl-queue``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # ``-m`` put the current folder before all that is installed: a queue.py there is none of ours.
    # Where fl-queue itself is run from, the folder stays, last.
    if not sys.flags.safe_path:
        folder = sys.path.pop(0)
        if Path(folder) == Path(__file__).resolve().parents[1]:
            sys.path.append(folder)

    from fl_queue.cli import main

    main()
