"""Warnings for URLs and servers that are open to more users than intended."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fl_queue.store import exposure
from tests.support.checkout import ROOT


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:secret@far.example:6379/0",
        "redis://:secret@10.0.0.7/0",
        "redis://far.example/0?password=secret",
        "redis+sentinel://u:secret@127.0.0.1:26379,far.example:26379/main/0",
        "redis+cluster://u:secret@far.example:7000/0",
        "redis://u:secret@localhost.example/0",
        "redis://u:secret@127.0.0.1.example/0",
    ],
)
def test_a_password_in_clear_text_is_warned_of_and_not_shown(url: str) -> None:
    (risk,) = exposure.of_url(url)

    assert "without TLS" in risk.what
    assert "rediss://" in risk.fix
    assert "secret" not in str(risk)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "unix:///tmp/redis.sock?db=0&password=secret",
        "redis://:secret@127.0.0.1:6379/0",
        "redis://:secret@localhost/0",
        "redis://:secret@[::1]:6379/0",
        "redis://far.example/0",
        "rediss://u:secret@far.example/0?ssl_cert_reqs=required",
        "redis+sentinel://u:secret@localhost:26379,127.0.0.1:26380/main/0",
    ],
)
def test_no_warning_where_no_other_host_reads(url: str) -> None:
    assert exposure.of_url(url) == []


@pytest.mark.parametrize(
    "option", ["ssl_cert_reqs=none", "ssl_cert_reqs=None", "ssl_check_hostname=false"]
)
def test_an_unchecked_certificate_is_warned_of(option: str) -> None:
    (risk,) = exposure.of_url(f"rediss://u:secret@far.example/0?ssl_ca_certs=/a&{option}")

    assert option in risk.what
    assert "secret" not in str(risk)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("unix:///home/me/redis.sock", "from this machine alone"),
        ("redis://127.0.0.1:6379/0", "from this machine alone"),
        ("redis://far.example:6379/0", "without TLS"),
    ],
)
def test_a_url_a_site_cannot_use_or_should_not_is_noted(url: str, words: str) -> None:
    (risk,) = exposure.of_site_url(url)

    assert words in risk.what
    assert "--site-url" in risk.fix


def test_a_url_with_tls_needs_no_note() -> None:
    assert exposure.of_site_url("rediss://far.example:6379/0") == []


@pytest.mark.parametrize(
    ("version", "fix"),
    [
        ("6.2.14", "upgrade to 6.2.24"),
        ("7.0.15", "no release of 7.0"),
        ("7.2.11", "upgrade to 7.2.16"),  # Has the mended Lua, and not the mended TLS.
        ("8.0.4", "no release of 8.0"),
        ("8.10.0", "upgrade to 8.10.1"),
        ("8.1.4 (Valkey)", "upgrade to 8.1.9"),
        ("7.2.11 (Valkey)", "upgrade to 7.2.16"),
    ],
)
def test_a_release_with_known_holes_is_warned_of(version: str, fix: str) -> None:
    risk = exposure.of_version(version)

    assert risk is not None
    assert version.removesuffix(" (Valkey)") in risk.what
    assert fix in risk.fix


@pytest.mark.parametrize(
    "version",
    [
        *("6.2.24", "7.4.11", "8.2.10", "8.10.1", "8.12.0", "9.0.0", "?"),
        *("8.1.9 (Valkey)", "9.1.2 (Valkey)", "9.2.0 (Valkey)"),
    ],
)
def test_a_mended_release_and_one_newer_than_the_table_are_not(version: str) -> None:
    assert exposure.of_version(version) is None


def test_the_table_of_releases_is_in_the_document() -> None:
    text = (ROOT / "docs/guides/security.md").read_text()
    (redis,) = re.findall(r"^\| Redis \| (.*?), and later", text, re.MULTILINE)
    (valkey,) = re.findall(r"^\| Valkey \| (.*?), and later", text, re.MULTILINE)
    documented = {"Redis": redis.split(", "), "Valkey": valkey.split(", ")}

    assert documented == {
        product: [f"{series}.{patch}" for series, patch in known.items()]
        for product, known in exposure.FIXED.items()
    }


def test_a_worker_warns_in_one_line_and_does_not_show_the_password(tmp_path: Path) -> None:
    url = "redis://u:s3cret@no-such-host.invalid:6379/0"

    done = subprocess.run(
        [sys.executable, "-P", "-m", "workers.supervisor", "aggregator"],
        env={**os.environ, "FLQ_SITE_STATE_DIR": str(tmp_path), "FLQ_REDIS_URL": url},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip

    assert done.returncode == 5
    assert done.stderr.count("cross the network readable, without TLS") == 1
    assert "s3cret" not in done.stderr
