"""Runs on the control server: names, states, config segments, and the reports compared before round 1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from fl_queue.common.safe_json import loads
from fl_queue.common.schema import fits
from fl_queue.errors import MessageError
from fl_queue.protocol import identifiers
from fl_queue.protocol.state import RunState, parse_run_state
from fl_queue.store import keyspace
from fl_queue.store.batching import ask_many
from fl_queue.store.connection import script
from fl_queue.store.control.server import ControlServer, as_text, number_of

#: Longest step that ``tick.lua`` counts, seconds: outages and clock jumps count as no more.
MAX_TICK_S = 2.0


class Runs:
    """
    Reads and writes of runs.

    Args:
        server: The control server.
    """

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._redis = server.redis
        self._tick = script(server.redis, "tick")

    def names(self) -> dict[str, str]:
        """Name -> run id of every living run."""
        return self._server.unreadable.each(
            keyspace.RUNS,
            self._server.hash(keyspace.RUNS).items(),
            lambda name, run: (
                identifiers.parse_name(name, "run name"),
                identifiers.parse_run_id(run),
            ),
        )

    def id_of(self, name: str) -> str | None:
        """Run id of the living run of that name (or itself, when given a living run id)."""
        living = self.names()
        return living.get(name) or (name if name in living.values() else None)

    def get(self, run: str) -> RunState | None:
        """
        State of a run by run id; None when there is no such run.

        Raises:
            MessageError: It cannot be read. That is no reason to treat the run as deleted.
        """
        raw = as_text(self._server.hash(keyspace.run(run)))
        return parse_run_state(run, raw) if "state" in raw else None

    def states(self, runs: Iterable[str]) -> list[str | None]:
        """The states of some runs, in their order; None where there is no such run."""
        found = ask_many(self._redis, runs, lambda pipe, run: pipe.hget(keyspace.run(run), "state"))
        return [None if state is None else state.decode(errors="replace") for state in found]

    def living(self) -> list[RunState]:
        """Every living run, by name; without one that is deleted meanwhile, or has an unreadable state."""
        found = []
        for name, run in sorted(self.names().items()):
            try:
                state = self.get(run)
            except MessageError as exc:
                self._server.unreadable.note(keyspace.run(run), name, exc)
            else:
                found += [] if state is None else [state]
        return found

    def is_deleted(self, run: str) -> bool:
        """Whether a run was deleted within the last day."""
        return self._redis.zscore(keyspace.DELETED, run) is not None

    def is_needed(self, run: str) -> bool:
        """Whether the run, or one restored from it, exists: then clients keep their state of it."""
        return self.get(run) is not None or bool(self._redis.hexists(keyspace.RESTORED, run))

    def config_segments(self, run: str) -> list[dict[str, Any]]:
        """The recorded config segments: ``{"from_round": n, "config": {...}}``, oldest first."""
        text = self._server.string(keyspace.config(run))
        found = loads(text or b"[]", f"the config of run {run}")
        if not fits(found, list[dict[str, Any]]) or any("config" not in each for each in found):
            raise MessageError(f"not the config of run {run}: no list of segments")
        return cast(list[dict[str, Any]], found)

    def fence(self, run: str) -> int:
        """The newest fence of a run's aggregators."""
        return int(self._server.field(keyspace.run(run), "fence") or 0)

    def oldest_round(self, run: str) -> int:
        """The oldest round whose keys may still be there."""
        return int(self._server.field(keyspace.run(run), "cleaned") or 0)

    def count_waiting(self, run: str) -> float | None:
        """Count time a run waits for clients (``waited_s``); None when it is not training."""
        return number_of(self._tick(keys=[keyspace.run(run)], args=["waited_s", MAX_TICK_S]))

    def site_reports(self, run: str) -> dict[str, bytes]:
        """Client -> its record in the comparison before round 1."""
        raw = self._server.hash(keyspace.sites(run))
        # Not client ids alone: one field holds the facts of the majority.
        return {client.decode(errors="replace"): raw[client] for client in sorted(raw)}

    def forget_site_reports(self, run: str) -> None:
        """Have all sites asked again before the next round."""
        self._server.redis.delete(keyspace.sites(run))
