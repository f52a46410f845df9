"""
Repeat commands and jobs until Redis can be used again, so that workers survive an outage.

A worker that exited would lose its training, and its successor would meet the same outage. RQ's connection
repeats single commands (``RepeatingClient``); ``outlast`` repeats a whole job.
"""

from __future__ import annotations

import logging
import mmap
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import redis
from redis.client import Pipeline

from fl_queue.errors import FLQueueError
from fl_queue.store.error_translation import REDIS_ERRORS, classify, drop_demoted, in_words
from fl_queue.store.login_refusals import own_login
from fl_queue.store.pipelines import EndablePipeline
from fl_queue.store.split_users import SplitClient

log = logging.getLogger(__name__)

Value = TypeVar("Value")
#: Seconds between two tries, on average.
AGAIN_S = 1.0
#: Interval at which a repeated error is logged again.
LOG_EVERY_S = 60.0
#: Time without an error after which the recovery is logged.
QUIET_S = 5.0

_fails_fast: ContextVar[bool] = ContextVar("fails_fast", default=False)
#: Not 0 when this worker is to stop; shared with its forked work-horses.
_stopping = mmap.mmap(-1, 1)


class ErrorLog:
    """Rate-limited log of errors: each one at most once a minute, then the recovery."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}
        self._last_at = 0.0

    def write(self, error: Exception, about: str = "") -> None:
        """
        Log an error on one line; with a traceback if it is neither an outage of Redis nor an FLQueueError.

        Args:
            about: Beginning of the line.
        """
        is_ours = isinstance(error, FLQueueError)
        is_trouble = classify(error) is not None
        text = str(error) if is_ours else f"{error!r}"
        if is_trouble:
            text = f"{text if is_ours else 'control server: ' + in_words(error)}; trying on"
        self._last_at = now = time.monotonic()
        if now - self._logged.get(about + text, -LOG_EVERY_S) < LOG_EVERY_S:
            return
        self._logged = {line: at for line, at in self._logged.items() if now - at < LOG_EVERY_S}
        self._logged[about + text] = now
        log.warning("%s%s", about, text, exc_info=None if is_ours or is_trouble else error)

    def recovered(self) -> None:
        """Log the recovery, once ``QUIET_S`` have passed since the last error."""
        # Not at once: a server that refuses writes still answers reads.
        if self._logged and time.monotonic() - self._last_at >= QUIET_S:
            self._logged.clear()
            log.info("Redis can be used again")


error_log = ErrorLog()


@contextmanager
def fail_fast() -> Iterator[None]:
    """Raise errors at once within this block and thread, without a repetition."""
    token = _fails_fast.set(True)
    try:
        yield
    finally:
        _fails_fast.reset(token)


def stop_waiting() -> None:
    """End all waits of this worker and its work-horse, as the worker is to stop."""
    _stopping[0] = 1


def waits_for(error: Exception) -> bool:
    """Whether to try again after an error; if so, it has been logged, and a pause has passed."""
    own_login.failed(error)
    if classify(error) is None or _fails_fast.get() or _stopping[0]:
        return False
    error_log.write(error)
    pause()
    return True


def pause() -> None:
    """Wait a random time before the next try, as many workers may wait for the same server."""
    time.sleep(AGAIN_S * random.uniform(0.5, 1.5))


def outlast(work: Callable[[], Value]) -> Value:
    """
    Repeat a function until Redis can be used; return its result.

    Raises:
        StoreUnavailable: This worker is to stop, or the caller is within ``fail_fast``.
    """
    while True:
        try:
            done = work()
        except REDIS_ERRORS as exc:
            if not waits_for(exc):
                raise
        else:
            own_login.accepted()
            error_log.recovered()
            return done


class RepeatingClient(SplitClient):
    """
    A client for RQ, which ends at any error: each command is repeated until it succeeds.

    An error reply means that the command was not executed, and every command of RQ may be repeated after a
    broken connection.
    """

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command, again if necessary."""
        send = super().execute_command

        def attempt() -> Any:
            with drop_demoted(self.connection_pool):
                return send(*args, **options)

        return outlast(attempt)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        """A pipeline that is executed again if necessary."""
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _Pipeline(EndablePipeline):
    def execute(self, raise_on_error: bool = True) -> list[Any]:
        send, stack, was_watching = super().execute, list(self.command_stack), self.watching
        is_explicit = self.explicit_transaction
        while True:
            try:
                with drop_demoted(self.connection_pool):
                    done: list[Any] = send(raise_on_error)
                own_login.accepted()
                error_log.recovered()
                return done
            except REDIS_ERRORS as exc:
                if not waits_for(exc):
                    raise
                if was_watching:
                    # The watched keys may have changed meanwhile: the caller reads them again.
                    raise redis.WatchError(str(exc)) from exc
            self.command_stack, self.explicit_transaction = list(stack), is_explicit

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        send, was_watching = super().immediate_execute_command, self.watching
        while True:
            try:
                return send(*args, **options)
            except REDIS_ERRORS as exc:
                if self.connection is not None:
                    self.connection.disconnect()
                if not waits_for(exc):
                    raise
                if was_watching:
                    raise redis.WatchError(str(exc)) from exc
