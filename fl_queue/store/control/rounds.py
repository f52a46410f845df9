"""Rounds on the control server: opened, claimed by an aggregator, ended once by the commit script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from redis.client import Pipeline

from fl_queue.protocol import identifiers
from fl_queue.protocol.records import Mode
from fl_queue.protocol.secure_state import Stage
from fl_queue.protocol.state import (
    Glance,
    RoundPhase,
    RoundState,
    RunPhase,
    RunState,
    parse_round_state,
)
from fl_queue.protocol.state_fields import parse_table
from fl_queue.store import keyspace
from fl_queue.store.connection import script
from fl_queue.store.control.receipts import Receipts
from fl_queue.store.control.round_end import RoundEnd
from fl_queue.store.control.runs import MAX_TICK_S
from fl_queue.store.control.server import ControlServer, as_text, number_of

#: A round whose data server lost its content gets this much more time: outboxes have the updates.
PUSH_AGAIN_S = 30.0


class Rounds:
    """
    Reads and writes of rounds.

    Args:
        server: The control server.
        receipts: Its receipts.
    """

    def __init__(self, server: ControlServer, receipts: Receipts) -> None:
        self._server, self._receipts = server, receipts
        self._redis = server.redis
        self._tick = script(server.redis, "tick")
        self._claim = script(server.redis, "claim")
        self._end_round = script(server.redis, "end_round")

    def get(self, run: str, number: int) -> RoundState | None:
        """State of a round; None when it never was, or its keys are gone."""
        raw = as_text(self._server.hash(keyspace.round_(run, number)))
        return parse_round_state(number, raw) if "state" in raw else None

    def newest_open(self, state: RunState) -> RoundState | None:
        """A run's newest round, while it is open."""
        current = self.get(state.run_id, state.round) if state.round >= 0 else None
        return current if current is not None and current.open else None

    def glance(self, run: str, number: int) -> Glance | None:
        """
        Fields that decide whether a job of a round is still needed; None when there is no such run.

        The hashes hold every client of the run: each worker asks this every two seconds.
        """
        state, newest = cast(
            list["bytes | None"], self._redis.hmget(keyspace.run(run), "state", "round")
        )
        if state is None or newest is None:
            return None
        found, mode, stage = cast(
            list["bytes | None"],
            self._redis.hmget(keyspace.round_(run, number), "state", "mode", "stage"),
        )
        return Glance(
            state == RunPhase.training.encode(),
            int(newest),
            mode == Mode.asynchronous.encode(),
            found in (None, RoundPhase.open.encode()),
            stage == Stage.unmask.encode(),
        )

    def base_digest(self, run: str, number: int) -> str | None:
        """Digest of the version that a round starts from; None when its keys are not there."""
        raw = cast("bytes | None", self._redis.hget(keyspace.round_(run, number), "base_digest"))
        return None if raw is None else raw.decode(errors="replace")

    def jobs(self, run: str, number: int) -> dict[str, dict[str, Any]]:
        """Client (or ``aggregator``) -> its newest job: ``{job, queue, function, attempt}``."""
        key = keyspace.round_jobs(run, number)
        return self._server.unreadable.each(
            key,
            self._server.hash(key).items(),
            lambda who, text: (identifiers.parse_name(who), parse_table(text)),
        )

    def job(self, run: str, number: int, who: str) -> dict[str, Any]:
        """The newest job of one of them; empty when it has none."""
        text = cast("bytes | None", self._redis.hget(keyspace.round_jobs(run, number), who))
        return parse_table(text) if text else {}

    def count_time(self, run: str, number: int) -> float | None:
        """Count time towards a round's ``elapsed_s``; None when it is not open."""
        return number_of(
            self._tick(keys=[keyspace.round_(run, number)], args=["elapsed_s", MAX_TICK_S])
        )

    def limits(self, run: str, number: int) -> tuple[float, float | None]:
        """By counted time of a round: its deadline, and when its quorum was in, if it was."""
        deadline, quorum_at = cast(
            list["bytes | None"],
            self._redis.hmget(keyspace.round_(run, number), "deadline_s", "quorum_at_s"),
        )
        return float(deadline or 0), number_of(quorum_at)

    def claim(
        self, run: str, number: int, job_id: str, incarnation: str = "", above: int = 0
    ) -> int:
        """
        The next fence for the aggregator job that starts on a round; 0: nothing to do for it.

        Args:
            incarnation: Its token; then it alone can end the round.
            above: A fence that is known to have been in use, should this server have lost it.
        """
        keys = [
            keyspace.run(run),
            keyspace.round_(run, number),
            keyspace.round_updates(run, number),
            keyspace.round_jobs(run, number),
        ]
        return int(self._claim(keys=keys, args=[number, job_id, incarnation, above]))

    def is_claimed(self, run: str, number: int, incarnation: str) -> bool:
        """Whether a round is open, and the claim with this token is its newest one."""
        found = self._redis.hmget(keyspace.round_(run, number), "state", "claimed_by")
        return found == [RoundPhase.open.encode(), incarnation.encode()]

    def set_quorum_at(self, run: str, number: int, elapsed_s: float) -> None:
        """Note when the quorum was reached, the first time."""
        key = keyspace.round_(run, number)
        self._server.write_if(key, ["HSETNX", key, "quorum_at_s", f"{elapsed_s:.3f}"])

    def note_failure(self, run: str, number: int, reason: str) -> int:
        """Note why an open round could not be ended; how often running it was this, 0: it is not open."""
        key, count = keyspace.round_(run, number), 0

        def body(pipe: Pipeline) -> Callable[[], None] | None:
            nonlocal count
            raw = cast("list[bytes | None]", pipe.hmget(key, "state", "failure", "failures"))
            if raw[0] != RoundPhase.open.encode():
                return None
            count = int(raw[2] or 0) + 1 if raw[1] == reason.encode() else 1
            found: dict[Any, Any] = {"failure": reason, "failures": count}
            return lambda: cast(None, pipe.hset(key, mapping=found))

        return count if self._server.transact([key], body) else 0

    def set_data_server(self, run: str, number: int, identity: str) -> None:
        """Note which data server holds the round's blobs from now on, with time to push them again."""
        key = keyspace.round_(run, number)
        # Of the quorum that was in nothing is left: the grace begins when there is one again.
        self._server.write_if(
            key,
            ["HDEL", key, "quorum_at_s"],
            ["HSET", key, "data_server", identity],
            ["HINCRBYFLOAT", key, "deadline_s", str(PUSH_AGAIN_S)],
        )

    def end(self, ending: RoundEnd) -> str:
        """
        Decide a round's outcome, once: the commit script.

        Returns:
            ``ok`` (also when this very call had come through before), else why it was refused.
        """
        answer = self._end_round(keys=ending.keys(), args=[ending.to_script()])
        decided = cast(bytes, answer).decode()
        return "ok" if decided == "same" else decided

    def forget(self, run: str, number: int) -> None:
        """
        Remove the keys of a round whose history record is enough; its late count stays.

        Nothing is removed of a round that is open: a failover may have lost its end, which the caller has seen.
        """
        late = self._receipts.count_of_late(run, number)
        if late:
            self._server.write_if(
                keyspace.run(run), ["HSETNX", keyspace.late(run), str(number), str(late)]
            )
        key = keyspace.round_(run, number)
        others = (
            keyspace.round_updates(run, number),
            keyspace.round_rejected(run, number),
            keyspace.round_stages(run, number),
            keyspace.round_jobs(run, number),
        )

        def body(pipe: Pipeline) -> Callable[[], None] | None:
            if pipe.hget(key, "state") == RoundPhase.open.encode():
                return None
            return lambda: cast(None, pipe.delete(key, *others))

        if self._server.transact([key], body):
            self._server.write_if(
                keyspace.run(run), ["HSET", keyspace.run(run), "cleaned", str(number + 1)]
            )
