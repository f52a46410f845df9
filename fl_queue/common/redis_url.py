"""URLs of Redis servers: the password in them, and the URL without it. No connections here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, urlencode

_SECRET_OPTIONS = ("password", "ssl_password")
_OF_SENTINELS = ("sentinel_username", "sentinel_password")
#: Options whose values are not secret: redis-py's but for passwords. A mistyped one may be a password.
_SHOWN = re.compile(
    r"db|protocol|(sentinel_)?username|client_name|timeout|max_connections|health_check_interval"
    r"|(socket|retry_on)_\w+|ssl_(ca_certs|ca_path|certfile|keyfile|cert_reqs|check_hostname)"
)
#: A host and its port on this machine itself.
_LOOPBACK = re.compile(r"(localhost|127(\.\d+){1,3}|\[::1\])?(:\d+)?", re.IGNORECASE)
_UNCHECKED = re.compile(
    r"ssl_cert_reqs=(none|optional)|ssl_check_hostname=(false|no|n|f|0)", re.IGNORECASE
)


def mask(url: str) -> str:
    """The URL with every password in it replaced by ``***``, also when it is none."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        # A URL without its scheme may hold a password, too.
        login, at, where = url.rpartition("@")
        return ("***" if at else "") + at + _masked_options(where)
    login, at, where = _login(rest)
    if at and ":" in login:
        login = login.partition(":")[0] + ":***"
    return f"{scheme}{mark}{login}{at}{_masked_options(where)}"


def _masked_options(where: str) -> str:
    where, question, query = where.partition("?")
    shown = [_masked_option(option) for option in query.split("&") if not _is_ours(option)]
    question = question if any(shown) else ""
    return f"{where}{question}{'&'.join(shown)}"


def has_password(url: str) -> bool:
    """Whether a URL has a password in it."""
    return mask(url) != url


def without_login(url: str, for_site: bool = False) -> str:
    """
    The URL without user, password and options of this machine (files of certificates).

    Args:
        for_site: Whether the login to sentinels stays: the site's own, which a credentials file keeps.
    """
    secret = (*_SECRET_OPTIONS, "username", *(() if for_site else _OF_SENTINELS))
    scheme, mark, rest = url.partition("://")
    where, question, query = _login(rest)[2].partition("?")
    kept = [
        option for option in query.split("&") if option and not option.startswith(("ssl_", *secret))
    ]
    return f"{scheme}{mark}{where}{question if kept else ''}{'&'.join(kept)}"


def with_login(url: str, name: str, password: str, options: Mapping[str, str]) -> str:
    """A URL without a login, with one, and with more options: for connections, never for output."""
    scheme, mark, where = without_login(url, for_site=True).partition("://")
    login = f"{quote(name, safe='')}:{quote(password, safe='')}@" if name else ""
    more = urlencode(options)
    link = ("&" if "?" in where else "?") if more else ""
    return f"{scheme}{mark}{login}{where}{link}{more}"


def is_tls(url: str) -> bool:
    """Whether connections are encrypted."""
    return url.startswith("rediss")


def leaves_machine(url: str) -> bool:
    """Whether any of the servers that a URL names is on another machine, judged by its name."""
    scheme, mark, rest = url.partition("://")
    if not mark or scheme == "unix":
        return False
    where = re.split(r"[/?]", _login(rest)[2], maxsplit=1)[0]
    return any(not _LOOPBACK.fullmatch(host) for host in where.split(",") if host)


def unchecked(url: str) -> str:
    """The option of a TLS URL that keeps the server's certificate or its name from being checked; or empty."""
    for option in url.partition("?")[2].split("&"):
        if _UNCHECKED.fullmatch(option):
            return option
    return ""


def _login(rest: str) -> tuple[str, str, str]:
    # To the last @: an unescaped password may contain one.
    login, at, where = rest.rpartition("@")
    return ("", "", rest) if not at or login.startswith("/") else (login, at, where)


def _masked_option(option: str) -> str:
    name, equals, _ = option.partition("=")
    return option if not equals or _SHOWN.fullmatch(name) else f"{name}=***"


def _is_ours(option: str) -> bool:
    # Certificates of a credentials file are open files of this process; see ``store/credentials.py``.
    return option.startswith("ssl_") and "%2Fproc%2Fself" in option
