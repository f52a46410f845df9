"""A site's notes of a fit: which states it answers, over which rows, and how many numbers it shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_queue.analyses.base import Limits, SiteRows
from fl_queue.client import fits, sums
from fl_queue.client.fits import FitFolder, FitStep
from fl_queue.client.ledger import Ledger
from fl_queue.client.policy import SitePolicy
from fl_queue.client.site import WorkerSettings
from fl_queue.config.analysis_catalog import ANALYSES
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import DataError, LocalStorageError, PolicyRefusal
from fl_queue.protocol.trainer_messages import Call, Request
from tests.support import tiny_fit
from tests.support.tiny_fit import TinyFit

FIT = TinyFit({"column": "age", "most": 200, "bound": 1.0, "fails_at": 0})
ROWS = SiteRows(60, {"age": np.arange(60.0)}, {})
POLICY = SitePolicy(min_rows=50, max_numbers=10.0)
TABLE = "0" * 64


def path(steps: int) -> list[FitStep]:
    """The first steps of the fit over these rows."""
    state, total, found = FIT.initial(), np.zeros(2, np.int64), []
    for version in range(steps):
        found.append(FitStep(FIT, version, state, total))
        total = FIT.local(state, ROWS, Limits())
        state = FIT.advance(state, total)
    return found


def answer(folder: FitFolder, step: FitStep, table: str = TABLE) -> int:
    """Number of a step that is answered."""
    number = fits.check(step, folder, table, 60, POLICY)
    folder.note(step, table)
    return number


@pytest.fixture
def folder(tmp_path: Path) -> FitFolder:
    """No notes."""
    return FitFolder(tmp_path, "run", "site-1")


def test_the_states_of_a_fit_are_answered(folder: FitFolder) -> None:
    """One after the other, each of them again as often as it is asked for."""
    numbers = [answer(folder, step) for step in path(4) for _ in range(2)]
    assert numbers == [1, 1, 2, 2, 3, 3, 4, 4]
    notes = folder.read()
    assert notes is not None
    assert list(notes.shown.values()) == [2, 2, 2, 2]
    assert len(list(folder._folder.iterdir())) == 2


def test_a_run_goes_back_to_an_older_state(folder: FitFolder) -> None:
    """A control server had lost its last writes: another sum may follow that state now."""
    steps = path(4)
    for step in steps:
        answer(folder, step)
    assert answer(folder, steps[2]) == 3
    fewer = np.array([50, 7], np.int64)
    other = FitStep(FIT, 3, FIT.advance(steps[2].state, fewer), fewer)
    assert answer(folder, other) == 5


@pytest.mark.parametrize("what", ["state", "total", "skipped", "more words", "another start"])
def test_an_invented_state_is_refused(folder: FitFolder, what: str) -> None:
    """A state that does not follow from the one before, and from its sum; nothing is noted of it."""
    steps = path(4)
    answer(folder, steps[0])
    crafted = {
        "state": FitStep(FIT, 1, steps[1].state + np.array([0, 0, 1, 0]), steps[1].total),
        "total": FitStep(FIT, 1, steps[1].state, steps[1].total - np.array([1, 0])),
        "skipped": FitStep(FIT, 1, steps[2].state, steps[2].total),
        "more words": FitStep(FIT, 1, steps[1].state, np.array([*steps[1].total, 1])),
        "another start": FitStep(FIT, 1, FIT.initial() + 1, np.zeros(2, np.int64)),
    }[what]
    with pytest.raises(PolicyRefusal, match="state 1 does not follow from its total"):
        answer(folder, crafted)
    assert answer(folder, steps[1]) == 2


@pytest.mark.parametrize("number", [1, 3])
def test_a_fit_whose_beginning_was_not_here_is_not_answered(folder: FitFolder, number: int) -> None:
    """The site's notes are lost, or it comes late."""
    with pytest.raises(PolicyRefusal, match=f"state {number} is none that a fit begins with"):
        answer(folder, path(4)[number])


def test_a_changed_table_is_not_asked_further(folder: FitFolder) -> None:
    """Until it is as it was."""
    first, second = path(2)
    answer(folder, first)
    with pytest.raises(DataError, match="the table changed since the fit began") as caught:
        answer(folder, second, "1" * 64)
    assert caught.value.public.startswith("the table changed since the fit began")
    assert answer(folder, second) == 2


def test_too_many_parameters(folder: FitFolder) -> None:
    """For the rows of the table."""
    policy = SitePolicy(max_parameters=0.01)
    [first] = path(1)
    assert fits.check(first, folder, TABLE, 100, policy) == 1
    with pytest.raises(PolicyRefusal, match=r"1 parameters are too many .*max_parameters"):
        fits.check(first, folder, TABLE, 99, policy)


def test_the_steps_of_a_fit_show_no_more_numbers_than_the_table_has(folder: FitFolder) -> None:
    """Each state counts once; 60 steps over 30 rows are refused."""
    policy, steps = SitePolicy(), path(60)
    for step in steps[:7]:
        for _ in range(2):
            fits.check(step, folder, TABLE, 30, policy)
            folder.note(step, TABLE)
    with pytest.raises(PolicyRefusal, match=r"16 numbers of one fit are too many .*max_numbers"):
        fits.check(steps[7], folder, TABLE, 30, policy)
    assert fits.check(steps[7], folder, TABLE, 32, policy) == 8


@pytest.mark.parametrize(
    "notes", [b"", b"[]", b'{"table": "a", "shown": [["b"]], "last": "b"}', b'{"table": "a"}']
)
def test_damaged_notes_answer_nothing(folder: FitFolder, notes: bytes) -> None:
    """The error for others names no path."""
    answer(folder, path(1)[0])
    (folder._folder / "fit.json").write_bytes(notes)
    with pytest.raises(DataError, match="notes of this fit are damaged") as caught:
        answer(folder, path(2)[1])
    assert caught.value.public == "the notes of this fit are damaged"


def test_a_damaged_state_answers_nothing(folder: FitFolder) -> None:
    """That which the next one has to follow from."""
    first, second = path(2)
    answer(folder, first)
    [file] = folder._folder.glob("*.state")
    file.write_bytes(b"\1" * 32)
    with pytest.raises(DataError, match="notes of this fit are damaged"):
        answer(folder, second)


def test_notes_that_cannot_be_written(tmp_path: Path) -> None:
    """A file lies where the folder would."""
    (tmp_path / "run").write_text("")
    folder = FitFolder(tmp_path, "run", "site-1")
    with pytest.raises((LocalStorageError, DataError)):
        answer(folder, path(1)[0])


def test_a_restored_run_goes_on_with_the_notes_of_the_first(
    folder: FitFolder, tmp_path: Path
) -> None:
    """Under its new id; its own notes stay once there are some."""
    first, second = path(2)
    answer(folder, first)
    restored = FitFolder(tmp_path, "run-2", "site-1")
    restored.adopt([FitFolder(tmp_path, "none", "site-1"), folder])
    assert answer(restored, second) == 2
    restored.adopt([folder])
    assert answer(restored, second) == 2


def test_weights_that_count_as_few_rows() -> None:
    """Ten equal weights are ten rows; one large weight among many small ones is about one."""
    limits = Limits(min_cell=10)
    limits.check_weights(10 * 0.25, 10 * 0.25**2)
    for weights in ([0.25] * 9, [0.25, *[1e-6] * 500], []):
        found = np.array(weights, np.float64)
        if not len(found):
            limits.check_weights(0.0, 0.0)
            continue
        with pytest.raises(PolicyRefusal, match="weight to too few rows"):
            limits.check_weights(float(found.sum()), float((found * found).sum()))


def test_trees_that_would_be_refused_midway_are_refused_at_their_first_step(
    folder: FitFolder,
) -> None:
    """200 steps count as 11 questions of a day; one that has begun goes on under a stricter policy."""

    class LongFit(TinyFit):
        has_budget = False

    fit = LongFit(FIT.options)
    first, second = (replace(step, analysis=fit) for step in path(2))
    with pytest.raises(PolicyRefusal, match=r"200 steps count as 11 questions .* answers 10"):
        fits.check(first, folder, TABLE, 60, replace(POLICY, max_questions=10))
    assert fits.check(first, folder, TABLE, 60, replace(POLICY, max_questions=11)) == 1
    folder.note(first, TABLE)
    assert fits.check(second, folder, TABLE, 60, replace(POLICY, max_questions=10)) == 2
    assert fits.check(path(1)[0], FitFolder(folder._folder, "x", "a"), TABLE, 60, POLICY) == 1


# Through the answer of a site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerSettings:
    """A site with a table of these rows."""
    monkeypatch.setitem(ANALYSES, "tiny-fit", tiny_fit.entry())
    data = tmp_path / "data"
    data.mkdir()
    (data / "table.csv").write_text("\n".join(["age", *map(str, range(60))]) + "\n")
    rules = tmp_path / "site.toml"
    rules.write_text("max_numbers = 100.0\nmax_questions = 3\n")
    return WorkerSettings(
        state_dir=tmp_path / "state", data_dir=str(data), client="a", policy=str(rules)
    )


def test_a_fit_is_one_question_and_one_for_each_twenty_steps(site: WorkerSettings) -> None:
    """Of three a day; the ledger has each step, and the next fit is refused."""
    asked = RunConfig.from_dict({"run": {"task": "tiny-fit"}, "task": {"bound": 1.0}})
    found = sums.read(site, asked)

    def request(run: str, step: FitStep) -> Request:
        return Request(
            call=Call.sums, run=run, name="fit", config=asked.to_dict(), client="a",
            round=step.version + 1, base_version=step.version,
        )  # fmt: skip

    steps = path(60)
    for step in steps[:59]:
        words = sums.answer(site, request("r", step), found, step.state, step.total)
        assert np.array_equal(words, FIT.local(step.state, ROWS, Limits()))
    entries = list(Ledger(site.state_dir).entries())
    assert [entry.fit_step for entry in entries] == list(range(1, 60))
    assert {entry.numbers for entry in entries} == {2}
    for run, step in (("r", steps[59]), ("s", steps[0])):
        with pytest.raises(PolicyRefusal, match="its 3 questions of today are answered"):
            sums.answer(site, request(run, step), found, step.state, step.total)


def test_a_state_without_the_sum_that_it_was_made_of(site: WorkerSettings) -> None:
    """A made-up version that leaves it out is checked as any other: only the first state has none."""
    asked = RunConfig.from_dict({"run": {"task": "tiny-fit"}, "task": {"bound": 1.0}})
    found, (first, second) = sums.read(site, asked), path(2)
    request = Request(
        call=Call.sums, run="r", name="fit", config=asked.to_dict(), client="a", round=1
    )
    with pytest.raises(PolicyRefusal, match="none that a fit begins with"):
        sums.answer(site, request, found, second.state)
    sums.answer(site, request, found, first.state)
    with pytest.raises(PolicyRefusal, match="does not follow from its total"):
        sums.answer(site, request, found, second.state)
