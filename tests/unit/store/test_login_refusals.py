"""When a login that a server refuses is final: only when it lasts, and never for a command that is forbidden."""

from __future__ import annotations

import pytest
import redis

from fl_queue.errors import StoreUnavailable, Trouble
from fl_queue.store.login_refusals import FOR_GOOD_S, Login, is_login_refused

REFUSED = redis.AuthenticationError("invalid username-password pair or user is disabled.")
FORBIDDEN = redis.exceptions.NoPermissionError("this user has no permissions")
GONE = redis.ConnectionError("Connection refused")


def ours(cause: Exception) -> StoreUnavailable:
    made = StoreUnavailable("redis://a", "refused", Trouble.not_allowed)
    made.__cause__ = cause
    return made


def test_a_login_that_is_refused_is_not_a_command_that_is_forbidden() -> None:
    assert is_login_refused(REFUSED)
    assert is_login_refused(ours(REFUSED))
    assert is_login_refused(redis.ResponseError("NOAUTH Authentication required."))
    for other in (FORBIDDEN, GONE, ours(FORBIDDEN), StoreUnavailable("redis://a", "gone")):
        assert not is_login_refused(other)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("fl_queue.store.login_refusals.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_refused_for_long_enough_it_is_final_and_reported_once(clock: Clock) -> None:
    ended: list[bool] = []
    login = Login()
    login.when_refused_for_good(lambda: ended.append(True))
    for _ in range(int(FOR_GOOD_S)):
        login.failed(REFUSED)
        assert not ended
        clock.now += 1
    login.failed(REFUSED)
    login.failed(REFUSED)
    assert ended == [True]


@pytest.mark.parametrize("between", [None, GONE, FORBIDDEN])
def test_a_server_that_lost_its_users_for_a_while_is_waited_for(
    clock: Clock, between: Exception | None
) -> None:
    login = Login()
    login.when_refused_for_good(lambda: pytest.fail("it was let in meanwhile"))
    for _ in range(5):
        login.failed(REFUSED)
        clock.now += FOR_GOOD_S - 1
        if between is None:
            login.accepted()
        else:
            login.failed(between)


def test_a_command_that_is_forbidden_is_waited_for_without_an_end(clock: Clock) -> None:
    login = Login()
    login.when_refused_for_good(lambda: pytest.fail("NOPERM is no refused login"))
    for _ in range(5):
        login.failed(FORBIDDEN)
        clock.now += FOR_GOOD_S
