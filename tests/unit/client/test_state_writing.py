"""What a client keeps is on its disk before the update is in the outbox."""

from __future__ import annotations

from pathlib import Path

from fl_queue.client import outbox
from fl_queue.client.resident import Resident
from fl_queue.config.run_config import RunConfig
from fl_queue.protocol.trainer_messages import Call
from tests.support.site_rounds import SiteRounds, settings_of

CONFIG = RunConfig.from_dict(
    {
        "run": {"task": "mnist-3v7"},
        "aggregation": {"strategy": "scaffold", "weighting": "uniform"},
        "train": {"epochs": 1},
    }
)


def begun(folder: Path) -> SiteRounds:
    site = settings_of(folder)
    made = SiteRounds(site, CONFIG, Resident(site).handle)
    made.initialise()
    return made


def test_the_state_is_named_by_its_update_and_the_next_round_begins_with_it(tmp_path: Path) -> None:
    rounds = begun(tmp_path)

    first = rounds.train(1)
    second = rounds.train(2)

    assert first.state
    assert second.state != first.state
    assert second.header.environment["client_state"] == "of round 1"


def test_without_its_state_no_update_is_written(tmp_path: Path) -> None:
    rounds = begun(tmp_path)
    rounds.site.client_states.touch()

    answer = rounds.ask(rounds.request(Call.train, 1), print)

    assert answer.outcome == "failed"
    assert answer.failure is not None
    assert (answer.failure.kind, answer.failure.lasts) == ("LocalStorageError", True)
    assert outbox.read(outbox.path_of(rounds.site.outbox, rounds.run, 1, "a")) is None
