"""Quiet hours: how they are written, and which moments are in them."""

from datetime import datetime

import pytest

from fl_queue.client import quiet_hours
from fl_queue.errors import ConfigError


def at(clock: str) -> datetime:
    return datetime.strptime(f"2026-11-25 {clock}", "%Y-%m-%d %H:%M")


@pytest.mark.parametrize(
    ("span", "inside", "outside"),
    [
        ("08:00-18:00", ["08:00", "12:30", "17:59"], ["07:59", "18:00", "00:00"]),
        ("22:00-06:00", ["22:00", "23:59", "00:00", "05:59"], ["21:59", "06:00", "12:00"]),
        ("00:00-24:00", ["00:00", "12:00", "23:59"], []),
        ("9:05-9:06", ["09:05"], ["09:04", "09:06"]),
        ("20:00-00:00", ["20:00", "23:59"], ["00:00", "19:59"]),
    ],
)
def test_a_moment_is_in_a_span_from_its_first_minute_to_before_its_last(
    span: str, inside: list[str], outside: list[str]
) -> None:
    assert [clock for clock in inside if quiet_hours.quiet([span], at(clock)) is None] == []
    assert [clock for clock in outside if quiet_hours.quiet([span], at(clock)) is not None] == []


def test_the_current_span_is_reported() -> None:
    spans = ["08:00-12:00", "13:00-18:00"]

    assert str(quiet_hours.quiet(spans, at("14:00"))) == "13:00-18:00"
    assert quiet_hours.quiet(spans, at("12:30")) is None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("8-18", "is not HH:MM-HH:MM"),
        ("08:00", "is not HH:MM-HH:MM"),
        ("08:00-18:00,20:00-22:00", "is not HH:MM-HH:MM"),
        ("25:00-26:00", "no clock shows"),
        ("24:00-06:00", "no clock shows"),
        ("08:60-18:00", "no clock shows"),
        ("08:00-24:01", "no clock shows"),
        ("08:00-08:00", "no time at all"),
    ],
)
def test_what_is_no_span_is_refused_with_what_to_write(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as refused:
        quiet_hours.parse(text)

    assert refused.value.field == "--quiet-hours"
    assert part in str(refused.value)
