"""
The control server: runs, rounds, receipts, history, clients and workers.

Reads return frozen values; writes that decide something are Lua scripts or WATCH transactions,
so callers may race and repeat. What RQ stores is ``store/jobs/dispatch.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import redis
from redis.client import Pipeline

from fl_queue.common.safe_json import fits, loads
from fl_queue.errors import MessageError
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import Manifest, Outcome, Receipt, RoundRecord, dumps
from fl_queue.protocol.state import Glance, RoundState, RunState, parse_round_state, parse_run_state
from fl_queue.protocol.state_fields import (
    parse_evaluation,
    parse_receiver,
    parse_table,
    parse_version,
    parse_whole,
)
from fl_queue.store import keyspace
from fl_queue.store.connection import script
from fl_queue.store.enrolment_pins import Pins
from fl_queue.store.events import Events, event_command
from fl_queue.store.presence import as_text
from fl_queue.store.rejections import EVENTS_KEPT

LONGEST_TICK_S = 2.0
#: A round whose data server lost its content gets this much more time: outboxes have the updates.
PUSH_AGAIN_S = 30.0


class Control(Events):
    """
    Every read and write of run and round state.

    Args:
        client: A retrying client.
        pins: What this machine knows of who is enrolled; without them the server is believed.
    """

    def __init__(self, client: redis.Redis, pins: Pins | None = None) -> None:
        super().__init__(client)
        self.pins = pins or self.pins
        self._tick = script(client, "tick")
        self._claim = script(client, "claim")
        self._receipt = script(client, "receipt")
        self._end_round = script(client, "end_round")

    # Runs

    def run_names(self) -> dict[str, str]:
        """Name -> run id of every living run."""
        return self.unreadable.each(
            keyspace.RUNS,
            self._hash(keyspace.RUNS).items(),
            lambda name, run: (
                identifiers.parse_name(name, "run name"),
                identifiers.parse_run_id(run),
            ),
        )

    def run_id(self, name: str) -> str | None:
        """Run id of the living run of that name (or itself, when given a living run id)."""
        living = self.run_names()
        return living.get(name) or (name if name in living.values() else None)

    def run(self, run: str) -> RunState | None:
        """
        State of a run by run id; None when there is no such run.

        Raises:
            MessageError: It cannot be read. It is no reason to think that the run is gone.
        """
        raw = as_text(self._hash(keyspace.run(run)))
        return parse_run_state(run, raw) if "state" in raw else None

    def living_runs(self) -> list[RunState]:
        """Every living run, by name; without one that is deleted meanwhile, or whose state cannot be read."""
        found = []
        for name, run in sorted(self.run_names().items()):
            try:
                state = self.run(run)
            except MessageError as exc:
                self.unreadable.note(keyspace.run(run), name, exc)
            else:
                found += [] if state is None else [state]
        return found

    def glance(self, run: str, number: int) -> Glance | None:
        """
        What decides whether a job of a round is wanted still; None when there is no such run.

        The hashes hold every client of the run: each worker asks this every two seconds.
        """
        state, newest = cast(
            list["bytes | None"], self.redis.hmget(keyspace.run(run), "state", "round")
        )
        if state is None or newest is None:
            return None
        found, mode = cast(
            list["bytes | None"], self.redis.hmget(keyspace.round_(run, number), "state", "mode")
        )
        return Glance(state == b"training", int(newest), mode == b"async", found in (None, b"open"))

    def base_digest(self, run: str, number: int) -> str | None:
        """Digest of the version that a round starts from; None when its keys are not there."""
        raw = cast("bytes | None", self.redis.hget(keyspace.round_(run, number), "base_digest"))
        return None if raw is None else raw.decode(errors="replace")

    def is_deleted(self, run: str) -> bool:
        """Whether a run was deleted within the last day."""
        return self.redis.zscore(keyspace.DELETED, run) is not None

    def is_needed(self, run: str) -> bool:
        """Whether there is such a run, or one that was restored from it: what clients keep is its, too."""
        return self.run(run) is not None or bool(self.redis.hexists(keyspace.RESTORED, run))

    def config_segments(self, run: str) -> list[dict[str, Any]]:
        """The recorded config segments: ``{"from_round": n, "config": {...}}``, oldest first."""
        found = loads(self._get(keyspace.config(run)) or b"[]", f"the config of run {run}")
        if not fits(found, list[dict[str, Any]]) or any("config" not in each for each in found):
            raise MessageError(f"not the config of run {run}: no list of segments")
        return cast(list[dict[str, Any]], found)

    def manifest(self, run: str) -> Manifest | None:
        """The run's manifest; None before version 0."""
        text = self._get(keyspace.manifest(run))
        return Manifest.from_json(text) if text else None

    def versions(self, run: str) -> dict[int, dict[str, Any]]:
        """Version -> {digest, round}, rising."""
        key = keyspace.versions(run)
        found = self.unreadable.each(
            key,
            self._hash(key).items(),
            lambda number, text: (parse_whole(number), parse_version(text)),
        )
        return {version: found[version] for version in sorted(found)}

    def version(self, run: str, number: int) -> dict[str, Any]:
        """One of them; empty when there is none."""
        text = cast("bytes | None", self.redis.hget(keyspace.versions(run), str(number)))
        return parse_version(text) if text else {}

    def history(self, run: str, last: int = 0) -> list[RoundRecord]:
        """Every ended round, in order; or the ``last`` so many."""
        return [*self._records(run, -last).values()]

    def history_from(self, run: str, place: int) -> tuple[list[RoundRecord], int]:
        """Ended rounds from a place in the history on, and the place behind the last."""
        count = cast(int, self.redis.llen(keyspace.history(run)))
        found = self._records(run, place) if place < count else {}
        return [*found.values()], max(count, *(index + 1 for index in found)) if found else count

    def _records(self, run: str, first: int) -> dict[int, RoundRecord]:
        """Place, from ``first`` on, -> the record there."""
        key = keyspace.history(run)
        raw = cast(list[bytes], self.redis.lrange(key, first, -1))
        return self.unreadable.each(
            key, enumerate(raw, first), lambda place, text: (place, RoundRecord.from_json(text))
        )

    def late(self, run: str) -> dict[int, int]:
        """Round -> updates that came after it had ended."""
        counts = self.unreadable.each(
            keyspace.late(run),
            self._hash(keyspace.late(run)).items(),
            lambda number, count: (parse_whole(number), parse_whole(count)),
        )
        state = self.run(run)
        for number in range(max(state.round - 2, 0), state.round + 1) if state else ():
            found = sum(receipt.status == "late" for receipt in self.receipts(run, number).values())
            if found:
                counts[number] = found
        return counts

    def transact(
        self, watched: Iterable[str], body: Callable[[Pipeline], Callable[[], None] | None]
    ) -> bool:
        """
        Compare and set: ``body`` reads under WATCH and returns the writes, or None for nothing to do.

        Returns:
            Whether the writes were made. False also when somebody else changed a watched key, or
            the connection broke: look again, and repeat if it is still wanted.
        """
        with self.redis.pipeline() as pipe:
            try:
                pipe.watch(*watched)
                write = body(pipe)
                if write is None:
                    return False
                pipe.multi()
                write()
                pipe.execute()
            except redis.WatchError:
                return False
        return True

    # Rounds

    def round(self, run: str, number: int) -> RoundState | None:
        """State of a round; None when it never was, or its keys are gone."""
        raw = as_text(self._hash(keyspace.round_(run, number)))
        return parse_round_state(number, raw) if "state" in raw else None

    def open_round(self, state: RunState) -> RoundState | None:
        """A run's newest round, while it is open."""
        current = self.round(state.run_id, state.round) if state.round >= 0 else None
        return current if current is not None and current.open else None

    def receipts(self, run: str, number: int) -> dict[str, Receipt]:
        """Client (or ``client:status`` of a further update) -> receipt."""
        key = keyspace.round_updates(run, number)
        return self.unreadable.each(
            key,
            self._hash(key).items(),
            lambda who, text: (parse_receiver(who), Receipt.from_json(text)),
        )

    def jobs(self, run: str, number: int) -> dict[str, dict[str, Any]]:
        """Client (or ``aggregator``) -> its newest job: ``{job, queue, function, attempt}``."""
        key = keyspace.round_jobs(run, number)
        return self.unreadable.each(
            key,
            self._hash(key).items(),
            lambda who, text: (identifiers.parse_name(who), parse_table(text)),
        )

    def job(self, run: str, number: int, who: str) -> dict[str, Any]:
        """The newest job of one of them; empty when it has none."""
        text = cast("bytes | None", self.redis.hget(keyspace.round_jobs(run, number), who))
        return parse_table(text) if text else {}

    def tick_round(self, run: str, number: int) -> float | None:
        """Count time towards a round's ``elapsed_s``; None when it is not open."""
        return _number(
            self._tick(keys=[keyspace.round_(run, number)], args=["elapsed_s", LONGEST_TICK_S])
        )

    def limits(self, run: str, number: int) -> tuple[float, float | None]:
        """By counted time of a round: its deadline, and when its quorum was in, if it was."""
        deadline, quorum_at = cast(
            list["bytes | None"],
            self.redis.hmget(keyspace.round_(run, number), "deadline_s", "quorum_at_s"),
        )
        return float(deadline or 0), _number(quorum_at)

    def tick_waiting(self, run: str) -> float | None:
        """Count time a run waits for clients (``waited_s``); None when it is not training."""
        return _number(self._tick(keys=[keyspace.run(run)], args=["waited_s", LONGEST_TICK_S]))

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

    def set_quorum_at(self, run: str, number: int, elapsed_s: float) -> None:
        """Note when the quorum was reached, the first time."""
        key = keyspace.round_(run, number)
        self._write_if(key, ["HSETNX", key, "quorum_at_s", f"{elapsed_s:.3f}"])

    def note_failure(self, run: str, number: int, reason: str) -> int:
        """Note why an open round could not be ended; how often running it was this, 0: it is not open."""
        key, count = keyspace.round_(run, number), 0

        def body(pipe: Pipeline) -> Callable[[], None] | None:
            nonlocal count
            raw = cast("list[bytes | None]", pipe.hmget(key, "state", "failure", "failures"))
            if raw[0] != b"open":
                return None
            count = int(raw[2] or 0) + 1 if raw[1] == reason.encode() else 1
            found: dict[Any, Any] = {"failure": reason, "failures": count}
            return lambda: cast(None, pipe.hset(key, mapping=found))

        return count if self.transact([key], body) else 0

    def set_data_server(self, run: str, number: int, identity: str) -> None:
        """Note which data server holds the round's blobs from now on, with time to push them again."""
        key = keyspace.round_(run, number)
        # Of the quorum that was in nothing is left: the grace begins when there is one again.
        self._write_if(
            key,
            ["HDEL", key, "quorum_at_s"],
            ["HSET", key, "data_server", identity],
            ["HINCRBYFLOAT", key, "deadline_s", str(PUSH_AGAIN_S)],
        )

    def write_receipt(
        self, run: str, number: int, client: str, receipt: Receipt, fence: int | None
    ) -> bool:
        """
        Record what became of an update, with an event.

        Args:
            fence: The writer's, for an open round; None for a round that has ended.

        Returns:
            Whether it was news.
        """
        return bool(self.record_receipts(run, number, {client: receipt}, fence))

    def record_receipts(
        self,
        run: str,
        number: int,
        receipts: Mapping[str, Receipt],
        fence: int | None,
        group: str = "",
    ) -> int:
        """
        Record what became of several updates, all at once, with events.

        Args:
            receipts: Client -> receipt.
            fence: The writer's, for an open round; None for a round that has ended.
            group: Whose updates came as one: one event tells of all that were received.

        Returns:
            How many were news.
        """
        events = [_event_of(number, client, receipt) for client, receipt in receipts.items()]
        came = [event for event in events if event["event"] == "update_received"]
        if group and came:
            events = [event for event in events if event not in came]
            events.append({**came[0], "client": group, "clients": len(came)})
        keys = [
            keyspace.round_(run, number),
            keyspace.round_updates(run, number),
            keyspace.events(run),
        ]
        args: list[Any] = [
            dumps({client: receipt.to_json() for client, receipt in receipts.items()}),
            dumps([dumps(event) for event in events]),
            EVENTS_KEPT,
            "" if fence is None else fence,
        ]
        return int(self._receipt(keys=keys, args=args))

    def write_receipts(self, run: str, number: int, receipts: Mapping[str, Receipt]) -> None:
        """Write receipts again that a round had, under the fields they had."""
        key = keyspace.round_updates(run, number)
        commands = [["HSET", key, who, receipt.to_json()] for who, receipt in receipts.items()]
        self._write_if(keyspace.round_(run, number), *commands)

    def forget_receipts(self, run: str, number: int) -> None:
        """Forget what came of a round: it has to come once more."""
        key, updates = keyspace.round_(run, number), keyspace.round_updates(run, number)
        self._write_if(key, ["DEL", updates], ["HDEL", key, "quorum_at_s"])

    def count_late(self, run: str, number: int, client: str) -> None:
        """Count an update of a round whose keys are gone, with an event."""
        event = {
            "event": "update_rejected",
            "round": number,
            "client": client,
            "status": "late",
            "reason": f"round {number} had ended long ago",
        }
        self._write_if(
            keyspace.run(run),
            ["HINCRBY", keyspace.late(run), str(number), "1"],
            event_command(run, event),
        )

    def end_round(
        self,
        run: str,
        number: int,
        *,
        fence: int,
        token: str,
        outcome: Outcome,
        reason: str,
        record: RoundRecord | None,
        receipts: Mapping[str, Receipt],
        max_abandoned: int,
        version: int | None = None,
        digest: str = "",
        download: str = "",
        manifest: Manifest | None = None,
        server_state: Mapping[str, str] | None = None,
        keeping: Mapping[str, tuple[int, str]] | None = None,
        incarnation: str = "",
        signature: str = "",
        begins_anew: bool = False,
    ) -> str:
        """
        Decide a round's outcome, once: the commit script.

        Args:
            download: Digest of the new version's encoded body, if clients fetch that.
            server_state: Name -> digest of the strategy's state that belongs to the new version.
            keeping: Client -> round of the job and digest of its accepted update, of clients that keep something.
            incarnation: Token that the round was claimed with; empty: of no aggregator.
            signature: The operator's, of the new version; empty: it has none.
            begins_anew: Whether what the strategy keeps is zero again, with the new version.

        Returns:
            ``ok`` (also when this very call had come through before), else why it was refused.
        """
        event = {"event": f"round_{outcome}", "round": number, "reason": reason, "version": version}
        keys = [
            keyspace.run(run),
            keyspace.round_(run, number),
            keyspace.round_updates(run, number),
            keyspace.history(run),
        ]
        keys += [
            keyspace.events(run),
            keyspace.versions(run),
            keyspace.manifest(run),
            keyspace.accepted(run),
        ]
        args: list[Any] = [
            number,
            fence,
            token,
            outcome,
            reason,
            "" if version is None else version,
            digest,
        ]
        args += [
            record.to_json() if record else "",
            dumps({client: receipt.to_json() for client, receipt in receipts.items()}),
        ]
        args += [dumps(event), EVENTS_KEPT, max_abandoned, manifest.to_json() if manifest else ""]
        kept = {
            client: dumps({"round": began, "digest": update})
            for client, (began, update) in (keeping or {}).items()
        }
        args += [download, dumps(server_state or {}), dumps(kept), incarnation, signature]
        args += [int(begins_anew)]
        answer = cast(bytes, self._end_round(keys=keys, args=args)).decode()
        return "ok" if answer == "same" else answer

    def accepted(self, run: str, client: str) -> tuple[int, str] | None:
        """
        Round of the job and digest of a client's newest accepted update, where clients keep something.

        Args:
            client: Or ``keyspace.in_backup`` of one.
        """
        text = cast("bytes | None", self.redis.hget(keyspace.accepted(run), client))
        found = parse_table(text) if text else None
        if found is None:
            return None
        if type(found.get("round")) is not int:
            raise MessageError(f"not an accepted update of {client}: {str(found)[:64]!r}")
        return found["round"], identifiers.parse_digest(found.get("digest"))

    def fence(self, run: str) -> int:
        """The newest fence of a run's aggregators."""
        return int(cast("bytes | None", self.redis.hget(keyspace.run(run), "fence")) or 0)

    def cleaned(self, run: str) -> int:
        """The oldest round whose keys may still be there."""
        return int(cast("bytes | None", self.redis.hget(keyspace.run(run), "cleaned")) or 0)

    def forget_round(self, run: str, number: int) -> None:
        """Remove the keys of a round whose history record is enough; its late count stays."""
        late = sum(receipt.status == "late" for receipt in self.receipts(run, number).values())
        if late:
            self._write_if(
                keyspace.run(run), ["HSETNX", keyspace.late(run), str(number), str(late)]
            )
        with self.redis.pipeline() as pipe:
            pipe.delete(
                keyspace.round_(run, number),
                keyspace.round_updates(run, number),
                keyspace.round_rejected(run, number),
                keyspace.round_jobs(run, number),
            )
            pipe.execute()
        self._write_if(keyspace.run(run), ["HSET", keyspace.run(run), "cleaned", str(number + 1)])

    # Evaluations of versions on the test set

    def evaluations(self, run: str) -> dict[int, dict[str, Any]]:
        """Version -> its ticket while it is queued, then ``{state: done | failed, metrics, reason}``."""
        key = keyspace.evaluations(run)
        return self.unreadable.each(
            key,
            self._hash(key).items(),
            lambda number, text: (parse_whole(number), parse_evaluation(text)),
        )

    def set_evaluation(self, run: str, version: int, value: Mapping[str, Any]) -> None:
        """Record a version's evaluation; repeating it is harmless (same version, same metrics)."""
        event = {"event": "version_evaluated", "version": version, "state": value["state"]}
        self._write_if(
            keyspace.run(run),
            ["HSET", keyspace.evaluations(run), str(version), dumps(value)],
            event_command(run, event),
        )

    def _hash(self, key: str) -> dict[bytes, bytes]:
        return cast(dict[bytes, bytes], self.redis.hgetall(key))

    def _get(self, key: str) -> bytes | None:
        return cast("bytes | None", self.redis.get(key))


def _event_of(number: int, client: str, receipt: Receipt) -> dict[str, Any]:
    """What the run's events tell of an update."""
    event: dict[str, Any] = {"event": "update_received", "round": number, "client": client}
    if receipt.is_in:
        return event | ({"staleness": receipt.staleness} if receipt.staleness else {})
    return event | {
        "event": "update_rejected",
        "status": receipt.status,
        "reason": receipt.reason,
    }


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
