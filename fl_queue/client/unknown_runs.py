"""
Delayed removal of a site's files of runs that the control server does not know.

Such a run was deleted, or the server is a wrong or an empty one: a wrong folder or URL, or a replica
without data. Then the finished updates of a site are the only copy of its work. They are removed for a
run with a tombstone, which is kept for a day, and after a run has been unknown for a counted day. The count
is in a file; each check adds the time since the previous one, at most ``MAX_STEP_S``. So a restart does not
reset it, and a jump of the clock adds little.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from fl_queue.common import files
from fl_queue.common.safe_json import dumps
from fl_queue.errors import LocalStorageError, StoreUnavailable, Trouble
from fl_queue.store import Control, queries

#: Counted time for which a run is unknown before its files are removed.
GONE_AFTER_S = 24 * 3600.0
#: Largest time that one check adds; supervisors check every five seconds.
MAX_STEP_S = 10.0
_FILE = "unknown-runs.json"


def may_go(control: Control, state_dir: Path) -> Callable[[str, int, str], bool]:
    """
    Make the predicate of ``outbox.sweep``: whether an update (run id, round, client) may be removed.

    Args:
        control: The control server.
        state_dir: The site's folder.
    """
    noted = UnknownRuns(control, state_dir)

    @cache
    def decide(run: str, number: int, who: str) -> bool:
        ended = queries.ended(control, run, number, who)
        if ended is None:
            return noted.is_gone(run)
        noted.forget(run)
        return ended

    return decide


class UnknownRuns:
    """
    Counted times for which runs have been unknown to the control server.

    Args:
        control: The control server.
        state_dir: The site's folder, with the file of counted times.
    """

    def __init__(self, control: Control, state_dir: Path) -> None:
        self._control = control
        self._file = state_dir / _FILE

    def is_gone(self, run: str) -> bool:
        """Whether a run was deleted, or has been unknown for a day. Each call adds to the count."""
        if self._control.runs.is_needed(run):
            self.forget(run)
            return False
        if self._is_deleted(run) or self._count(run) >= GONE_AFTER_S:
            self.forget(run)
            return True
        return False

    def _is_deleted(self, run: str) -> bool:
        try:
            return self._control.runs.is_deleted(run)
        except StoreUnavailable as exc:
            if exc.trouble is not Trouble.not_allowed:
                raise
            return False  # The user was made by an earlier release.

    def _count(self, run: str) -> float:
        noted, now = self._read(), time.time()
        seen = noted.get(run, {})
        counted, last = (_number(seen.get(name)) for name in ("counted_s", "looked_at"))
        step = min(max(now - last, 0.0), MAX_STEP_S) if last else 0.0
        noted[run] = {"counted_s": round(counted + step, 3), "looked_at": round(now, 3)}
        self._write(noted)
        return counted + step

    def forget(self, run: str) -> None:
        """Reset the count of a run that is known again."""
        noted = self._read()
        if noted.pop(run, None) is not None:
            self._write(noted)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            raw = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        return (
            {run: seen for run, seen in raw.items() if type(seen) is dict}
            if type(raw) is dict
            else {}
        )

    def _write(self, noted: dict[str, dict[str, Any]]) -> None:
        # What cannot be written is not counted: the run stays that much longer.
        with suppress(LocalStorageError, OSError):
            if noted:
                files.write_private(self._file, dumps(noted).encode())
            else:
                self._file.unlink(missing_ok=True)


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) else 0.0
