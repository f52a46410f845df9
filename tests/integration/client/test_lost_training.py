"""What a worker makes of an answer, of a lost training, and what it keeps for one that has not begun."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fl_queue.client import outbox, round_job, scoring_job
from fl_queue.client.asking import Ask, Report
from fl_queue.client.assignment import ClientJob
from fl_queue.client.site import WorkerSettings
from fl_queue.errors import RoundEnded, TrainingLost
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.records import CANNOT, INPUTS, Purpose
from fl_queue.protocol.trainer_messages import Answer, Failure, Request
from fl_queue.store import Store, keyspace
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


def test_a_model_stays_until_the_training_process_has_opened_it(
    job: ClientJob, redis_urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bytes] = []

    def ask(request: Request, report: Report) -> Answer:
        # Others on this machine fetch newer versions meanwhile.
        for number in range(3):
            body = bytes([number]) * 8
            digest = tensor_layout.body_digest(body)
            job.store.data.chunks.put(keyspace.model_blob(job.run, digest), [body], None)
            job.cache.fetch(digest, len(body))
        assert request.model is not None
        opened.append((job.site.state_dir / request.model.place).read_bytes())
        return Answer(outcome="ended")

    with pytest.raises(RoundEnded):
        round_job.asking(ask, Purpose.train)(job)
    url, blob_url = redis_urls
    for name, value in replace(job.site, url=url, blob_url=blob_url).to_environ().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingLost):
        scoring_job.score(job.run, 0, ask)

    assert [tensor_layout.body_digest(body) for body in opened] == [job.round.base_digest] * 2


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
    assert job.round.inputs
    cannot = {CANNOT: "DataError"} if lasts else {}
    assert header.environment == {INPUTS: job.round.inputs, **cannot}
