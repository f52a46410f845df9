"""
While a Redis server answers that it cannot serve, nothing ends and no training is lost; then work goes on.

A round for each outage: ``python -m tests.fault.outages`` walks all of them, and prints the seconds.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fault.outages import MOMENTS, REPLIES, Cell, Kind, Walk, cells, fleet_of

#: Each reply once; together they meet both servers at every moment.
SITES = [
    Cell("MISCONF", "control", "training"),
    Cell("NOREPLICAS", "data", "commit"),
    Cell("READONLY", "control", "push"),
    Cell("MASTERDOWN", "data", "training"),
    Cell("OOM", "control", "commit"),
    Cell("BUSY", "control", "training"),
    Cell("MAXCLIENTS", "control", "push"),
    Cell("NOPERM", "control", "training"),
    Cell("LOADING", "data", "push"),
    Cell("TOMORROW", "control", "commit"),
    Cell("restart", "control", "training"),
    Cell("NOREPLICAS", "control", "idle"),
]
POOL = [
    Cell("NOREPLICAS", "control", "training"),
    Cell("TOMORROW", "data", "push"),
    Cell("READONLY", "control", "commit"),
]


@pytest.mark.parametrize(("kind", "walked"), [("sites", SITES), ("pool", POOL)])
def test_nothing_ends_and_no_training_is_lost(
    kind: Kind, walked: list[Cell], tmp_path: Path, no_process_left: None
) -> None:
    with fleet_of(tmp_path, kind) as fleet:
        Walk(fleet, walked, hold_s=3.0).run()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sites", "pool"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("reply", REPLIES)
def test_a_minute_of_it(
    reply: str, moment: str, kind: Kind, tmp_path: Path, no_process_left: None
) -> None:
    with fleet_of(tmp_path, kind) as fleet:
        Walk(fleet, cells([reply], moments=[moment]), hold_s=60.0).run()  # type: ignore[list-item]
