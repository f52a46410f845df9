"""One job after the other uses the same connections, until the login or the servers change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fl_queue.client.site import WorkerSettings


def test_connections_are_kept_while_the_login_is_the_same(
    redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    site = WorkerSettings(*redis_urls, state_dir=tmp_path)
    first = site.connected()
    first.control.redis.ping()

    assert replace(site).connected() is first
    other = replace(site, url=redis_urls[1]).connected()
    assert other is not first
    assert replace(site, url=redis_urls[1]).connected() is other
    assert replace(site).connected().control.redis.ping()
