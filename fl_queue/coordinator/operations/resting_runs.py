"""
Ended runs without work left: the healer does not look at them each second.

An ended run may stay in Redis for months, so its cost counts. Of a resting run the healer reads the state,
sometimes the length of its results list, and rarely everything.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fl_queue.store import Store

#: Late updates of an ended run stay in its results list this long at most, seconds.
LOOK_S = 10.0
#: Everything of a resting run is looked at this often, seconds: a dead aggregator may hold messages of it.
LOOK_AT_ALL_S = 600.0
#: Evaluations of an ended run may wait for an evaluator that is not started yet, seconds.
EVALUATIONS_S = 5.0


@dataclass
class RestingRuns:
    """
    The runs at rest; a run that it does not know is awake.

    Args:
        store: Both servers.
    """

    store: Store
    #: Run -> time at which it is looked at again in any case.
    _until: dict[str, float] = field(default_factory=dict)
    _looked_at: float = 0.0

    def rest(self, run: str, for_s: float = LOOK_AT_ALL_S) -> None:
        """Let an ended run rest: no work on it is left now."""
        self._until[run] = time.monotonic() + for_s

    def awake(self, runs: Sequence[str]) -> list[str]:
        """The runs that have to be looked at. Args: ``runs``: all living runs."""
        now = time.monotonic()
        states = self.store.control.runs.states(runs)
        for run, state in zip(runs, states, strict=True):
            if state == "training" or self._until.get(run, now) <= now:
                self._until.pop(run, None)
        self._until = {run: self._until[run] for run in runs if run in self._until}
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            for run in self._with_results(list(self._until)):
                del self._until[run]
        return [run for run in runs if run not in self._until]

    def _with_results(self, runs: Sequence[str]) -> list[str]:
        lengths = self.store.data.results.counts(runs)
        return [run for run, length in zip(runs, lengths, strict=True) if length]
