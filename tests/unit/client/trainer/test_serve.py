"""A trainer whose worker has ended meanwhile."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fl_queue.client.trainer import serve
from fl_queue.client.trainer.protocol import Message, encode, new_id

log = logging.getLogger(__name__)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


class Training:
    """Reports as often as it can, and takes every Exception for its own."""

    def handle(self, body: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> serve.Reply:
        """Report to the end that is closed."""
        try:
            while True:
                report({"epoch": 1})
        except Exception:
            log.exception("the training failed")
        return serve.Reply({"outcome": "failed"})

    def tidy(self) -> list[str]:
        """Leave all as it is."""
        return []

    def end_round(self) -> None:
        """Go on."""


def test_a_report_to_a_worker_that_has_ended_is_no_failure_of_the_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    mine, other = socket.socketpair()
    mine.sendall(encode(Message("request", new_id("job"), {})))
    mine.close()

    with other:
        status = serve.serve(other, Training())

    assert status == 0
    assert [record.message for record in caplog.records] == [
        "the worker has ended, and its training process with it"
    ]
