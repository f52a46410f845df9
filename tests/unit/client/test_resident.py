"""The computing part of a worker: it reads the files that a request names, and answers when its own are written."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from fl_queue.client.resident import Resident
from fl_queue.config.run_config import RunConfig
from fl_queue.protocol.trainer_messages import Call, KeptState, ModelFile, Progress
from fl_queue.store.jobs.rq_types import TimedOut
from fl_queue.tasks.mnist import ThreesAndSevens
from fl_queue.training import stopping
from tests.support.site_rounds import SiteRounds, settings_of

CONFIG = RunConfig.from_dict({"run": {"task": "mnist-3v7"}, "train": {"epochs": 2}})


@pytest.fixture
def rounds(tmp_path: Path) -> SiteRounds:
    """A run with version 0."""
    site = settings_of(tmp_path)
    made = SiteRounds(site, CONFIG, Resident(site).handle)
    made.initialise()
    return made


def test_an_update_lies_in_the_outbox_under_the_token_of_its_request(rounds: SiteRounds) -> None:
    header = rounds.train(1).header

    assert (header.kind, header.token, header.round) == ("update", "token-train-1", 1)
    assert [(one.epoch, one.epochs) for one in rounds.reports] == [(0, 2), (1, 2), (2, 2)]
    assert all("accuracy" in one.finished for one in rounds.reports[1:])


def test_whatever_a_task_reports_of_an_epoch_passes_to_its_worker(
    rounds: SiteRounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ThreesAndSevens.train

    def train(self: Any, model: Any, data: Any, context: Any, on_epoch: Any) -> Any:
        many = {f"metric_{number}": 1.0 for number in range(300)}
        on_epoch(2**70, 2**70, {**many, "accuracy": 2**70, "loss": 0.5, "x" * 5000: 1.0})
        return original(self, model, data, context, on_epoch)

    monkeypatch.setattr(ThreesAndSevens, "train", train)
    rounds.train(1)
    received = [Progress.from_dict(json.loads(json.dumps(one.to_dict()))) for one in rounds.reports]

    assert [one.epoch for one in received] == [0, 2**53, 1, 2]
    assert received[1].finished == {"loss": 0.5}
    assert set(received[2].finished) == {"accuracy", "loss"}


def test_each_call_has_its_answer(rounds: SiteRounds) -> None:
    assert rounds.evaluate(1).header.metrics["num_examples"] > 0
    assert rounds.score().metrics["num_examples"] > 0
    assert rounds.facts().facts["input"] == "float32 (784)"


@pytest.mark.parametrize(
    "place", ["../outside", "cache/../../outside", "cache/link/body", "outbox/missing"]
)
def test_no_file_outside_the_state_folder_is_read(
    rounds: SiteRounds, place: str, tmp_path: Path
) -> None:
    asked = rounds.request(Call.train, 1)
    (tmp_path / "cache" / "link").symlink_to("/etc")
    assert asked.model is not None
    model = replace(asked.model, place=place)

    answer = rounds.ask(replace(asked, model=model), print)

    assert answer.outcome == ("lost" if "missing" in place else "failed")
    assert not list(tmp_path.glob("outbox/*"))


@pytest.mark.parametrize("nbytes", [0, 3139, 3141])
def test_a_version_of_another_size_is_no_version(rounds: SiteRounds, nbytes: int) -> None:
    asked = rounds.request(Call.train, 1)
    model = ModelFile(manifest=asked.model.manifest, place="cache/short")  # type: ignore[union-attr]
    (rounds.site.cache / "short").write_bytes(bytes(nbytes))

    answer = rounds.ask(replace(asked, model=model), print)

    assert answer.outcome == "lost"
    assert answer.failure is not None
    assert answer.failure.public == ""


def test_a_client_state_that_went_missing_is_asked_for_again(rounds: SiteRounds) -> None:
    config = RunConfig.from_dict(
        CONFIG.to_dict() | {"aggregation": {"strategy": "scaffold", "weighting": "uniform"}}
    )
    asked = replace(
        rounds.request(Call.train, 1),
        config=config.to_dict(),
        state=KeptState(place="client-state/run/a/1_0", states=("control",)),
    )

    assert rounds.ask(asked, print).outcome == "lost"


def test_an_outbox_that_takes_nothing_is_no_response_of_the_site(rounds: SiteRounds) -> None:
    (rounds.site.state_dir / "outbox").rmdir()
    (rounds.site.state_dir / "outbox").touch()

    assert rounds.ask(rounds.request(Call.train, 1), print).outcome == "lost"


def test_a_training_that_is_not_wanted_ends_at_its_next_batch(rounds: SiteRounds) -> None:
    def report(progress: Progress) -> None:
        seen.append(progress.epoch)
        if progress.epoch == 1:
            stopping.end_round()

    seen: list[int] = []
    answer = rounds.ask(rounds.request(Call.train, 1), report)

    assert (answer.outcome, seen) == ("ended", [0, 1])
    assert not list(rounds.site.outbox.glob("*"))
    assert rounds.train(1).header.num_examples > 0  # The next one is.


def test_the_timeout_of_a_job_in_this_process_passes(rounds: SiteRounds) -> None:
    def report(progress: Progress) -> None:
        raise TimedOut

    with pytest.raises(TimedOut):
        rounds.ask(rounds.request(Call.train, 1), report)


def test_an_error_of_the_data_is_an_answer_without_its_text(
    rounds: SiteRounds, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw: dict[str, Any] = {"run": {"task": "csv"}, "data": {"partition": "site"}}
    config = RunConfig.from_dict(raw | {"task": {"label": "age", "classes": "0,1"}})
    (tmp_path / "train.csv").write_text("age,weight\nsecret,1\n")
    site = replace(rounds.site, data_dir=str(tmp_path))
    asked = replace(rounds.request(Call.train, 1), config=config.to_dict())

    answer = Resident(site).handle(asked, print)

    assert answer.outcome == "failed"
    assert answer.failure is not None
    assert (answer.failure.kind, answer.failure.lasts) == ("DataError", True)
    assert "secret" not in str(answer)
    assert "secret" in caplog.text


def test_code_that_was_edited_is_for_a_fresh_process(
    rounds: SiteRounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "edited_task.py"
    file.write_text(
        "from fl_queue.tasks.mnist import ThreesAndSevens\nclass Edited(ThreesAndSevens): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "edited_task", raising=False)
    config = RunConfig.from_dict({"run": {"task": "edited_task:Edited"}, "train": {"epochs": 1}})
    site = replace(rounds.site, allow=("edited_task:Edited",))
    resident = Resident(site)
    made = SiteRounds(site, config, resident.handle)
    made.initialise()
    first = made.train(1).header.environment["task_code"]
    assert first == blake3(file.read_bytes()).hexdigest()

    file.write_text(file.read_text() + "# edited\n")
    for asked in (Call.train, Call.evaluate):
        assert resident.handle(made.request(asked, 2), print).outcome == "stale"
    # Nor with a new task object: the module stays as it was imported.
    again = Resident(site)
    for asked in (Call.facts, Call.train):
        assert again.handle(made.request(asked, 2), print).outcome == "stale"

    del sys.modules["edited_task"]  # As in a fresh process.
    again.tidy()
    fresh = SiteRounds(
        site, config, Resident(site).handle, arrays=made.arrays, manifest=made.manifest
    )
    second = fresh.train(2).header.environment["task_code"]
    assert second == blake3(file.read_bytes()).hexdigest() != first
