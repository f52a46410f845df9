"""
A site's ledger: which questions about its tables were answered, and which rows its tables had then.

A line is on the disk before the answer is in the outbox. It limits the questions of a day, and keeps a table that
has changed by a few rows from being asked again: the two answers would differ by what those rows hold. No Redis here.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from fl_queue.analyses.differencing import Grouping
from fl_queue.analyses.time_grids import Curve
from fl_queue.client.policy import SitePolicy
from fl_queue.common import files
from fl_queue.common.safe_json import dumps
from fl_queue.errors import DataError, LocalStorageError, PolicyRefusal

Rows = npt.NDArray[np.uint64]

#: A ledger's file that holds the key of its row hashes.
_KEY = "key"
_DAY = "%Y-%m-%d"
#: Steps of a fit that count as one more question of a day.
STEPS_OF_A_QUESTION = 20
#: Fields of a line that earlier answers are compared by.
_TEXTS = ("run_id", "client", "file", "table", "policy")


def questions_of(steps: int) -> int:
    """Questions of a day that a fit of so many steps counts as: one, and another for each ``STEPS_OF_A_QUESTION``."""
    return 1 + steps // STEPS_OF_A_QUESTION


@dataclass(frozen=True)
class Entry:
    """
    One answer.

    Args:
        at: Time, ISO 8601, UTC.
        run: Name of the run.
        run_id, round: Its id, and the round.
        client: Client id.
        questions: What was asked, a line each.
        columns: Columns that were read.
        file: The table's file, with its path.
        table: Digest of its rows; it stays at the site.
        rows: Their number.
        numbers: Numbers that were shown.
        policy: Digest of the site's policy.
        groupings: How rows were grouped: of each question that does, as of ``written``.
        curves: Times to an event that were counted: time, event, category, levels and times of each question.
        fit_step: Number of the step of a fit, from 1; 0: it is none.
        parts: Digests of the rows that are trained on, where others are held out.
        state: Digest of the earlier step's sum, from which this one was laid out; empty: it is the first.
    """

    at: str
    run: str
    run_id: str
    round: int
    client: str
    questions: tuple[str, ...]
    columns: tuple[str, ...]
    file: str
    table: str
    rows: int
    numbers: int
    policy: str
    groupings: tuple[tuple[Any, ...], ...] = ()
    state: str = ""
    curves: tuple[tuple[str, str, str, tuple[str, ...], tuple[float, ...]], ...] = ()
    fit_step: int = 0
    parts: tuple[str, ...] = ()

    @property
    def grouped(self) -> list[Grouping]:
        """How rows were grouped."""
        return [Grouping(*one) for one in self.groupings]

    @property
    def keys(self) -> frozenset[_Key]:
        """
        What counts as different questions: a question about the same rows under the same rules counts once.

        A further step counts as one by itself, for each sum that it is laid out from: another sum has another answer.
        A fit is one question, and another one for each ``STEPS_OF_A_QUESTION`` steps.
        """
        if self.fit_step:
            part = self.fit_step // STEPS_OF_A_QUESTION
            return frozenset(
                {(self.file, self.table, self.policy, f"part {part} of fit {self.run_id}")}
            )
        asked = (*self.questions, f"a step after {self.state}") if self.state else self.questions
        return frozenset((self.file, self.table, self.policy, question) for question in asked)


_Key = tuple[str, str, str, str]


@dataclass
class _Day:
    """
    What a day's file holds that later questions are compared with, up to a line's end.

    Args:
        size: Bytes that were read.
        lines: Their lines.
        last: The last of these bytes, at most ``_LAST``: another file in this one's place differs there.
        groupings, curves, tables, parts: Of all entries.
        asked: Their keys.
        answers: Run id, round and client -> the keys of each answer.
    """

    size: int = 0
    lines: int = 0
    last: bytes = b""
    groupings: set[Grouping] = field(default_factory=set)
    curves: set[Curve] = field(default_factory=set)
    tables: set[str] = field(default_factory=set)
    parts: set[str] = field(default_factory=set)
    asked: set[_Key] = field(default_factory=set)
    answers: dict[tuple[str, int, str], set[frozenset[_Key]]] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Take an entry in."""
        self.groupings.update(entry.grouped)
        self.curves.update(Curve(*one) for one in entry.curves)
        self.tables.add(entry.table)
        self.parts.update(entry.parts)
        self.asked |= entry.keys
        answer = (entry.run_id, entry.round, entry.client)
        self.answers.setdefault(answer, set()).add(entry.keys)


#: Days that this process has read: a step of a fit reads the lines that were added, however long the ledger is.
_DAYS: dict[Path, _Day] = {}
#: Bytes before the added ones by which a file is known again.
_LAST = 4096


def today() -> str:
    """The day of the ledger, UTC."""
    return time.strftime(_DAY, time.gmtime())


def now() -> str:
    """The time of an entry, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Ledger:
    """
    The ledger of a state folder.

    Args:
        state_dir: The worker's.
    """

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "ledger"

    def entries(self, since: str = "") -> Iterator[Entry]:
        """
        Answers of the days from ``since`` on (YYYY-MM-DD), in order. A line that a crash cut off is left out.

        Raises:
            DataError: A line cannot be read: what it holds would be asked again as if it were new.
            LocalStorageError: A file cannot be read.
        """
        if not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob("*.jsonl")):
            if path.stem >= since:
                yield from _parsed(path, _bytes_from(path, 0), 0)

    def _days(self, since: str = "") -> list[_Day]:
        """
        What is compared with, of the days from ``since`` on; lines that this process has read are not read again.

        Raises:
            DataError, LocalStorageError: As ``entries``.
        """
        found = sorted(self._folder.glob("*.jsonl")) if self._folder.is_dir() else []
        return [_day(path) for path in found if path.stem >= since]

    def groupings(self) -> set[Grouping]:
        """How rows were grouped in earlier questions, of any file: two may hold the same rows."""
        return {one for day in self._days() for one in day.groupings}

    def curves(self) -> set[Curve]:
        """Times to an event that were counted in earlier questions, of any file."""
        return {one for day in self._days() for one in day.curves}

    @contextmanager
    def asking(self) -> Iterator[None]:
        """
        Let no other process of this site read a table, and note its answer, during a block.

        Raises:
            LocalStorageError: The ledger cannot be locked.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(files.file_lock(self._folder / "asking"))
            except OSError as exc:
                raise LocalStorageError(
                    str(self._folder), f"the ledger cannot be locked: {exc.strerror}"
                ) from exc
            yield

    def key(self) -> bytes:
        """
        The key of the row hashes, 32 bytes; it stays here, so that no row can be looked up.

        Raises:
            LocalStorageError: It cannot be kept.
            DataError: It is damaged.
        """
        path = self._folder / _KEY
        try:
            files.folder(self._folder)
            with files.file_lock(self._folder / "lock"):
                if not path.exists():
                    files.write_private(path, secrets.token_bytes(32))
                key = path.read_bytes()
        except OSError as exc:
            raise LocalStorageError(str(path), f"cannot be used: {exc.strerror}") from exc
        if len(key) != 32:
            raise DataError(str(path), "is damaged; restore it, or remove the folder ledger")
        return key

    def note(
        self, entry: Entry, hashes: Rows, policy: SitePolicy, parts: Sequence[Rows] = ()
    ) -> None:
        """
        Note an answer that is about to be given; the same one is noted once a round.

        Args:
            hashes: Of its rows, ascending.
            parts: The same of each of ``entry.parts``.

        Raises:
            PolicyRefusal: It may not be given: too many questions, or too few rows differ from an earlier table.
            DataError: An earlier table's rows are gone, so nothing can be compared with them.
            LocalStorageError: It cannot be noted.
        """
        try:
            files.folder(self._folder)
            with files.file_lock(self._folder / "lock"):
                days = self._days()
                tables = {name for day in days for name in day.tables}
                self._check_changes(
                    hashes, tables - {entry.table}, policy, "its table differs from the one"
                )
                trained = {name for day in days for name in day.parts}
                for digest, rows in zip(entry.parts, parts, strict=True):
                    what = "the rows that are trained on differ from those"
                    self._check_changes(rows, trained - {digest}, policy, what)
                if self._is_noted(entry, policy):
                    return
                for digest, rows in ((entry.table, hashes), *zip(entry.parts, parts, strict=True)):
                    self._keep_rows(digest, rows)
                self._append(entry)
        except OSError as exc:
            raise LocalStorageError(
                str(self._folder), f"the ledger cannot be written: {exc.strerror}"
            ) from exc

    def _is_noted(self, entry: Entry, policy: SitePolicy) -> bool:
        """Whether this very answer is noted. Raises PolicyRefusal for more questions than a day may have."""
        asked: set[_Key] = set()
        for day in self._days(today()):
            asked |= day.asked
            if entry.keys in day.answers.get((entry.run_id, entry.round, entry.client), ()):
                return True
        if len(asked | entry.keys) > policy.max_questions and not entry.keys <= asked:
            raise PolicyRefusal(
                f"its {policy.max_questions} questions of today are answered (max_questions)"
            )
        return False

    def _check_changes(
        self, hashes: Rows, tables: Collection[str], policy: SitePolicy, what: str
    ) -> None:
        """
        Raise PolicyRefusal if a few rows make the difference to a table that was asked before.

        That one may have been another file: a copy under another name, or last month's.

        Args:
            tables: Digests of those.
            what: Begins the refusal.
        """
        for table in sorted(tables):
            path = self._rows_of(table)
            if not path.exists():
                raise DataError(
                    str(path), "is not there (any more); restore it, or remove the folder ledger"
                )
            earlier = np.load(path, allow_pickle=False)
            for few in (_beyond(hashes, earlier), _beyond(earlier, hashes)):
                if 0 < few < policy.min_cell:
                    raise PolicyRefusal(f"{what} of an earlier question by too few rows (min_cell)")

    def _keep_rows(self, digest: str, hashes: Rows) -> None:
        path = self._rows_of(digest)
        if not path.exists():
            files.folder(path.parent)
            with files.write_atomically(path) as file:
                np.save(file, hashes, allow_pickle=False)

    def _append(self, entry: Entry) -> None:
        with files.appended(self._folder / f"{today()}.jsonl") as file:
            # After a crash the last line may be cut off: the next one begins on its own.
            file.write(b"\n" + dumps(asdict(entry)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        files.sync(self._folder)

    def _rows_of(self, table: str) -> Path:
        return self._folder / "rows" / f"{table[:32]}.npy"


def _day(path: Path) -> _Day:
    """A day, as far as its file goes now. Raises DataError, LocalStorageError."""
    known = _DAYS.pop(path, None) or _Day()
    kept = len(known.last)
    data = _bytes_from(path, known.size - kept)
    if data[:kept] != known.last:
        # It was put back from a copy, or edited.
        known, kept, data = _Day(), 0, _bytes_from(path, 0)
    # What follows the last line's end is read again next time: it may be a part of a line. An entry counts once.
    for entry in _parsed(path, data[kept:], known.lines):
        known.add(entry)
    whole = data.rfind(b"\n") + 1
    if whole > kept:
        known.size += whole - kept
        known.lines += data.count(b"\n", kept, whole)
        known.last = data[max(0, whole - _LAST) : whole]
    _DAYS[path] = known
    return known


def _bytes_from(path: Path, start: int) -> bytes:
    """A file from an offset on. Raises LocalStorageError."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read()
    except OSError as exc:
        raise LocalStorageError(str(path), f"cannot be read: {exc.strerror}") from exc


def _parsed(path: Path, data: bytes, before: int) -> Iterator[Entry]:
    """Entries of lines of a day's file, after ``before`` lines. Raises DataError."""
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError):
            # ``_append`` writes an empty line before each entry: where none follows, this one was cut off, and its
            # answer was not given.
            if number == len(lines) or lines[number]:
                continue
            raise _unreadable(path, before + number) from None
        try:
            yield _entry(raw)
        except (ValueError, TypeError, KeyError):
            raise _unreadable(path, before + number) from None


def _unreadable(path: Path, number: int) -> DataError:
    return DataError(
        str(path),
        f"line {number} of the ledger file {path.name} cannot be read (damaged, or of a newer version), so no question "
        "is answered; restore the file from a backup, or update fl-queue here",
        public=True,
    )


def _entry(raw: dict[str, Any]) -> Entry:
    """An entry from its JSON. Raises TypeError, ValueError, KeyError."""
    for name in _TEXTS:
        if type(raw[name]) is not str:
            raise TypeError(name)
    groupings = (written(_grouping(*one)) for one in raw["groupings"])
    listed = {name: tuple(raw[name]) for name in ("questions", "columns")}
    listed["parts"] = tuple(raw.get("parts", ()))
    curves = (
        (time, event, name, tuple(levels), tuple(points))
        for time, event, name, levels, points in raw.get("curves", ())
    )
    return Entry(**{**raw, **listed, "groupings": tuple(groupings), "curves": tuple(curves)})


def digest_of(hashes: Rows) -> str:
    """Digest of rows, by their hashes in ascending order; hexadecimal."""
    return blake3(hashes.astype("<u8").tobytes()).hexdigest()


def written(grouping: Grouping) -> tuple[Any, ...]:
    """A grouping as an entry has it; without its last fields where these are empty, as earlier versions wrote it."""
    found = astuple(grouping)
    if grouping.where:
        return found
    return found[:-1] if grouping.listed else found[:-2]


def _grouping(
    number: str,
    category: str,
    levels: list[str],
    listed: Iterable[tuple[str, list[str]]] = (),
    where: Iterable[str] = (),
) -> Grouping:
    """From an entry's JSON."""
    known = tuple((name, tuple(each)) for name, each in listed)
    return Grouping(number, category, tuple(levels), known, tuple(where))


def _beyond(these: Rows, those: Rows) -> int:
    """How many of these rows are not among those, both sorted; equal rows count as often as they are there."""
    values, counts = np.unique(these, return_counts=True)
    first, last = (np.searchsorted(those, values, side) for side in ("left", "right"))
    return int(np.maximum(counts - (last - first), 0).sum())
