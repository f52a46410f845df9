"""
Risks of a Redis server or its connections: reported, never refused.

A connection that third parties can read or impersonate, a server without a password, and releases with known
vulnerabilities by which any client can run code in the server. No connections here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fl_queue.common.redis_url import has_password, is_tls, leaves_machine, mask, unchecked

#: Product -> series -> its first release without a vulnerability known in November 2026 by which any client
#: can run code in the server: Lua scripts (CVE-2025-49844 and its kin), TLS (Redis CVE-2026-81934, which needs
#: no password; Valkey CVE-2026-56684). Other series get no releases any more.
FIXED = {
    "Redis": {
        "6.2": 24,
        "7.2": 16,
        "7.4": 11,
        "8.2": 9,
        "8.4": 6,
        "8.6": 6,
        "8.8": 2,
        "8.10": 1,
    },
    "Valkey": {"7.2": 16, "8.0": 10, "8.1": 9, "9.0": 5, "9.1": 1},
}
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)( \(Valkey\))?")


class Risk(NamedTuple):
    """A risk and its remedy."""

    what: str
    fix: str


def of_url(url: str) -> list[Risk]:
    """Risks of the connection to a server, by its URL."""
    found = []
    where = mask(url).partition("?")[0]
    if leaves_machine(url) and has_password(url) and not is_tls(url):
        found.append(
            Risk(
                f"{where}: the password and all updates cross the network readable, without TLS",
                "give the server a certificate and write rediss://; see docs/reference/redis.md",
            )
        )
    if is_tls(url) and (option := unchecked(url)):
        found.append(
            Risk(
                f"{where}: an attacker in between can pass for the server: its certificate is not checked ({option})",
                f"leave {option} out, and name the CA in ssl_ca_certs",
            )
        )
    return found


def of_site_url(url: str) -> list[Risk]:
    """Risks of a server URL in the credentials of a site."""
    if not leaves_machine(url):
        return [
            Risk(
                f"the credentials name Redis at {url}, which is reached from this machine alone",
                "for a site elsewhere enroll again with --site-url as that site reaches it",
            )
        ]
    if not is_tls(url):
        return [
            Risk(
                f"the credentials name Redis at {url}, without TLS: the site's password and updates cross the network readable",
                "give the server a certificate, and enroll again with --site-url rediss://...",
            )
        ]
    return []


def of_version(version: str) -> Risk | None:
    """
    The risk of a release with known vulnerabilities; None for other releases.

    Args:
        version: As ``ServerFacts`` has it, ``8.1.4 (Valkey)``.
    """
    parts = _VERSION.match(version)
    if parts is None:
        return None
    product = "Valkey" if parts[4] else "Redis"
    major, minor, patch = int(parts[1]), int(parts[2]), int(parts[3])
    series, known = f"{major}.{minor}", FIXED[product]
    if (major, minor) > max(tuple(map(int, name.split("."))) for name in known):
        return None  # Newer than this table.
    if patch >= known.get(series, patch + 1):
        return None
    mended = f"{series}.{known[series]}" if series in known else ""
    return Risk(
        f"{product} {series}.{patch} has known vulnerabilities by which a client that may connect can run code in the server",
        f"upgrade to {mended} or later, unless your distribution has mended its own package"
        if mended
        else f"no release of {series} mends them: use a newer series, unless your distribution has mended its own package",
    )
