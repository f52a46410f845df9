"""Whatever goes wrong with a URL, its password is in no message, traceback, log line or page."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from fl_queue.cli import cli
from fl_queue.client.site import WorkerSettings
from fl_queue.common import logs
from fl_queue.errors import FLQueueError
from fl_queue.store import Store, plain_client
from fl_queue.store.retries import fail_fast

SECRET = "open-sesame-4711"
#: No server listens on the first port.
GONE = "127.0.0.1:1/0"
URLS = {
    "no server there": f"redis://:{SECRET}@{GONE}",
    "a user": f"redis://user:{SECRET}@{GONE}",
    "no such host": f"redis://:{SECRET}@redis.invalid:6379/0",
    "a slash": f"redis://:{SECRET}/x@{GONE}",
    "a number sign": f"redis://:{SECRET}#x@{GONE}",
    "a question mark": f"redis://:{SECRET}?x@{GONE}",
    "an at sign": f"redis://:{SECRET}@x@{GONE}",
    "a colon": f"redis://:x:{SECRET}@{GONE}",
    "no port": f"redis://:{SECRET}@127.0.0.1:port/0",
    "a bracket": f"redis://:{SECRET}@[::1/0",
    "another scheme": f"http://:{SECRET}@{GONE}",
    "no scheme": f":{SECRET}@{GONE}",
    "nothing but host": f"{SECRET}@127.0.0.1",
    "an option": f"redis://{GONE}?password={SECRET}",
    "a mistyped option": f"redis://{GONE}?passwort={SECRET}",
    "a bad option": f"rediss://:{SECRET}@{GONE}?ssl_min_version={SECRET}",
    "a bad choice": f"rediss://:{SECRET}@{GONE}?ssl_cert_reqs=perhaps",
    "the key's password": f"rediss://{GONE}?ssl_password={SECRET}",
    "no certificate": f"rediss://:{SECRET}@{GONE}?ssl_ca_certs=/nowhere/ca.crt",
    "a socket": f"unix://:{SECRET}@/nowhere/redis.sock",
    "a cluster": f"redis+cluster://:{SECRET}@{GONE}",
    "sentinels": f"redis+sentinel://:{SECRET}@127.0.0.1:1,127.0.0.1:2/name/0",
    "a login to sentinels": f"redis+sentinel://127.0.0.1:1/name?sentinel_password={SECRET}",
    "misread sentinels": f"redis+sentinel://:{SECRET}/x@127.0.0.1:1/name",
    "sentinels without a name": f"redis+sentinel://:{SECRET}@127.0.0.1:1",
    "a misread cluster": f"redis+cluster://:{SECRET}/x@{GONE}",
}


def as_control(url: str) -> None:
    with Store(url, "redis://127.0.0.1:1/0") as store:
        store.check()


def as_data(url: str) -> None:
    with Store("redis://127.0.0.1:1/0", url) as store:
        store.data.ping()


def as_rq(url: str) -> None:
    with fail_fast():  # It would try again until the server is there.
        plain_client(url, 1.0).ping()


@pytest.mark.parametrize("way", [as_control, as_data, as_rq])
@pytest.mark.parametrize("kind", URLS)
def test_no_error_shows_the_password(kind: str, way: Callable[[str], None]) -> None:
    url = URLS[kind]
    # RQ expects redis-py's own errors of a server that is away; no caller expects a bare ValueError.
    expected = (FLQueueError, redis.RedisError) if way is as_rq else FLQueueError
    with pytest.raises(expected) as caught:
        way(url)

    error = caught.value
    whole = "".join(traceback.format_exception(error))
    record = logging.LogRecord(
        "x", logging.ERROR, "x", 1, "%s", (error,), (type(error), error, error.__traceback__)
    )
    assert SECRET not in whole + repr(error) + logs.JsonFormatter().format(record)


def test_a_refused_password_is_not_shown(store: Store, redis_urls: tuple[str, str]) -> None:
    store.control.redis.execute_command("ACL", "SETUSER", "site", "on", ">other", "+@all", "~*")
    url = redis_urls[0].replace("unix://", f"unix://site:{SECRET}@")
    try:
        with pytest.raises(FLQueueError, match="refused the password") as caught:
            as_control(url)
    finally:
        store.control.redis.execute_command("ACL", "DELUSER", "site")

    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("command", ["status", "doctor", "clients", "config show", "events r"])
@pytest.mark.parametrize("kind", ["no server there", "a slash", "no scheme", "a mistyped option"])
def test_no_command_shows_the_password(kind: str, command: str, tmp_path: Path) -> None:
    url = URLS[kind]
    environment = {"FLQ_REDIS_URL": url, "FLQ_REDIS_BLOB_URL": url, "FLQ_STATE_DIR": str(tmp_path)}
    done = CliRunner().invoke(cli, command.split(), env=environment)

    shown = done.output + repr(done.exception)
    assert SECRET not in shown
    assert isinstance(done.exception, (FLQueueError, type(None), SystemExit))


@pytest.mark.parametrize("form", logs.FORMATS)
def test_no_worker_logs_the_password(form: str, tmp_path: Path) -> None:
    """As RQ's own command starts it, which checks nothing before."""
    site = WorkerSettings(URLS["a slash"], URLS["a slash"], tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "workers.aggregator"],
        env={**os.environ, **site.to_environ(), logs.VARIABLE: form},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 5
    assert "not a Redis URL" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
