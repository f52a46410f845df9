"""
Runs that have ended and of which nothing is left to do: the healer does not look at them each second.

A run is completed once and kept for months, so what it costs counts. Of one at rest the healer reads its
state, and now and then whether something has come of it since; looked at whole, it is rarely.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fl_queue.store import Store, ask_many, keyspace

#: Late updates of an ended run lie in its results list for so long at most.
LOOK_S = 10.0
#: Whatever else there may be: what a dead aggregator held, say.
LOOK_AT_ALL_S = 600.0
#: Evaluations of an ended run wait for an evaluator that nobody may have started.
EVALUATIONS_S = 5.0


@dataclass
class RestingRuns:
    """
    Which runs are at rest. What it forgets is looked at once more.

    Args:
        store: Both servers.
    """

    store: Store
    #: Run -> when it is to be looked at again, whatever comes.
    _until: dict[str, float] = field(default_factory=dict)
    _looked_at: float = 0.0

    def rest(self, run: str, for_s: float = LOOK_AT_ALL_S) -> None:
        """A run has ended, and all is done of it that can be done now."""
        self._until[run] = time.monotonic() + for_s

    def awake(self, runs: Sequence[str]) -> list[str]:
        """Those of all living runs that have to be looked at."""
        now = time.monotonic()
        states = ask_many(
            self.store.control.redis, runs, lambda pipe, run: pipe.hget(keyspace.run(run), "state")
        )
        for run, state in zip(runs, states, strict=True):
            if state == b"training" or self._until.get(run, now) <= now:
                self._until.pop(run, None)
        self._until = {run: self._until[run] for run in runs if run in self._until}
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            for run in self._with_results(list(self._until)):
                del self._until[run]
        return [run for run in runs if run not in self._until]

    def _with_results(self, runs: Sequence[str]) -> list[str]:
        lengths = ask_many(
            self.store.data.redis, runs, lambda pipe, run: pipe.llen(keyspace.results(run))
        )
        return [run for run, length in zip(runs, lengths, strict=True) if length]
