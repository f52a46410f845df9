"""Pauses of a site: files of its state folder, and its clock."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from fl_queue.client import pausing
from fl_queue.client.site import WorkerSettings
from fl_queue.errors import ConfigError

NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


@pytest.fixture
def site(tmp_path: Path) -> WorkerSettings:
    made = WorkerSettings(
        state_dir=tmp_path, client="hospital-a", quiet_hours=("08:00-11:00", "13:00-18:00")
    )
    pausing.register_client(made)
    return made


def test_a_pause_holds_until_it_is_ended(site: WorkerSettings, tmp_path: Path) -> None:
    assert pausing.why_paused(site, NOON) == ""

    assert pausing.pause(tmp_path, "hospital-a", "new\nscanner", NOON)
    reason = "paused by its site since 2026-11-25 12:00 UTC: new scanner"
    assert pausing.why_paused(site, NOON + timedelta(days=30)) == reason
    assert not pausing.pause(tmp_path, "hospital-a", "again", NOON + timedelta(hours=1))
    assert pausing.why_paused(site, NOON) == reason

    assert pausing.unpause(tmp_path, "hospital-a")
    assert pausing.why_paused(site, NOON) == ""
    assert not pausing.unpause(tmp_path, "hospital-a")


def test_a_pause_is_one_client_s(site: WorkerSettings, tmp_path: Path) -> None:
    other = WorkerSettings(state_dir=tmp_path, client="hospital-b")
    pausing.register_client(other)
    pausing.pause(tmp_path, "hospital-a", "", NOON)

    assert pausing.why_paused(other, NOON) == ""
    assert pausing.why_paused(WorkerSettings(state_dir=tmp_path), NOON) == ""


def test_a_damaged_pause_is_a_pause(site: WorkerSettings, tmp_path: Path) -> None:
    pausing.pause(tmp_path, "hospital-a", "", NOON)
    (tmp_path / "sites/hospital-a/paused").write_text("{")

    assert pausing.why_paused(site, NOON) == "paused by its site"


def test_quiet_hours_are_those_of_the_clock_that_is_given(site: WorkerSettings) -> None:
    early = NOON.astimezone(timezone(timedelta(hours=-3)))  # It is nine o'clock there.

    assert pausing.why_paused(site, NOON) == ""
    assert pausing.why_paused(site, early) == (
        "paused by its site: quiet hours 08:00-11:00 (UTC-03:00)"
    )
    assert pausing.why_paused(site, early + timedelta(hours=1)) == pausing.why_paused(site, early)
    assert pausing.why_paused(site, early + timedelta(hours=2)) == ""


def test_a_client_of_another_folder_is_refused_and_without_a_name_it_is_all(
    site: WorkerSettings, tmp_path: Path
) -> None:
    pausing.register_client(WorkerSettings(state_dir=tmp_path, client="hospital-b"))

    assert pausing.select_clients(tmp_path, ()) == ["hospital-a", "hospital-b"]
    assert pausing.select_clients(tmp_path, ("hospital-b",)) == ["hospital-b"]
    with pytest.raises(
        ConfigError, match=r"no worker of hospital-c has used.*did you mean hospital-"
    ):
        pausing.select_clients(tmp_path, ("hospital-c",))
    with pytest.raises(ConfigError, match="no client's worker has used"):
        pausing.select_clients(tmp_path / "elsewhere", ())
