"""
Commands and jobs are repeated until Redis can be used again: workers do that instead of ending.

A worker that ended would take its training along, and the next one would find the server no better.
RQ's connection repeats a single command (``RepeatingClient``), ``outlast`` a job as a whole.
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
from fl_queue.store.split_users import SplitClient

log = logging.getLogger(__name__)

Value = TypeVar("Value")
#: Seconds between two tries, on average.
AGAIN_S = 1.0
#: The same trouble is logged once in so many seconds.
SAID_EVERY_S = 60.0
#: All is well again when nothing was the matter for so many seconds.
QUIET_S = 5.0

_hurried: ContextVar[bool] = ContextVar("hurried", default=False)
#: Whether this worker is to stop; shared with the work-horses it forks.
_stopping = mmap.mmap(-1, 1)


class Complaint:
    """Logs each error once a minute, however often it comes, and that all are over."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}
        self._last_at = 0.0

    def say(self, error: Exception, about: str = "") -> None:
        """
        Log what is the matter: a line, but the traceback of what is no trouble of Redis and no error of ours.

        Args:
            about: Begins the line.
        """
        is_ours = isinstance(error, FLQueueError)
        is_trouble = classify(error) is not None
        text = str(error) if is_ours else f"{error!r}"
        if is_trouble:
            text = f"{text if is_ours else 'control server: ' + in_words(error)}; trying on"
        self._last_at = now = time.monotonic()
        if now - self._said.get(about + text, -SAID_EVERY_S) < SAID_EVERY_S:
            return
        self._said = {said: at for said, at in self._said.items() if now - at < SAID_EVERY_S}
        self._said[about + text] = now
        log.warning("%s%s", about, text, exc_info=None if is_ours or is_trouble else error)

    def over(self) -> None:
        """Log that all is well again, if it was not, and has been for a while."""
        # Not at once: where writes are refused, reads succeed all the time.
        if self._said and time.monotonic() - self._last_at >= QUIET_S:
            self._said.clear()
            log.info("Redis can be used again")


complaint = Complaint()


@contextmanager
def hurried() -> Iterator[None]:
    """Within this block nothing is waited for: errors are raised at once, in this thread."""
    token = _hurried.set(True)
    try:
        yield
    finally:
        _hurried.reset(token)


def stop_waiting() -> None:
    """This worker is to stop: neither it nor its work-horse waits any longer."""
    _stopping[0] = 1


def waits_for(error: Exception) -> bool:
    """Whether to try again after an error; then it has been logged, and a pause was made."""
    own_login.failed(error)
    if classify(error) is None or _hurried.get() or _stopping[0]:
        return False
    complaint.say(error)
    pause()
    return True


def pause() -> None:
    """Wait before the next try; many workers may do so for the same server."""
    time.sleep(AGAIN_S * random.uniform(0.5, 1.5))


def outlast(work: Callable[[], Value]) -> Value:
    """
    Do something that may be repeated, again and again until Redis can be used.

    Raises:
        StoreUnavailable: This worker is to stop meanwhile, or must not wait.
    """
    while True:
        try:
            done = work()
        except REDIS_ERRORS as exc:
            if not waits_for(exc):
                raise
        else:
            own_login.accepted()
            complaint.over()
            return done


class RepeatingClient(SplitClient):
    """
    A client for RQ, which takes any error for a reason to end: a command waits until it can be done.

    A reply of a server that cannot serve means that nothing was done, and all that RQ sends may be
    repeated after a broken connection.
    """

    def execute_command(self, *args: Any, **options: Any) -> Any:
        send = super().execute_command

        def attempt() -> Any:
            with drop_demoted(self.connection_pool):
                return send(*args, **options)

        return outlast(attempt)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _Pipeline(Pipeline):
    def execute(self, raise_on_error: bool = True) -> list[Any]:
        send, stack, was_watching = super().execute, list(self.command_stack), self.watching
        is_explicit = self.explicit_transaction
        while True:
            try:
                with drop_demoted(self.connection_pool):
                    done: list[Any] = send(raise_on_error)
                own_login.accepted()
                complaint.over()
                return done
            except REDIS_ERRORS as exc:
                if not waits_for(exc):
                    raise
                if was_watching:
                    # What was watched may have changed meanwhile: the caller looks again.
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
