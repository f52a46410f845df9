"""
Enrolments on the operator's disk: one file for each client, its pin, which overrides Redis.

``fl-queue enroll`` and ``revoke`` write an enrolment twice, as the same text: as a pin here, and into
``flq:enrolled``, where the operator's other machines read it. It is signed with the operator's key, and
its serial rises with each change. So an entry on the control server is valid

- if it equals the pin, or is signed and newer than the pin: another machine of the operator wrote it;
- if there is no pin and it is signed.

Any other entry (changed, unsigned, removed, an older one restored) is reported, and the pin is valid. A
machine with neither key nor pins cannot compare, and accepts the entries on the control server.

Beside the pins are this machine's marks of each run: that it requires enrolment, and that it is signed, with
the newest version that was signed here. A change in Redis removes neither.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from fl_queue.common import files
from fl_queue.common.paths import below
from fl_queue.common.safe_json import dumps
from fl_queue.errors import CheckpointError, ConfigError, MessageError
from fl_queue.protocol import identifiers, operator_key
from fl_queue.protocol.operator_key import OperatorKey
from fl_queue.protocol.records import Enrolment

FOLDER = "enrolled"
_PIN, _REQUIRED, _SIGNED = ".json", ".required", ".signed"
_PURPOSE = "enrolment v1"
#: A longer entry is not read; enrolments are far shorter.
_MAX_BYTES = 64 * 1024
#: Number of parsed and verified entries in the cache.
_KEPT = 4096
UNSIGNED = "it is not signed with the operator's key"


@dataclass(frozen=True)
class Ruling:
    """
    The valid enrolment of a client.

    Args:
        enrolment: None: it is not enrolled.
        trouble: Defect of its entry on the control server; empty: none.
    """

    enrolment: Enrolment | None
    trouble: str = ""


class Pins:
    """
    Those of a machine.

    Args:
        state_dir: Its folder; None: it is not known, so the control server is believed.
        named: The operator's key, if not where it is by default.
    """

    def __init__(self, state_dir: Path | None = None, named: Path | None = None) -> None:
        self._state_dir, self._named = state_dir, named
        self._key: OperatorKey | None = None

    @property
    def key(self) -> OperatorKey | None:
        """
        The operator's key, as far as this machine has it.

        Raises:
            ConfigError: It cannot be used.
        """
        # One that is missing is looked for again: `enroll` may make it while a worker runs.
        if self._key is None and self._state_dir is not None:
            self._key = operator_key.find(self._state_dir, self._named)
        return self._key

    @property
    def lacks_key(self) -> bool:
        """Whether ``make_key`` would make one."""
        if self._state_dir is None:
            return True
        return not os.path.lexists(operator_key.place(self._state_dir, self._named))

    def make_key(self) -> OperatorKey | None:
        """
        The same; made if there is none yet. None where the machine's folder is not known.

        Raises:
            ConfigError: It cannot be written or used.
        """
        if self._state_dir is None:
            return None
        self._key = operator_key.create(operator_key.place(self._state_dir, self._named))
        return self._key

    @property
    def are_kept(self) -> bool:
        """Whether this machine knows better than the control server who is enrolled."""
        # The key first: it is kept, and asking for it looks through no folder.
        return self._state_dir is not None and (self.key is not None or bool(self._pinned()))

    # Deciding

    def decide(self, client: str, raw: bytes | None) -> Ruling:
        """
        Decide which enrolment of a client is valid.

        Args:
            raw: Its entry on the control server; None: it has none.

        Raises:
            ConfigError: The operator's key, or the pin, cannot be used.
        """
        pinned = self._read(client)
        if raw is not None and raw == pinned:
            return Ruling(self._parsed_pin(client, pinned))
        found = _parsed(raw) if raw is not None else None
        if pinned is None and not self.are_kept:
            return Ruling(found, "" if found or raw is None else "it cannot be read")
        is_signed = found is not None and self.is_signed(client, found)
        if pinned is None:
            return Ruling(found) if is_signed or raw is None else Ruling(None, _refused(found))
        pin = self._parsed_pin(client, pinned)
        if raw is None:
            return Ruling(pin, "it was removed" if not pin.revoked_at else "")
        if found is None or not is_signed:
            return Ruling(pin, _refused(found))
        if found.serial > pin.serial:
            return Ruling(found)
        return Ruling(pin, "it is an older one that was put back")

    def decide_all(self, raw: Mapping[bytes, bytes]) -> dict[str, Ruling]:
        """Client -> the same, of all that are pinned or in the hash ``flq:enrolled``; sorted."""
        entries = {key.decode(errors="replace"): text for key, text in raw.items()}
        known = entries.keys() | set(self._pinned())
        return {
            client: self.decide(client, entries.get(client))
            if identifiers.is_name(client)
            else Ruling(None, "no client can have that name")
            for client in sorted(known)
        }

    def is_signed(self, client: str, enrolment: Enrolment) -> bool:
        """Whether the operator has signed an enrolment, now or earlier. Raises ConfigError."""
        return self.key is not None and _verified(client, enrolment.to_json(), self.key.public)

    def unsigned(self, client: str, raw: bytes) -> Enrolment | None:
        """An entry that is neither pinned nor signed with the key of this machine; None of others, and of garbage."""
        found = _parsed(raw)
        if found is None or self._read(client) is not None:
            return None
        return None if not self.lacks_key and self.is_signed(client, found) else found

    # Writing

    def signed(self, client: str, enrolment: Enrolment, before: Enrolment | None) -> Enrolment:
        """
        An enrolment with serial and signature; as it is where there is no key.

        Args:
            before: What counted of the client so far.
        """
        if self.key is None:
            return enrolment
        # The clock, so that a machine without the other machines' pins comes after them, too.
        serial = max((before.serial if before else 0) + 1, time.time_ns() // 1_000_000)
        made = replace(enrolment, serial=serial, signature="")
        return replace(made, signature=self.key.sign(_PURPOSE, _content(client, made)))

    def pin(self, client: str, enrolment: Enrolment) -> None:
        """
        Keep what counts of a client from now on.

        Raises:
            ConfigError: It cannot be written.
        """
        if self._state_dir is None or not enrolment.signature:
            return
        path = self._path(client)
        try:
            with files.write_atomically(path, durable=True) as file:
                file.write(enrolment.to_json().encode())
        except OSError as exc:
            raise ConfigError(
                "--state-dir", f"{path} cannot be written: {exc.strerror or exc}"
            ) from exc

    def adopt(self, rulings: Mapping[str, Ruling]) -> None:
        """
        Pin what another machine of the operator has written.

        Args:
            rulings: Of ``decide_all``.

        Raises:
            ConfigError: A pin cannot be read or written.
        """
        if not self.are_kept:
            return
        for client, ruling in rulings.items():
            known = ruling.enrolment
            if known is not None and known.to_json().encode() != self._read(client):
                self.pin(client, known)

    # Whether enrolment is required

    def required(self, run: str, configured: bool) -> bool:
        """
        Whether a run admits only enrolled clients; permanent once this machine has seen it.

        Args:
            configured: Whether its config on the control server requires enrolment.
        """
        if self._state_dir is None or not (configured or self._mark(run, _REQUIRED).exists()):
            return configured
        if configured and self.are_kept:
            self.require(run, True)
        return True

    def require(self, run: str, required: bool) -> None:
        """Mark, at the start or continuation of a run, if it admits only enrolled clients."""
        if self._state_dir is None:
            return
        mark = self._mark(run, _REQUIRED)
        if not required:
            mark.unlink(missing_ok=True)
        elif self.are_kept and not mark.exists():
            with files.write_atomically(mark, durable=True):
                pass  # The file's existence is the mark.

    # Signed versions

    def note_signed(self, run: str, version: int = -1, digest: str = "") -> None:
        """
        Mark that a run is signed.

        Args:
            version, digest: The newest signed version; without them only the run itself is signed.

        Raises:
            CheckpointError: It cannot be written.
        """
        if self._state_dir is None or (version < 0 and self.signed_version(run) is not None):
            return
        mark = self._mark(run, _SIGNED)
        try:
            with files.write_atomically(mark, durable=True) as file:
                file.write(dumps({"version": version, "digest": digest}).encode())
        except OSError as exc:
            raise CheckpointError(str(mark), f"{exc.strerror}; free space there") from exc

    def signed_version(self, run: str) -> tuple[int, str] | None:
        """
        The newest version of a run that was signed here, and its digest; None: the run was not signed here.

        Returns:
            -1 and an empty digest if this machine has signed the run, but none of its versions.
        """
        if self._state_dir is None:
            return None
        try:
            found = json.loads(self._mark(run, _SIGNED).read_bytes())
            return int(found["version"]), str(found["digest"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            return -1, ""  # The file is damaged, but its existence means that the run was signed.

    def forget(self, run: str) -> None:
        """Remove the marks of a run that the operator deleted; a deletion seen in Redis is not enough."""
        if self._state_dir is not None:
            for kind in (_REQUIRED, _SIGNED):
                self._mark(run, kind).unlink(missing_ok=True)

    # Files

    @property
    def _folder(self) -> Path:
        assert self._state_dir is not None
        return self._state_dir / FOLDER

    def _path(self, client: str) -> Path:
        return self._folder / f"{client}{_PIN}"

    def _mark(self, run: str, kind: str) -> Path:
        return below(self._folder, f"{run}{kind}")

    def _pinned(self) -> list[str]:
        if self._state_dir is None:
            return []
        return [path.name.removesuffix(_PIN) for path in self._folder.glob(f"*{_PIN}")]

    def _read(self, client: str) -> bytes | None:
        if self._state_dir is None or not identifiers.is_name(client):
            return None
        try:
            return self._path(client).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise ConfigError(
                "--state-dir", f"{self._path(client)} cannot be read: {exc.strerror or exc}"
            ) from exc

    def _parsed_pin(self, client: str, raw: bytes) -> Enrolment:
        found = _parsed(raw)
        if found is None:
            raise ConfigError(
                "--state-dir",
                f"{self._path(client)} is damaged; put back a copy of it, or enrol {client} anew",
            )
        return found


def _refused(found: Enrolment | None) -> str:
    return "it cannot be read" if found is None else UNSIGNED


def _content(client: str, enrolment: Enrolment) -> bytes:
    signed = {key: value for key, value in asdict(enrolment).items() if key != "signature"}
    return dumps({"client": client, **signed}).encode()


@lru_cache(_KEPT)
def _parsed(raw: bytes) -> Enrolment | None:
    try:
        return Enrolment.from_json(raw) if len(raw) <= _MAX_BYTES else None
    except MessageError:
        return None


@lru_cache(_KEPT)
def _verified(client: str, text: str, public: str) -> bool:
    found = Enrolment.from_json(text)
    return operator_key.verify(public, _PURPOSE, _content(client, found), found.signature)
