"""
The command of a chaos run; ``tests.fault.chaos.run`` describes it.

    python -m tests.fault.chaos --minutes 3 --seed 1 [--clients 3] [--mode async]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.fault.chaos.run import print_outcome, run_chaos


def main() -> int:
    """Exit status: 0 when every check holds, else 1."""
    parser = argparse.ArgumentParser(prog="tests.fault.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="of the walk alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--mode", choices=("sync", "async"), default="sync", help="round.mode")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="flq-chaos-"))
    outcome = run_chaos(given.minutes, given.seed, folder, given.clients, given.mode)
    print_outcome(outcome)
    if not outcome.failures:
        shutil.rmtree(folder)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
