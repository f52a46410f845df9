"""
A site's notes of the fits that it takes part in: its table, and the states that it has answered.

Each step of a fit is a question that depends on the answers before it, so a site answers only a state that the sums
of all sites lead to, over the rows it began with, and no more numbers than its policy allows. No Redis here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3

from fl_queue.analyses.base import Analysis
from fl_queue.client.ledger import questions_of
from fl_queue.client.policy import SitePolicy
from fl_queue.common import files
from fl_queue.common.paths import below
from fl_queue.common.safe_json import dumps
from fl_queue.errors import AnalysisError, DataError, LocalStorageError, MessageError, PolicyRefusal
from fl_queue.protocol.arrays import Int64s


@dataclass(frozen=True)
class FitNotes:
    """
    What was noted of one fit.

    Args:
        table: Digest of the rows that it began with.
        shown: Digest of each state that was answered, in order -> numbers that were shown.
        last: Digest of the one that was answered last.
    """

    table: str
    shown: Mapping[str, int]
    last: str


@dataclass(frozen=True)
class FitStep:
    """
    A step of a fit, as a site is asked for it.

    Args:
        analysis: The run's.
        version: Number of the state before it.
        state: Before it.
        total: The sums that the state was made of, and words of 0.
    """

    analysis: Analysis
    version: int
    state: Int64s
    total: Int64s

    @property
    def digest(self) -> str:
        """Of the state; hexadecimal."""
        return _digest(self.state)


class FitFolder:
    """
    The notes of one fit.

    Args:
        folder: The site's, of all fits.
        run: Run id.
        client: Client id.
    """

    def __init__(self, folder: Path, run: str, client: str) -> None:
        self._folder = below(folder, run, client)

    def read(self) -> FitNotes | None:
        """
        What is noted; None: this fit has not been answered here.

        Raises:
            DataError: The notes are damaged.
        """
        path = self._folder / "fit.json"
        try:
            raw = json.loads(path.read_bytes())
            shown = {str(digest): int(count) for digest, count in raw["shown"]}
            return FitNotes(str(raw["table"]), shown, str(raw["last"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
            raise _damaged(path) from exc

    def note(self, step: FitStep, table: str) -> None:
        """
        Note that a step is about to be answered. Args: ``table``: digest of its rows.

        Raises:
            DataError: The earlier notes are damaged.
            LocalStorageError: It cannot be noted.
        """
        known, digest = self.read(), step.digest
        if known is not None and known.last == digest:
            return
        shown = dict(known.shown) if known is not None else {}
        shown.setdefault(digest, step.analysis.layout(step.state).numbers)
        try:
            files.folder(self._folder)
            with files.write_atomically(self._state(digest), durable=True) as file:
                file.write(step.state.astype("<i8").tobytes())
            notes = {"table": table, "shown": list(shown.items()), "last": digest}
            with files.write_atomically(self._folder / "fit.json", durable=True) as file:
                file.write(dumps(notes).encode())
            if known is not None:
                self._state(known.last).unlink(missing_ok=True)
        except OSError as exc:
            reason = f"the notes of a fit cannot be written: {exc.strerror}"
            raise LocalStorageError(str(self._folder), reason) from exc

    def state(self, digest: str) -> Int64s:
        """The state that was answered last. Raises DataError."""
        path = self._state(digest)
        try:
            words = np.frombuffer(path.read_bytes(), "<i8").astype(np.int64)
        except (OSError, ValueError) as exc:
            raise _damaged(path) from exc
        if _digest(words) != digest:
            raise _damaged(path)
        return words

    def adopt(self, sources: Iterable[FitFolder]) -> None:
        """Take over the notes of the first run that has some, of those which this one was restored from."""
        for source in sources if not self._folder.exists() else ():
            # A copy that was cut off has no notes, and is made again.
            if (source._folder / "fit.json").exists():
                with suppress(OSError):
                    draft = self._folder.with_name(f".{self._folder.name}")
                    shutil.rmtree(draft, ignore_errors=True)
                    shutil.copytree(source._folder, draft)
                    draft.rename(self._folder)
                return

    def _state(self, digest: str) -> Path:
        return self._folder / f"{digest[:32]}.state"


def check(step: FitStep, folder: FitFolder, table: str, rows: int, policy: SitePolicy) -> int:
    """
    Check that a step may be answered.

    Args:
        table: Digest of the rows.
        rows: Their number.

    Returns:
        The number of the step at this site, from 1.

    Raises:
        PolicyRefusal: Its state does not follow from the one before, or a budget is used up.
        DataError: The table is another one than at the fit's beginning.
    """
    notes = folder.read()
    if notes is not None and notes.table != table:
        raise DataError(
            "table",
            "the table changed since the fit began; restore it, or start the fit again",
            public=True,
        )
    if notes is None:
        _check_length(step.analysis, policy)
    digest, shown = step.digest, dict(notes.shown) if notes is not None else {}
    if digest not in shown:
        _check_path(step, folder, notes)
        shown[digest] = step.analysis.layout(step.state).numbers
    _check_budgets(step.analysis, sum(shown.values()), rows, policy)
    return 1 + list(shown).index(digest)


def _check_length(analysis: Analysis, policy: SitePolicy) -> None:
    """
    Raise PolicyRefusal if trees may take more steps than a day's questions allow: it would be refused midway.

    Other fits are short, and most end long before their largest number of steps.
    """
    most = questions_of(analysis.steps)
    if not analysis.has_budget and most > policy.max_questions:
        raise PolicyRefusal(
            f"{analysis.steps:,} steps count as {most} questions of a day, and it answers {policy.max_questions} "
            "(max_questions); ask for fewer trees, or less deep ones"
        )


def _check_path(step: FitStep, folder: FitFolder, notes: FitNotes | None) -> None:
    """Raise PolicyRefusal unless a new state follows from the one that was answered last."""
    if notes is None:
        if not np.array_equal(step.state, step.analysis.initial()) or step.total.any():
            raise PolicyRefusal(
                f"state {step.version} is none that a fit begins with, and none that was answered here"
            )
        return
    before = folder.state(notes.last)
    try:
        total = step.analysis.unpadded(before, step.total)
        follows = step.analysis.advance(before, total)
    # What the aggregator could not have gone on from either, such as a sum of no rows.
    except (AnalysisError, MessageError, ArithmeticError, ValueError, LookupError):
        follows = None
    if follows is None or not np.array_equal(follows, step.state):
        raise PolicyRefusal(f"state {step.version} does not follow from its total")


def _check_budgets(analysis: Analysis, shown: int, rows: int, policy: SitePolicy) -> None:
    """Raise PolicyRefusal if a fit has too many parameters for the rows, or has shown too much of them."""
    if analysis.parameters > policy.max_parameters * rows:
        raise PolicyRefusal(
            f"{analysis.parameters} parameters are too many for its rows (max_parameters)"
        )
    if analysis.has_budget and shown > policy.max_numbers * rows * len(analysis.columns.names):
        raise PolicyRefusal(
            f"{shown} numbers of one fit are too many for its rows and columns (max_numbers)"
        )


def _digest(state: Int64s) -> str:
    return blake3(state.astype("<i8").tobytes()).hexdigest()


def _damaged(path: Path) -> DataError:
    return DataError(
        str(path),
        "the notes of this fit are damaged; restore the state folder, or start the fit again",
        public="the notes of this fit are damaged",
    )
