"""
State that a client keeps from one round to the next, on its own disk: it never leaves the machine.

    <state dir>/client-state/<run id>/<client>/<round>_<digest of the update>/<digest>.safetensors

A state is written before its update is, and counts only once that very update has been accepted: the
control server is asked, each time before the next use. So a round that was retried, came late or was
abandoned advances nothing, and a writer that is killed leaves the old state or both. The files are
readable by their owner only. No Redis here: the caller asks.

A run that is restored from a backup has a new run id, and goes on from the states that lie under the
old one. So the state that belongs to the newest backup is kept beside the newest one.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from fl_queue.common import files
from fl_queue.common.paths import below
from fl_queue.common.safe_json import is_count
from fl_queue.errors import CheckpointError, LocalStorageError
from fl_queue.models import checkpoint
from fl_queue.protocol import identifiers, tensor_layout
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.tensor_layout import Tensor
from fl_queue.strategies.layouts import OPTIMIZER

log = logging.getLogger(__name__)

#: A run that is unknown may still be restored from a backup within this time.
_FORGOTTEN_S = 7 * 24 * 3600.0
_STATES = "*.safetensors"


class AcceptedUpdate(NamedTuple):
    """The newest update of a client that was accepted: its round, and the digest of its body."""

    round: int
    digest: str


@dataclass(frozen=True)
class StoredClientState:
    """
    The state that a client starts from.

    Args:
        state: Name -> tensor name -> array; empty: there is none.
        note: Its description in the receipt.
        is_missing: Whether there should have been a state.
        is_lost: Whether the missing state is the strategy's: the server still has this client's share of it.
        place: Its folder; None: there is none.
    """

    state: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    note: str = ""
    is_missing: bool = False
    is_lost: bool = False
    place: Path | None = None


def layout(states: Mapping[str, Manifest]) -> Manifest:
    """The tensors of a file: ``<state>/<tensor>``. Args: ``states``: name -> its tensors."""
    specs = [
        replace(spec, name=f"{state}/{spec.name}")
        for state, manifest in states.items()
        for spec in manifest.tensors
    ]
    return Manifest(tuple(sorted(specs, key=lambda spec: spec.name)))


@dataclass(frozen=True)
class ClientStateFolder:
    """
    The states of one client of one run, on this machine.

    Args:
        root: This machine's client states.
        run: Run id.
        client: Client id.
    """

    root: Path
    run: str
    client: str

    @property
    def path(self) -> Path:
        """The folder itself; raises DataError where the names lead out of ``root``."""
        return below(self.root, self.run, self.client)

    def write(self, update: AcceptedUpdate, manifest: Manifest, pieces: Iterable[Tensor]) -> None:
        """
        Keep a state, for the case that an update is accepted.

        Args:
            update: The update's round and the digest of its body.
            manifest: The state's, from ``layout``.
            pieces: Its tensors in that order.

        Raises:
            LocalStorageError: It cannot be written (disk full, permissions).
        """
        place = below(self.path, _name(update))
        metadata = {"run": self.run, "client": self.client, "round": str(update.round)}
        try:
            with checkpoint.drafted(place, manifest, pieces, metadata) as draft:
                draft.keep()
        except CheckpointError as exc:
            raise LocalStorageError(
                str(place),
                f"a client's state cannot be written: {exc.reason}",
                public="a client's state cannot be written",
            ) from exc

    def also_of(self, update: AcceptedUpdate, other: AcceptedUpdate) -> None:
        """
        Find the state of an update under another digest, too: that of the masked one, which is accepted.

        Raises:
            LocalStorageError: It cannot be written.
        """
        place = below(self.path, _name(other))
        for file in below(self.path, _name(update)).glob(_STATES):
            try:
                files.folder(place)
                with suppress(FileExistsError):
                    os.link(file, place / file.name)
                files.sync(place)
            except OSError as exc:
                raise LocalStorageError(
                    str(place),
                    f"a client's state cannot be written: {exc.strerror or exc}",
                    public="a client's state cannot be written",
                ) from exc

    def load(
        self,
        before: int,
        accepted: AcceptedUpdate | None,
        manifest: Manifest,
        start: str = "zero",
        origins: Sequence[str] = (),
        backed_up: AcceptedUpdate | None = None,
    ) -> StoredClientState:
        """
        The state of the client's newest accepted update; all others but the backup's are removed.

        Args:
            before: The round it is needed for; its own states may be about to be accepted, and stay.
            accepted: The newest accepted update, by the control server; None: there is none.
            manifest: The state's, from ``layout``.
            start: Words for the values that a client without a state starts from.
            origins: Run ids that the run was restored from, the newest first.
            backed_up: The same as ``accepted``, in the run's newest backup.
        """
        self._remove_others(before, {_name(update) for update in (accepted, backed_up) if update})
        if accepted is None:
            return StoredClientState(note=f"none yet: starts from {start}")
        wanted = below(self.path, _name(accepted))
        folders = [replace(self, run=origin).path for origin in origins]
        _adopt(wanted, [below(folder, wanted.name) for folder in folders])
        try:
            state = read(wanted, manifest)
        except CheckpointError as exc:
            note = f"missing, that of round {accepted.round}: starts from {start}"
            log.warning("run=%s client=%s %s", self.run, self.client, exc)
            return StoredClientState(note=f"{note} ({exc.public})", is_missing=True)
        note = f"of round {accepted.round}"
        if OPTIMIZER not in state and _tensors(manifest, but=OPTIMIZER) != _tensors(manifest):
            note = f"{note}, but for that of the optimizer, which is another one"
        return StoredClientState(state, note, place=wanted)

    def _remove_others(self, before: int, stay: Collection[str]) -> None:
        """Remove the states of rounds before one. Args: ``stay``: names of the folders that stay."""
        for old in self.path.iterdir() if self.path.is_dir() else ():
            number = old.name.partition("_")[0]
            # Names that fl-queue did not give have no such number.
            if old.name not in stay and is_count(number) and int(number) < before:
                shutil.rmtree(old, ignore_errors=True)


def still_counts(
    kept: StoredClientState,
    accepted: AcceptedUpdate | None,
    since: int,
    states: Collection[str],
    own: Collection[str],
) -> StoredClientState:
    """
    The part of a state that still counts.

    Without the strategy's, where that has been set to zero in a later round, or in that of the state.

    Args:
        accepted: The client's newest accepted update, whose state it is.
        since: The round in which the strategy's state was set to zero; 0: never.
        states: Names of the client's states.
        own: Those of the strategy.
    """
    if accepted is None or not own:
        return kept
    if accepted.round > since:
        return replace(kept, is_lost=kept.is_missing)
    others = set(states) - set(own)
    note = f"zero again since round {since}, where a client had lost its state or the run went back to an older version"
    return StoredClientState(
        {name: arrays for name, arrays in kept.state.items() if name in others},
        f"{note}; else {kept.note}" if others else note,
        kept.is_missing and bool(others),
        place=kept.place,
    )


def _adopt(place: Path, sources: Iterable[Path]) -> None:
    """Copy a state that lies under the id of a run which this one was restored from, if it is not here."""
    if any(place.glob(_STATES)):
        return
    for source in (file for folder in sources for file in folder.glob(_STATES)):
        # A state that cannot be copied is reported as missing; a killed copy is made again.
        with suppress(OSError):
            with source.open("rb") as old, files.write_atomically(place / source.name) as new:
                shutil.copyfileobj(old, new)
            return


def _name(update: AcceptedUpdate) -> str:
    """The folder of the state that belongs to an update."""
    return f"{update.round}_{update.digest}"


def read(place: Path, manifest: Manifest) -> dict[str, dict[str, Tensor]]:
    """
    The states in a folder: name -> tensor name -> array; their digest is checked.

    Without that of the optimizer where the config has another one by now.

    Args:
        place: Folder of the state of one update.
        manifest: The state's, from ``layout``.

    Raises:
        CheckpointError: It is missing, damaged, or of another manifest.
    """
    found_files = sorted(place.glob(_STATES))
    if not found_files:
        raise CheckpointError(str(place), "is missing", public=True)
    stored = _as_stored(found_files[0], manifest)
    body = checkpoint.open_body(place, found_files[0].stem, stored)
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensor_layout.views(stored, body.view).items():
        state, _, inner = name.partition("/")
        found.setdefault(state, {})[inner] = tensor
    if stored is not manifest:
        found.pop(OPTIMIZER, None)
    return found


def _as_stored(file: Path, manifest: Manifest) -> Manifest:
    """The layout of a file, where that differs in the state of the optimizer alone; else ``manifest``."""
    stored = checkpoint.stored_layout(file)
    if stored is None or _tensors(stored) == _tensors(manifest):
        return manifest
    has_others = _tensors(stored, but=OPTIMIZER) == _tensors(manifest, but=OPTIMIZER)
    return stored if has_others else manifest


def _tensors(manifest: Manifest, but: str = "") -> list[tuple[str, tuple[int, ...], str]]:
    """The tensors of a layout. Args: ``but``: without this state."""
    return [
        (spec.name, spec.shape, spec.dtype)
        for spec in manifest.tensors
        if spec.name.partition("/")[0] != but
    ]


def sweep(folder: Path, is_known: Callable[[str], bool]) -> None:
    """
    Remove the states of runs that have been unknown for a week.

    Args:
        is_known: Run id -> whether there is such a run, or one that was restored from it.
    """
    for run in folder.iterdir() if folder.is_dir() else ():
        if not identifiers.is_run_id(run.name):
            continue  # Not a folder of fl-queue.
        if is_known(run.name):
            os.utime(run)
        elif time.time() - run.stat().st_mtime > _FORGOTTEN_S:
            shutil.rmtree(run, ignore_errors=True)
