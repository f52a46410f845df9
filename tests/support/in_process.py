"""Jobs of a client or the evaluator called in the tests' own process, and computed in it."""

from __future__ import annotations

import pytest

from fl_queue.client.asking import Report
from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.protocol.trainer_messages import Answer, Request
from workers import site_worker


def compute_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no training process started: a worker's questions are answered by the same code, in this process."""

    def ask(request: Request, report: Report) -> Answer:
        return Resident(WorkerSettings.from_environ()).handle(request, report)

    monkeypatch.setattr(site_worker, "ask", ask)


@pytest.fixture(autouse=True)
def computed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a module that imports it: the jobs that its tests call are computed here."""
    compute_here(monkeypatch)
