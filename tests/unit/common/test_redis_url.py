"""Passwords in URLs: what is shown of them, and what is made of them."""

from __future__ import annotations

import pytest

from fl_queue.common import redis_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:pw@host:6379/0", "redis://:***@host:6379/0"),
        ("rediss://user:pw@host/0", "rediss://user:***@host/0"),
        ("redis://user@host/0", "redis://user@host/0"),
        # As users write them, with characters that should be percent-encoded.
        ("redis://:p@w@host/0", "redis://:***@host/0"),
        ("redis://:p/w@host/0", "redis://:***@host/0"),
        ("redis://:p?w#x@host/0", "redis://:***@host/0"),
        ("redis://u:p:w@host/0", "redis://u:***@host/0"),
        ("redis+cluster://:pw@a:1,b:2/0", "redis+cluster://:***@a:1,b:2/0"),
        ("redis+sentinel://u:pw@a:1,b:2/name/0", "redis+sentinel://u:***@a:1,b:2/name/0"),
        (
            "rediss+sentinel://a/name?sentinel_username=u&sentinel_password=pw",
            "rediss+sentinel://a/name?sentinel_username=u&sentinel_password=***",
        ),
        ("unix://:pw@/run/redis.sock?db=0", "unix://:***@/run/redis.sock?db=0"),
        ("unix:///run/a@b.sock", "unix:///run/a@b.sock"),
        ("redis://host/0?password=pw&db=1", "redis://host/0?password=***&db=1"),
        ("rediss://host/0?ssl_password=pw", "rediss://host/0?ssl_password=***"),
        ("rediss://host/0?ssl_ca_certs=/etc/ca", "rediss://host/0?ssl_ca_certs=/etc/ca"),
        # A slip of the pen is none of our business.
        ("redis://host/0?passwort=pw", "redis://host/0?passwort=***"),
        ("redis://host/0?pw", "redis://host/0?pw"),
        (":pw@host:6379", "***@host:6379"),
        ("pw@host", "***@host"),
        # Certificates of a credentials file are open files of this process.
        ("rediss://host/0?ssl_keyfile=%2Fproc%2Fself%2Ffd%2F7", "rediss://host/0"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert redis_url.mask(url) == shown
    assert redis_url.mask(shown) == shown


@pytest.mark.parametrize(
    ("url", "has"),
    [("redis://:pw@host", True), ("redis://host/0?password=pw", True), ("redis://u@host", False)],
)
def test_whether_a_url_has_a_password(url: str, has: bool) -> None:
    assert redis_url.has_password(url) == has


def test_a_login_is_taken_out_and_put_in() -> None:
    whole = "rediss://old:pw@host:1/0?ssl_ca_certs=/mine&db=2&password=x&username=y"

    bare = redis_url.without_login(whole)
    assert bare == "rediss://host:1/0?db=2"
    made = redis_url.with_login(bare, "us er", "p@/w", {"ssl_ca_certs": "/a b"})
    assert made == "rediss://us%20er:p%40%2Fw@host:1/0?db=2&ssl_ca_certs=%2Fa+b"
    assert redis_url.without_login(made) == bare


def test_the_login_to_sentinels_is_not_handed_on_but_a_site_keeps_its_own() -> None:
    whole = "redis+sentinel://me:pw@a:1,b:2/name/0?sentinel_password=theirs"

    bare = redis_url.without_login(whole)
    assert bare == "redis+sentinel://a:1,b:2/name/0"
    kept = redis_url.without_login(whole, for_site=True)
    assert kept == "redis+sentinel://a:1,b:2/name/0?sentinel_password=theirs"
    made = redis_url.with_login(kept, "us", "er", {})
    assert made == "redis+sentinel://us:er@a:1,b:2/name/0?sentinel_password=theirs"
