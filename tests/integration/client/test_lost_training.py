"""What a worker makes of an answer, and of a training that is lost before or after its response was written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fl_queue.client import outbox, round_job
from fl_queue.client.asking import Ask, Report
from fl_queue.client.assignment import ClientJob
from fl_queue.client.site import WorkerSettings
from fl_queue.errors import RoundEnded, TrainingLost
from fl_queue.protocol.records import CANNOT, Purpose
from fl_queue.protocol.trainer_messages import Answer, Failure, Request
from fl_queue.store import Store
from tests.support.manual_run import ManualRun


@pytest.fixture
def job(store: Store, tmp_path: Path) -> ClientJob:
    hand = ManualRun(store, tmp_path, "a", 8)
    site = WorkerSettings(state_dir=tmp_path / "site", client="a")
    return ClientJob(store, site, "a", hand.state, hand.round, hand.config, is_watched=False)


def answering(job: ClientJob, answer: Answer | None, token: str | None = "") -> Ask:
    """Writes a response under a token (empty: that of its request; None: nothing), then answers, or is lost."""

    def ask(request: Request, report: Report) -> Answer:
        if token is not None:
            header = replace(job.header("evaluation"), token=token or request.token)
            outbox.write(job.site.outbox, header)
        if answer is None:
            raise TrainingLost("its process ended (signal 9)", public=True)
        return answer

    return ask


@pytest.mark.parametrize("answer", [None, Answer(outcome="done")])
def test_a_response_that_was_written_is_used(job: ClientJob, answer: Answer | None) -> None:
    make = round_job.asking(answering(job, answer), Purpose.train)

    header, _ = round_job.find_or_make(job, make)

    assert header.kind == "evaluation"


@pytest.mark.parametrize("token", [None, "another"])
@pytest.mark.parametrize("answer", [None, Answer(outcome="done")])
def test_one_that_was_not_asked_for_is_not(
    job: ClientJob, answer: Answer | None, token: str | None
) -> None:
    make = round_job.asking(answering(job, answer, token), Purpose.train)

    with pytest.raises(TrainingLost, match=r"signal 9|not written"):
        round_job.find_or_make(job, make)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (Answer(outcome="ended"), RoundEnded, "round 1 ended while"),
        (Answer(outcome="lost"), TrainingLost, "TrainingLost; the full message"),
        (
            Answer(outcome="lost", failure=Failure(kind="OSError", line="line 3 of own")),
            TrainingLost,
            r"OSError \(line 3 of own\)",
        ),
    ],
)
def test_nothing_is_sent_of_a_job_that_is_tried_again(
    job: ClientJob, answer: Answer, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        round_job.find_or_make(job, round_job.asking(answering(job, answer, None), Purpose.train))

    assert not list(job.site.outbox.glob("*"))


@pytest.mark.parametrize("lasts", [False, True])
def test_a_failure_is_the_response(job: ClientJob, lasts: bool) -> None:
    failure = Failure(kind="DataError", public="line 3: not a number", is_whole=True, lasts=lasts)
    answer = Answer(outcome="failed", failure=failure)
    make = round_job.asking(answering(job, answer, None), Purpose.train)

    header, _ = round_job.find_or_make(job, make)

    assert (header.kind, header.reason) == ("failure", "DataError: line 3: not a number")
    assert header.environment == ({CANNOT: "DataError"} if lasts else {})
