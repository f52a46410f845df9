"""
A client's secrets on its own disk, and what it has noted of each round before it acted on it.

``<client>_<run>.run`` has the run key and the newest closed round, ``<client>_<run>_<round>.round`` the mask secret
and what the site has seen and answered. Files are written whole and are on disk (fsync) when a call returns, so a
process that dies afterwards finds them. A self secret is in none of them. No Redis here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Self

from fl_queue.common import failpoints, files, safe_json
from fl_queue.common.paths import below
from fl_queue.common.schema import Range
from fl_queue.errors import ConfigError, LocalStorageError, MessageError, RoundRefused
from fl_queue.protocol import crypto, identifiers
from fl_queue.secure import masks, shamir

FOLDER = "secure"
_RUN, _ROUND = ".run", ".round"


class _Secrets:
    """What one file holds."""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """
        What a file holds; None: there is none.

        Raises:
            LocalStorageError: It is damaged, or cannot be read.
        """
        try:
            found = safe_json.decode(cls, path.read_bytes(), "secrets of this site")
            found._check()
            return found
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise LocalStorageError(str(path), f"cannot be read: {exc.strerror or exc}") from exc
        except MessageError:
            # What is wrong with it would quote a secret.
            raise LocalStorageError(
                str(path),
                "is damaged, so this site drops out; it goes when the round or the run ends",
            ) from None

    def write(self, path: Path) -> None:
        """Write the file whole, and to disk. Raises OSError."""
        with files.write_atomically(path, durable=True) as file:
            file.write(safe_json.dumps(vars(self)).encode())

    def _check(self) -> None:
        """Raise MessageError when a field has another form."""
        raise NotImplementedError


@dataclass(frozen=True)
class RunSecrets(_Secrets):
    """
    What a run file holds.

    Args:
        key: Secret run key, 32 bytes, hexadecimal.
        peers: Digest of the site's peers; empty: it has pinned none.
        closed: Newest round about which nothing is answered any more; 0: none.
    """

    key: str = field(repr=False)
    peers: str = ""
    closed: Annotated[int, Range(0)] = 0

    @property
    def secret(self) -> bytes:
        """The secret run key, 32 bytes."""
        return bytes.fromhex(self.key)

    @property
    def public(self) -> bytes:
        """The public run key, 32 bytes."""
        return crypto.public_half(self.secret)

    def _check(self) -> None:
        identifiers.parse_digest(self.key)


@dataclass(frozen=True)
class RoundSecrets(_Secrets):
    """
    What a round file holds, all of it hexadecimal.

    Args:
        context: Of the round for which the secrets were made, 32 bytes.
        coefficients: Of the polynomial of the mask secret r, which is the first; 32 bytes each.
        mask_key: The public mask key, 32 bytes.
        roster: Digest of the roster under which the site masks; empty: none yet.
        shares: Commitment of each of its self secrets -> its own share of it.
        revealed: Digest of the survivors for which the site has signed or revealed; empty: none yet.
    """

    context: str
    coefficients: tuple[str, ...] = field(repr=False)
    mask_key: str
    roster: str = ""
    shares: Mapping[str, str] = field(default_factory=dict, repr=False)
    revealed: str = ""

    @property
    def polynomial(self) -> tuple[int, ...]:
        """Coefficients of r's polynomial, r first."""
        return tuple(shamir.from_bytes(bytes.fromhex(each)) for each in self.coefficients)

    @property
    def own_shares(self) -> dict[bytes, bytes]:
        """Commitment of a self secret -> the own share of it, 32 bytes each."""
        return {bytes.fromhex(one): bytes.fromhex(share) for one, share in self.shares.items()}

    def _check(self) -> None:
        noted = [each for each in (self.roster, self.revealed) if each]
        shares = (*self.shares, *self.shares.values())
        for each in (self.context, self.mask_key, *self.coefficients, *shares, *noted):
            identifiers.parse_digest(each)
        if not self.polynomial:
            raise MessageError("no coefficients")


class Vault:
    """
    The secrets of one client.

    Args:
        state: The site's state folder, the same for as long as the client takes part in a run.
        client: Its id.
    """

    def __init__(self, state: Path, client: str) -> None:
        self.folder = state / FOLDER
        self.client = identifiers.parse_name(client)

    @contextmanager
    def held(self) -> Iterator[None]:
        """
        Be the only worker that serves this client from this folder, during a block.

        Processes that the worker has forked hold it with it: an orphan may still be writing.

        Raises:
            ConfigError: Another worker does.
            LocalStorageError: The folder cannot be written.
        """
        path = below(self.folder, f"{self.client}.lock")
        with _as_storage_error(path):
            files.folder(self.folder)
            try:
                descriptor = files.acquire_lock(path, timeout_s=0)
            except TimeoutError:
                reason = f"another worker serves {self.client} from this folder; end it first"
                raise ConfigError("--state-dir", reason) from None
        try:
            yield
        finally:
            os.close(descriptor)

    # Of a run

    def run(self, run: str) -> RunSecrets | None:
        """A run's secrets; None: there are none. Raises LocalStorageError when they are damaged."""
        return RunSecrets.read(self._run_file(run))

    def begin(self, run: str, peers: str = "") -> RunSecrets:
        """
        A run's secrets, made when there are none: before its public key is sent.

        Args:
            peers: Digest of the site's peers; they stay as they are while the run lasts.

        Raises:
            RoundRefused: The peers are others than when the run began.
            LocalStorageError: The secrets are damaged, or cannot be written.
        """
        with self._changed():
            found = self.run(run)
            if found is None:
                found = RunSecrets(crypto.new_exchange_key()[0].hex(), peers)
                found.write(self._run_file(run))
            if found.peers != peers:
                raise RoundRefused(
                    f"this site's peers (--peers) were changed during run {run}; its owner starts the worker "
                    "with those of before, or leaves the run",
                    lasts=True,
                )
            return found

    def close(self, run: str, number: int) -> None:
        """Answer nothing any more about a round and those before it: that is noted first, then their files go."""
        with self._changed():
            found = self.run(run)
            # Without a run key no old box can be opened, and there is nothing to note it in.
            if found is not None and number > found.closed:
                replace(found, closed=number).write(self._run_file(run))
            failpoints.failpoint("closed.noted")
            self._remove(path for each, path in self._rounds(run) if each <= number)

    def end(self, run: str) -> None:
        """Forget a run that is over: its key first of all, so that no box can be opened any more."""
        with self._changed():
            self._remove([self._run_file(run)])
            failpoints.failpoint("runkey.deleted")
            self._remove(path for _, path in self._rounds(run))

    def sweep(self, has_ended: Callable[[str, int], bool], is_over: Callable[[str], bool]) -> None:
        """
        Close the rounds that have ended, and forget the runs that are over.

        Args:
            has_ended: ``(run id, round) -> bool``.
            is_over: ``run id -> bool``; true of a run that was deleted, too.
        """
        for run in self.runs():
            if is_over(run):
                self.end(run)
                continue
            if ended := [each for each, _ in self._rounds(run) if has_ended(run, each)]:
                # A damaged run file goes with its run; until then nothing of the run is answered.
                with suppress(LocalStorageError):
                    self.close(run, max(ended))

    def runs(self) -> list[str]:
        """Runs of which there are files, sorted."""
        named = (path.stem.split("_") for path in self._files("*"))
        return sorted({parts[1] for parts in named if identifiers.is_run_id(parts[1])})

    # Of a round

    def has_round(self, run: str, number: int) -> bool:
        """Whether there is a file of a round, damaged or not: then it is never answered in clear."""
        return self._round_file(run, number).exists()

    def round(self, run: str, number: int) -> RoundSecrets | None:
        """
        A round's secrets; None: there are none, and the client has no part in it.

        Raises:
            RoundRefused: The round is closed.
            LocalStorageError: The secrets are damaged.
        """
        self._check_open(run, number)
        return RoundSecrets.read(self._round_file(run, number))

    def enter(
        self, run: str, number: int, context: bytes, threshold: int, has_roster: bool
    ) -> RoundSecrets:
        """
        A round's secrets, made when there are none: before ``keys`` is written.

        Args:
            context: Of the round as the client sees it, 32 bytes.
            threshold: Shares that rebuild the mask secret.
            has_roster: Whether the round has a roster: then none are made.

        Raises:
            RoundRefused: The round is closed, was changed, or has begun without this site's keys.
            LocalStorageError: The secrets are damaged, or cannot be written.
        """
        with self._changed():
            found = self.round(run, number)
            if found is None:
                if has_roster:
                    raise _no_keys(number)
                found = _new_secrets(context, threshold)
                found.write(self._round_file(run, number))
                failpoints.failpoint("round.noted")
            if found.context != context.hex():
                raise RoundRefused(f"round {number} was changed after this site had made its keys")
            return found

    def note_roster(self, run: str, number: int, digest: str) -> RoundSecrets:
        """
        Note the roster under which the update is masked: the first one, for good.

        Raises:
            RoundRefused: Another one is noted, the round is closed, or this site has no keys of it.
        """
        with self._changed():
            found = self._noted(run, number)
            if found.roster not in ("", digest):
                raise RoundRefused(
                    f"round {number} has another roster than the one that this site has noted"
                )
            noted = self._note(run, number, found, replace(found, roster=digest))
            failpoints.failpoint("roster.noted")
            return noted

    def note_share(self, run: str, number: int, commitment: bytes, share: bytes) -> RoundSecrets:
        """
        Note the own share of a self secret: before the update that it masks gets its name.

        Args:
            commitment: Of the self secret, 32 bytes.
            share: 32 bytes.

        Raises:
            RoundRefused: No roster is noted, the round is closed, or this site has no keys of it.
        """
        with self._changed():
            found = self._noted(run, number)
            if not found.roster:
                raise RoundRefused(f"round {number} has no roster that this site has noted")
            shares = {**found.shares, commitment.hex(): share.hex()}
            noted = self._note(run, number, found, replace(found, shares=shares))
            failpoints.failpoint("share.noted")
            return noted

    def note_reveal(self, run: str, number: int, survivors: str) -> RoundSecrets:
        """
        Note the survivors for whom this site signs and reveals: the first list, for good.

        Args:
            survivors: Digest of the list.

        Raises:
            RoundRefused: Another one is noted, no roster is, the round is closed, or this site has no keys of it.
        """
        with self._changed():
            found = self._noted(run, number)
            if not found.roster:
                raise RoundRefused(f"round {number} has no roster that this site has noted")
            if found.revealed not in ("", survivors):
                raise RoundRefused(
                    f"this site has answered for another list of survivors of round {number}"
                )
            noted = self._note(run, number, found, replace(found, revealed=survivors))
            failpoints.failpoint("reveal.noted")
            return noted

    # Files

    def _noted(self, run: str, number: int) -> RoundSecrets:
        found = self.round(run, number)
        if found is None:
            raise _no_keys(number)
        return found

    def _note(self, run: str, number: int, old: RoundSecrets, new: RoundSecrets) -> RoundSecrets:
        if new != old:
            new.write(self._round_file(run, number))
        return new

    def _check_open(self, run: str, number: int) -> None:
        found = self.run(run)
        if found is None:
            raise no_run_key(run)
        if number <= found.closed:
            raise RoundRefused(
                f"round {number} is over at this site, which has closed round {found.closed}"
            )

    @contextmanager
    def _changed(self) -> Iterator[None]:
        """Between what is read and what is written, no other process of the worker writes."""
        path = below(self.folder, f"{self.client}.changed")
        with _as_storage_error(path), files.file_lock(path):
            # What a killed process has not finished holds secrets, too.
            for unfinished in self.folder.glob(f"{self.client}_*{files.UNFINISHED}"):
                unfinished.unlink()
            yield

    def _run_file(self, run: str) -> Path:
        return below(self.folder, f"{self.client}_{identifiers.parse_run_id(run)}{_RUN}")

    def _round_file(self, run: str, number: int) -> Path:
        name = f"{self.client}_{identifiers.parse_run_id(run)}_{number}{_ROUND}"
        return below(self.folder, name)

    def _files(self, run: str) -> Iterator[Path]:
        for path in sorted(self.folder.glob(f"{self.client}_*")):
            parts = path.stem.split("_")
            if path.suffix in (_RUN, _ROUND) and run in ("*", parts[1]):
                yield path

    def _rounds(self, run: str) -> list[tuple[int, Path]]:
        found = []
        for path in self._files(run):
            number = path.stem.split("_")[-1]
            if path.suffix == _ROUND and safe_json.is_count(number):
                found.append((int(number), path))
        return found

    def _remove(self, paths: Iterator[Path] | list[Path]) -> None:
        """Remove files; they are gone from the disk when this returns."""
        for path in paths:
            path.unlink(missing_ok=True)
        files.sync(self.folder)


def _new_secrets(context: bytes, threshold: int) -> RoundSecrets:
    polynomial = shamir.random_polynomial(shamir.random_element(), threshold)
    coefficients = tuple(shamir.to_bytes(each).hex() for each in polynomial)
    secret = masks.mask_key(shamir.to_bytes(polynomial[0]), context)
    return RoundSecrets(context.hex(), coefficients, crypto.public_half(secret).hex())


def no_run_key(run: str) -> RoundRefused:
    """Why a site that has lost its state has no part in a run, until it is asked for a run key again."""
    return RoundRefused(f"this site has no run key of run {run}", lasts=True)


def _no_keys(number: int) -> RoundRefused:
    return RoundRefused(f"this site has no keys of round {number}, and makes none any more")


@contextmanager
def _as_storage_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise LocalStorageError(str(path), f"cannot be written: {exc.strerror or exc}") from exc
