"""
Print the constraints of an environment with exactly the oldest packages that setup.cfg allows.

`python scripts/oldest.py web plot` prints those of fl-queue and of these extras. What the tests themselves
need (pytest, mypy, ...) is left out: a user's installation does not have it.

`make test-oldest` installs with them, so that a lower bound is what was run and not what was hoped.
"""

from __future__ import annotations

import re
import sys
from configparser import ConfigParser
from pathlib import Path

_BOUND = re.compile(r"([\w.-]+)\s*>=\s*([\w.]+)")


def constraints(setup: ConfigParser, extras: list[str]) -> list[str]:
    """``name==version`` of each requirement with a lower bound."""
    texts = [
        setup["options"]["install_requires"],
        *(setup["options.extras_require"][extra] for extra in extras),
    ]
    found = (_BOUND.match(line.strip()) for text in texts for line in text.splitlines())
    return sorted({f"{match[1]}=={match[2]}" for match in found if match})


if __name__ == "__main__":
    read = ConfigParser()
    read.read(Path(__file__).parents[1] / "setup.cfg")
    print("\n".join(constraints(read, sys.argv[1:])))
