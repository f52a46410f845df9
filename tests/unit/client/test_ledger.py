"""A site's ledger: what is refused because of what was answered before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from fl_queue.client import ledger
from fl_queue.client.ledger import Entry, Ledger
from fl_queue.client.policy import SitePolicy
from fl_queue.common import files
from fl_queue.errors import DataError, PolicyRefusal
from fl_queue.tables import row_texts
from fl_queue.tables.cell_hash import Hashes

POLICY = SitePolicy(min_cell=5, max_questions=3)
ENTRY = Entry(
    at="2026-01-31T12:00:00Z",
    run="survey",
    run_id="survey-1",
    round=1,
    client="a",
    questions=("numbers age",),
    columns=("age",),
    file="/data/table.csv",
    table="t1",
    rows=100,
    numbers=10,
    policy=POLICY.digest,
)
LINES = [f"row {number}".encode() for number in range(100)]


@pytest.fixture(autouse=True)
def one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test passes midnight."""
    monkeypatch.setattr(ledger, "today", lambda: "2026-01-31")


def _hashes(book: Ledger, lines: list[bytes]) -> Hashes:
    column = pyarrow.chunked_array([[line.decode() for line in lines]])
    return np.sort(row_texts.of_columns([("name", column)], book.key()))


def _note(book: Ledger, lines: list[bytes] = LINES, **changed: object) -> None:
    book.note(replace(ENTRY, **changed), _hashes(book, lines), POLICY)  # type: ignore[arg-type]


def test_an_answer_is_noted_once(tmp_path: Path) -> None:
    """A second attempt of the same round adds no line, and is no further question."""
    book = Ledger(tmp_path)
    for _ in range(5):
        _note(book)
    assert list(book.entries()) == [ENTRY]


def test_the_same_question_again_counts_once(tmp_path: Path) -> None:
    """In another run; it has the same answer."""
    book = Ledger(tmp_path)
    for number in range(5):
        _note(book, run_id=f"survey-{number}")
    assert len(list(book.entries())) == 5


def test_questions_of_a_day_are_limited(tmp_path: Path) -> None:
    """Those that were answered already are answered again."""
    book = Ledger(tmp_path)
    _note(book, questions=("a", "b"), run_id="1")
    with pytest.raises(PolicyRefusal, match="its 3 questions of today are answered"):
        _note(book, questions=("c", "d"), run_id="2")
    _note(book, questions=("c",), run_id="3")
    _note(book, questions=("a", "b", "c"), run_id="4")
    with pytest.raises(PolicyRefusal):
        _note(book, questions=("d",), run_id="5")
    assert [entry.run_id for entry in book.entries()] == ["1", "3", "4"]


def test_questions_of_other_days_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay in the ledger."""
    book = Ledger(tmp_path)
    monkeypatch.setattr(ledger, "today", lambda: "2026-01-30")
    _note(book, questions=("a", "b", "c"), run_id="1")
    monkeypatch.setattr(ledger, "today", lambda: "2026-01-31")
    _note(book, questions=("d",), run_id="2")
    assert [entry.run_id for entry in book.entries()] == ["1", "2"]
    assert [entry.run_id for entry in book.entries("2026-01-31")] == ["2"]


@pytest.mark.parametrize(
    ("lines", "is_refused"),
    [
        (LINES[1:], True),
        ([*LINES, b"new"], True),
        ([b"corrected", *LINES[1:]], True),
        ([*LINES, LINES[0]], True),
        (LINES[5:], False),
        ([f"other {number}".encode() for number in range(100)], False),
        (LINES[::-1], False),
    ],
)
def test_a_table_that_changed_by_a_few_rows(
    tmp_path: Path, lines: list[bytes], is_refused: bool
) -> None:
    """The difference of two exact sums would be those rows."""
    book = Ledger(tmp_path)
    _note(book)
    if is_refused:
        with pytest.raises(PolicyRefusal, match="by too few rows"):
            _note(book, lines, table="t2", run_id="2")
        assert list(book.entries()) == [ENTRY]
    else:
        _note(book, lines, table="t2", run_id="2")


def test_another_file_may_hold_the_same_table(tmp_path: Path) -> None:
    """Last month's, of which one row is gone: the files are compared as one that was written again is."""
    book = Ledger(tmp_path)
    _note(book)
    with pytest.raises(PolicyRefusal, match="by too few rows"):
        _note(book, LINES[1:], table="t2", file="/data/other.csv", run_id="2")
    _note(book, [b"other " + line for line in LINES], table="t3", file="/data/other.csv")


def test_another_sum_before_a_step_is_another_question(tmp_path: Path) -> None:
    """Cells of quantiles are cut by it: who makes sums up asks again and again."""
    book = Ledger(tmp_path)
    _note(book, run_id="1")
    for number in (2, 3):
        _note(book, run_id=f"{number}", state=f"s{number}", round=2)
    _note(book, run_id="4", state="s2", round=2)
    with pytest.raises(PolicyRefusal, match="questions of today"):
        _note(book, run_id="5", state="s5", round=2)


def test_rows_that_are_gone_are_not_taken_for_others(tmp_path: Path) -> None:
    """A question about a changed table is refused until they are back."""
    book = Ledger(tmp_path)
    _note(book)
    [rows] = (tmp_path / "ledger" / "rows").iterdir()
    rows.unlink()
    with pytest.raises(DataError, match="is not there"):
        _note(book, LINES[1:], table="t2", run_id="2")


def test_one_process_asks_at_a_time(tmp_path: Path) -> None:
    """Each compares its question with all that were answered before it."""
    with Ledger(tmp_path).asking(), ExitStack() as other, pytest.raises(TimeoutError):
        other.enter_context(files.file_lock(tmp_path / "ledger" / "asking", timeout_s=0))


def test_a_line_that_a_crash_has_cut_off(tmp_path: Path) -> None:
    """The lines before and after it are read."""
    book = Ledger(tmp_path)
    _note(book, run_id="1")
    [day] = (tmp_path / "ledger").glob("*.jsonl")
    with day.open("ab") as file:
        file.write(b'\n{"at": "2026')
    _note(book, run_id="2")
    assert [entry.run_id for entry in book.entries()] == ["1", "2"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:-1],
        lambda line: b"x" + line[1:],
        lambda line: line.replace(b"survey", b"sur\xffey"),
        lambda line: line[:-1] + b', "newer": 1}',
        lambda line: line.replace(b'"table"', b'"tabel"'),
        lambda line: line.replace(b'"t1"', b"1"),
        lambda line: b"[]",
        lambda line: b"7",
    ],
)
@pytest.mark.parametrize("place", [1, 3])
def test_a_whole_line_that_cannot_be_read(
    tmp_path: Path, damage: Callable[[bytes], bytes], place: int
) -> None:
    """Nothing is answered: what it was about would be asked again as if it were new. Also of the last line."""
    book = Ledger(tmp_path)
    for run in ("1", "2"):
        _note(book, run_id=run)
    [day] = (tmp_path / "ledger").glob("*.jsonl")
    lines = day.read_bytes().split(b"\n")
    assert len(lines) == 5
    lines[place] = damage(lines[place])
    day.write_bytes(b"\n".join(lines))
    for ask in (book.groupings, lambda: _note(book, run_id="3")):
        with pytest.raises(DataError) as refused:
            ask()
        assert f"line {place + 1} of the ledger file 2026-01-31.jsonl" in refused.value.public
        assert "restore the file from a backup, or update" in refused.value.public
        assert str(tmp_path) not in refused.value.public
    assert day.read_bytes() == b"\n".join(lines)


@pytest.mark.parametrize("kept", [0, 1, 2, 40, -2, -1])
def test_a_write_that_was_cut_off_anywhere(tmp_path: Path, kept: int) -> None:
    """Its answer was not given: questions go on, before and after the next line."""
    book = Ledger(tmp_path)
    _note(book, run_id="1")
    [day] = (tmp_path / "ledger").glob("*.jsonl")
    whole = day.read_bytes()
    day.write_bytes(whole + whole[:kept])
    assert {entry.run_id for entry in book.entries()} == {"1"}
    _note(book, run_id="2")
    assert [entry.run_id for entry in book.entries()][-1] == "2"


def test_no_other_account_reads_it(tmp_path: Path) -> None:
    """Hashes are under a key of this site."""
    book, other = Ledger(tmp_path / "a"), Ledger(tmp_path / "b")
    _note(book)
    assert (tmp_path / "a" / "ledger").stat().st_mode & 0o077 == 0
    assert not np.array_equal(_hashes(book, LINES), _hashes(other, LINES))
    assert np.array_equal(_hashes(book, LINES), _hashes(Ledger(tmp_path / "a"), LINES[::-1]))


def test_a_long_ledger_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A further step reads and parses the lines that were added, however many there are before them."""
    book = Ledger(tmp_path)
    _note(book)
    day = tmp_path / "ledger" / "2026-01-31.jsonl"
    line = day.read_bytes()
    day.write_bytes(line * 100_000)
    book.groupings()
    read, parsed = [], []
    from_offset, entry = ledger._bytes_from, ledger._entry
    monkeypatch.setattr(
        ledger, "_bytes_from", lambda *each: read.append(found := from_offset(*each)) or found
    )
    monkeypatch.setattr(ledger, "_entry", lambda raw: parsed.append(raw) or entry(raw))
    for number in range(2, 12):
        book.groupings()
        _note(book, run_id="survey-2", round=number, fit_step=number)
    assert len(parsed) == 10 - 1
    assert max(map(len, read)) < 3 * ledger._LAST
    assert day.read_bytes().count(b'"run_id":"survey-2"') == 10


def test_a_ledger_put_back_from_a_copy_is_read_again(tmp_path: Path) -> None:
    """What this process has read of another file in its place does not count."""
    book = Ledger(tmp_path)
    _note(book, questions=("a", "b", "c"))
    day = tmp_path / "ledger" / "2026-01-31.jsonl"
    copy = day.read_bytes()
    with pytest.raises(PolicyRefusal):
        _note(book, questions=("d",), run_id="2")
    day.write_bytes(copy.replace(b'"c"', b'"x"') + copy.replace(b'"c"', b'"y"'))
    with pytest.raises(PolicyRefusal):
        _note(book, questions=("c",), run_id="2")


def test_a_line_that_was_cut_off_is_no_answer_once_more_follow(tmp_path: Path) -> None:
    """Also if this process read the ledger while the cut line was its last."""
    book = Ledger(tmp_path)
    _note(book)
    day = tmp_path / "ledger" / "2026-01-31.jsonl"
    with day.open("ab") as file:
        file.write(b'\n{"at": "2026')
    book.groupings()
    _note(book, run_id="survey-2")
    book.groupings()
    _note(book, run_id="survey-2")
    assert [entry.run_id for entry in book.entries()] == ["survey-1", "survey-2"]


def test_an_entry_without_its_line_end_counts(tmp_path: Path) -> None:
    """An editor takes the last line's end away; the answer was given."""
    book = Ledger(tmp_path)
    _note(book, questions=("a", "b", "c"))
    day = tmp_path / "ledger" / "2026-01-31.jsonl"
    day.write_bytes(day.read_bytes().rstrip())
    with pytest.raises(PolicyRefusal):
        _note(book, questions=("d",), run_id="2")
