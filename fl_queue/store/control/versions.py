"""Versions of a run's model on the control server, and their evaluations on the test set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fl_queue.common.safe_json import dumps
from fl_queue.protocol.state_fields import parse_evaluation, parse_version, parse_whole
from fl_queue.store import keyspace
from fl_queue.store.connection import script
from fl_queue.store.control.events import EVENTS_KEPT
from fl_queue.store.control.server import ControlServer

if TYPE_CHECKING:
    from fl_queue.protocol.manifest import Manifest


class Versions:
    """
    Reads of versions; the commit script writes them.

    Args:
        server: The control server.
    """

    def __init__(self, server: ControlServer) -> None:
        self._server = server

    def manifest(self, run: str) -> Manifest | None:
        """The run's manifest; None before version 0."""
        from fl_queue.protocol.manifest import Manifest

        text = self._server.string(keyspace.manifest(run))
        return Manifest.from_json(text) if text else None

    def all(self, run: str) -> dict[int, dict[str, Any]]:
        """Version -> {digest, round}, rising."""
        key = keyspace.versions(run)
        found = self._server.unreadable.each(
            key,
            self._server.hash(key).items(),
            lambda number, text: (parse_whole(number), parse_version(text)),
        )
        return {version: found[version] for version in sorted(found)}

    def get(self, run: str, number: int) -> dict[str, Any]:
        """One version; empty when there is none."""
        text = self._server.field(keyspace.versions(run), str(number))
        return parse_version(text) if text else {}


class Evaluations:
    """
    Reads and writes of evaluations.

    Args:
        server: The control server.
    """

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._evaluated = script(server.redis, "evaluated")

    def all(self, run: str) -> dict[int, dict[str, Any]]:
        """Version -> its ticket while it is queued, then ``{state: done | failed, metrics, reason}``."""
        key = keyspace.evaluations(run)
        return self._server.unreadable.each(
            key,
            self._server.hash(key).items(),
            lambda number, text: (parse_whole(number), parse_evaluation(text)),
        )

    def set(self, run: str, version: int, value: Mapping[str, Any], digest: str = "") -> bool:
        """
        Record a version's evaluation; repeating it is harmless (same version, same metrics).

        Args:
            digest: Of the version that was evaluated; empty: of whichever has the number.

        Returns:
            False when the run is gone, or has no such version: a failover may have lost it.
        """
        from fl_queue.protocol.events import VersionEvaluated

        event = VersionEvaluated(version=version, state=value["state"])
        keys = [
            keyspace.run(run),
            keyspace.versions(run),
            keyspace.evaluations(run),
            keyspace.events(run),
        ]
        args: list[Any] = [version, digest, dumps(value), dumps(event.to_dict()), EVENTS_KEPT]
        return bool(self._evaluated(keys=keys, args=args))
