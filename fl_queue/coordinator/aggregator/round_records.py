"""
The records of a secure round: on the data server, where clients fetch them, and on this machine's disk.

A record is named by its digest, an inbox by the record that it goes with. What the data server has lost comes
back from the disk, or is made again from the clients' messages, to the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from fl_queue.common import files
from fl_queue.common.paths import below
from fl_queue.errors import CheckpointError, MessageError
from fl_queue.protocol import identifiers
from fl_queue.secure.records import MAX_BYTES, Confirmations, Inbox, Roster, Survivors
from fl_queue.store import RoundState, Store, keyspace

FOLDER = "rosters"

Kind = TypeVar("Kind", Roster, Survivors, Confirmations)


class RoundRecords:
    """
    The records of one round.

    Args:
        store: Both servers.
        run, number: Of the round.
        state_dir: This machine's folder.
    """

    def __init__(self, store: Store, run: str, number: int, state_dir: Path) -> None:
        self._records, self._run, self._number = store.data.secure_records, run, number
        self._folder = folder_of(state_dir, run)

    def store(self, record: Roster | Survivors | Confirmations) -> None:
        """
        Keep a record on the disk and on the data server, before anything names it.

        Raises:
            CheckpointError: It cannot be written.
        """
        raw, path = record.to_bytes(), self._path(record.digest)
        try:
            with files.write_atomically(path, durable=True) as file:
                file.write(raw)
        except OSError as exc:
            raise CheckpointError(str(path), f"cannot be written: {exc.strerror or exc}") from exc
        self._records.put({keyspace.secure_record(self._run, record.digest): raw})

    def store_inboxes(self, digest: str, inboxes: Mapping[str, Inbox]) -> None:
        """Put the inboxes that go with a record on the data server. Args: ``inboxes``: reader -> inbox."""
        self._records.put(
            {
                keyspace.inbox(reader, self._run, digest): inbox.to_bytes()
                for reader, inbox in inboxes.items()
            }
        )

    def find(self, kind: type[Kind], digest: str) -> Kind | None:
        """
        A record by its digest, from the data server or the disk; afterwards it is on both. None: it is lost.

        Raises:
            CheckpointError: It cannot be written.
        """
        raw = self._records.get(keyspace.secure_record(self._run, digest), MAX_BYTES)
        for found in (raw, self._on_disk(digest)):
            if found is None:
                continue
            with suppress(MessageError):
                record = kind.from_bytes(found, digest)
                self.store(record)
                return record
        return None

    def drop(self, state: RoundState) -> None:
        """Remove the records of the round, which has ended. Args: ``state``: as it was last read."""
        secure, clients = state.secure, state.cohort
        if secure is None:
            return
        named = [each for each in (secure.roster, secure.survivors, secure.confirmations) if each]
        self._records.drop(keyspace.secure_record(self._run, digest) for digest in named)
        self._records.drop(
            keyspace.inbox(client, self._run, digest) for digest in named for client in clients
        )
        for path in self._folder.glob("*_*"):
            number = path.name.partition("_")[0]
            if number.isdecimal() and int(number) <= self._number:
                path.unlink(missing_ok=True)

    def _on_disk(self, digest: str) -> bytes | None:
        try:
            return self._path(digest).read_bytes()
        except OSError:
            return None

    def _path(self, digest: str) -> Path:
        return below(self._folder, f"{self._number}_{identifiers.parse_digest(digest)}")


def folder_of(state_dir: Path, run: str) -> Path:
    """Folder of a run's records on this machine's disk."""
    return below(state_dir / FOLDER, identifiers.parse_run_id(run))
