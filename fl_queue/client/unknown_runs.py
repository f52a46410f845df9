"""
Runs that the control server does not know: what a site keeps of them is not thrown away at once.

Such a run was deleted; or the server is another one, or empty: started with the wrong folder, a replica
that had nothing yet, a wrong URL. Then the finished updates of a site are all that is left of its work. So
they are removed only for a run that was deleted, which a tombstone shows for a day, or after a day in which
the run was looked for and not found. That day is counted, in a file: each look adds the time since the look
before it, and a few seconds at most. So restarts lose nothing of it, and a clock that jumps adds nothing.
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

#: Counted time for which a run has to be unknown before what is kept of it is removed.
GONE_AFTER_S = 24 * 3600.0
#: A look adds no more than this: supervisors look every five seconds.
LONGEST_STEP_S = 10.0
_FILE = "unknown-runs.json"


def may_go(control: Control, state_dir: Path) -> Callable[[str, int, str], bool]:
    """
    Whether a finished update is not wanted any more, by run id, round and whose it is; for ``outbox.sweep``.

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
    Runs that the control server does not know, and the time since.

    Args:
        control: The control server.
        state_dir: The site's folder; how long runs have been unknown is in a file there.
    """

    def __init__(self, control: Control, state_dir: Path) -> None:
        self._control = control
        self._file = state_dir / _FILE

    def is_gone(self, run: str) -> bool:
        """Whether a run was deleted, or has been unknown for a day; asked again, the time counts on."""
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
        step = min(max(now - last, 0.0), LONGEST_STEP_S) if last else 0.0
        noted[run] = {"counted_s": round(counted + step, 3), "looked_at": round(now, 3)}
        self._write(noted)
        return counted + step

    def forget(self, run: str) -> None:
        """A run is known: no time counts that it was not."""
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
