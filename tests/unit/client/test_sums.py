"""A site's answers: what it refuses because of its policy, or of what it has answered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_queue.client import sums
from fl_queue.client.ledger import Ledger
from fl_queue.client.site import WorkerSettings
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, DataError, PolicyRefusal
from fl_queue.protocol.trainer_messages import Call, Request

#: Two wards of a hospital, and a second hospital; one ward has three patients more than the other hospital's list.
WARDS = ["a"] * 30 + ["b"] * 3 + ["c"] * 40
HOSPITALS = ["x"] * 33 + ["y"] * 40


@pytest.fixture
def site(tmp_path: Path) -> WorkerSettings:
    """A site with a table of 73 rows."""
    rows = [
        f"{20 + row % 50},{ward},{hospital}"
        for row, (ward, hospital) in enumerate(zip(WARDS, HOSPITALS, strict=True))
    ]
    data = tmp_path / "data"
    data.mkdir()
    (data / "table.csv").write_text("\n".join(["age,ward,hospital", *rows]) + "\n")
    rules = tmp_path / "site.toml"
    rules.write_text("min_rows = 50\nmin_cell = 10\n")
    return WorkerSettings(
        state_dir=tmp_path / "state", data_dir=str(data), client="a", policy=str(rules)
    )


def config(**task: Any) -> RunConfig:
    """A config with these questions."""
    return RunConfig.from_dict({"run": {"task": "statistics"}, "task": task})


def answer(site: WorkerSettings, asked: RunConfig, run: str = "r") -> np.ndarray:
    """The words of the first step."""
    request = Request(
        call=Call.sums, run=run, name="survey", config=asked.to_dict(), client="a", round=1
    )
    found = sums.read(site, asked)
    return sums.answer(site, request, found, found.analysis.initial())


def test_an_answer_is_noted_before_it_is_given(site: WorkerSettings) -> None:
    """With what was asked, and under which rules; the same again for the same question."""
    asked = config(numbers=["age"], levels={"hospital": ["x", "y"]}, groups=["age by hospital"])
    first = answer(site, asked)
    assert np.array_equal(answer(site, asked, "s"), first)
    noted = list(Ledger(site.state_dir).entries())
    assert [entry.run_id for entry in noted] == ["r", "s"]
    assert noted[0].questions == ("numbers age", "levels of hospital", "age by hospital")
    assert (noted[0].rows, noted[0].columns) == (73, ("age", "hospital"))


def test_groups_that_differ_by_a_few_rows_are_refused(site: WorkerSettings) -> None:
    """Ward a lies in hospital x, and 3 rows are between them: their difference would be shown."""
    levels = {"hospital": ["x", "y"], "ward": ["a", "c"]}
    both = config(numbers=["age"], levels=levels, groups=["age by hospital", "age by ward"])
    with pytest.raises(PolicyRefusal, match=r"age by .*differ by too few rows"):
        answer(site, both)
    assert list(Ledger(site.state_dir).entries()) == []


def asked_at(*times: float, by: str = "") -> RunConfig:
    """A question about survival at these times."""
    levels = {"sex": ["F", "M"]} if by else {}
    return config(survival=[f"months died{by}"], time_grid=list(times), levels=levels)


@pytest.mark.parametrize(
    ("earlier", "later", "is_refused"),
    [
        (asked_at(5, 10), asked_at(5.5, 10), True),
        (asked_at(5, 10, by=" by sex"), asked_at(5.5, 10), True),
        (asked_at(5, 10), asked_at(5.5, 10, by=" by sex"), True),
        (asked_at(5, 10, by=" by sex"), asked_at(5.5, 10, by=" by sex"), True),
        (asked_at(5, 10), asked_at(2, 5, 8, 10), False),
        (asked_at(5, 10, by=" by sex"), asked_at(2, 5, 8, 10), False),
    ],
)
def test_times_that_cut_off_a_few_rows_are_refused(
    site: WorkerSettings, earlier: RunConfig, later: RunConfig, is_refused: bool
) -> None:
    """Each grid has rows enough in each interval; the one row between 5 and 5.5 follows from two of them."""
    rows = [f"{row // 20 + 1},{row % 2},{'FM'[row % 4 // 2]}" for row in range(200)]
    text = "\n".join(["months,died,sex", *rows, "5,0,F", "5.5,0,F"])
    (Path(site.data_dir) / "table.csv").write_text(text + "\n")
    answer(site, later, "s")
    book = Ledger(site.state_dir)
    assert book.curves() == {*later.analysis.curves()}  # type: ignore[union-attr]
    assert len(book.curves()) == 1
    if not is_refused:
        answer(site, earlier)
        return
    with pytest.raises(PolicyRefusal, match=r"survival months died.* differ by too few rows"):
        answer(site, earlier)
    assert [entry.run_id for entry in book.entries()] == ["s"]


def _months(site: WorkerSettings, *more: str) -> None:
    """Write a table of 20 rows of each of ten months, and these rows."""
    rows = [f"{row // 20 + 1},{row % 2},{'FM'[row % 4 // 2]}" for row in range(200)]
    text = "\n".join(["months,died,sex", *rows, *more])
    (Path(site.data_dir) / "table.csv").write_text(text + "\n")


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(("rows", "is_refused"), [(3, True), (0, False), (40, False)])
@pytest.mark.parametrize("way", ["levels", "sum"])
def test_times_that_are_counted_or_summed_otherwise(
    site: WorkerSettings, way: str, rows: int, is_refused: bool, is_first: bool
) -> None:
    """
    An interval less its listed times is the few others; a sum less each time's rows is that of the few without an event.

    Whichever is asked first, and though either has rows enough by itself.
    """
    if way == "levels":
        _months(site, *(f"5.5,{row % 2},{'FM'[row % 4 // 2]}" for row in range(rows)))
        asked = [asked_at(4, 6, 10), config(levels={"months": ["5", "6"]})]
    else:
        _months(site, *(f"{row % 10 + 1},,F" for row in range(rows)))
        asked = [asked_at(*range(1, 11)), config(numbers=["months"])]
    first, second = asked if is_first else asked[::-1]
    answer(site, first)
    if not is_refused:
        answer(site, second, "s")
        return
    with pytest.raises(PolicyRefusal, match=r"survival months died, and .* about these times"):
        answer(site, second, "s")


def test_few_events_without_a_time(site: WorkerSettings) -> None:
    """A sum of events, less those of the curve, is their number, however many rows have neither."""
    _months(site, *[",0,F"] * 20, *[",1,M"] * 3)
    with pytest.raises(PolicyRefusal, match="too few rows have died and no months"):
        answer(site, asked_at(5, 10))


@pytest.mark.parametrize("more", [3, 0, 12])
def test_curves_by_two_categories_that_differ_by_a_few_rows(
    site: WorkerSettings, more: int
) -> None:
    """A ward with few patients is withheld with another one; the hospital less the first ward shows its times."""
    wards = ["a"] * 60 + ["b"] * more + ["c"] * 40 + ["d"] * 40
    rows = [
        f"{row % 2 + 1},{row // 2 % 2},{ward},{'x' if ward in 'ab' else 'y'}"
        for row, ward in enumerate(wards)
    ]
    text = "\n".join(["months,died,ward,hospital", *rows])
    (Path(site.data_dir) / "table.csv").write_text(text + "\n")
    (site.state_dir.parent / "site.toml").write_text("min_rows = 50\nmin_cell = 5\n")
    times: dict[str, Any] = {"time_grid": [5]}
    by_hospital = config(
        survival=["months died by hospital"], levels={"hospital": ["x", "y"]}, **times
    )
    by_ward = config(
        survival=["months died by ward"], levels={"ward": ["a", "b", "c", "d"]}, **times
    )
    answer(site, by_hospital)
    if more != 3:
        answer(site, by_ward, "s")
        return
    with pytest.raises(
        PolicyRefusal, match="survival months died by ward, and what was asked before"
    ):
        answer(site, by_ward, "s")


def test_groups_of_an_earlier_question_are_compared_too(site: WorkerSettings) -> None:
    """Asked one after the other, in two runs."""
    answer(site, config(numbers=["age"], levels={"hospital": ["x"]}, groups=["age by hospital"]))
    later = config(numbers=["age"], levels={"ward": ["a"]}, groups=["age by ward"])
    with pytest.raises(PolicyRefusal, match="age by ward, and what was asked before"):
        answer(site, later, "s")


def test_other_levels_of_one_category_are_compared(site: WorkerSettings) -> None:
    """First a, and the rest; then c, and the rest: the rest of the rest are 3 rows."""
    answer(site, config(levels={"ward": ["a"]}))
    with pytest.raises(PolicyRefusal, match="ward, and what was asked before"):
        answer(site, config(levels={"ward": ["a", "c"]}), "s")


@pytest.mark.parametrize("level", ["b", "not there"])
def test_a_refusal_does_not_show_whether_a_rare_text_is_there(
    site: WorkerSettings, level: str
) -> None:
    """A question with it, after one without it, is answered either way, and in the same words."""
    answer(site, config(levels={"ward": ["a"]}))
    first = answer(site, config(levels={"ward": ["a", "elsewhere"]}), "s")
    assert np.array_equal(answer(site, config(levels={"ward": ["a", level]}), "t"), first)


def test_a_copy_of_a_table_is_the_same_table(site: WorkerSettings) -> None:
    """Under another name: groups are compared with those of the first."""
    folder = Path(site.data_dir)
    (folder / "copy.csv").write_bytes((folder / "table.csv").read_bytes())
    answer(site, config(numbers=["age"], levels={"hospital": ["x"]}, groups=["age by hospital"]))
    later = config(file="copy.csv", numbers=["age"], levels={"ward": ["a"]}, groups=["age by ward"])
    with pytest.raises(PolicyRefusal, match="age by ward, and what was asked before"):
        answer(site, later, "s")


def _write(site: WorkerSettings, header: str, rows: list[str]) -> None:
    (Path(site.data_dir) / "table.csv").write_text("\n".join([header, *rows]) + "\n")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"numbers": ["age"]}, {"numbers": ["age", "bmi"]}),
        ({"numbers": ["age"], "decimal": "."}, {"numbers": ["age"], "decimal": ","}),
    ],
)
def test_a_row_is_the_same_with_another_decimal_sign(
    site: WorkerSettings, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """Whether the config sets it, or asks for another column, whose cells have commas."""
    rows = [f"{20 + row % 50};{row % 7},{row % 10}" for row in range(100)]
    _write(site, "age;bmi", rows)
    answer(site, config(**first))
    _write(site, "age;bmi", [*rows, "99;3,3"])
    with pytest.raises(PolicyRefusal, match="its table differs from the one of an earlier"):
        answer(site, config(**second), "s")


@pytest.mark.parametrize("rules", ["", 'never = ["hiv"]\n'])
@pytest.mark.parametrize(
    "asked", [{"levels": {"hiv,age": ["1,30"]}}, {"numbers": ["hiv,age"], "decimal": ","}]
)
def test_another_delimiter_joins_no_columns(
    site: WorkerSettings, rules: str, asked: dict[str, Any]
) -> None:
    """Two columns as one: a hidden one would be read, and one of them be a decimal part."""
    Path(site.policy).write_text(f"min_rows = 50\nmin_cell = 10\n{rules}")
    _write(site, "hiv,age", [f"{row % 2},{20 + row % 50}" for row in range(100)])
    why = "has no column hiv,age" if rules else "column hiv,age: its name is several columns"
    with pytest.raises(DataError) as caught:
        answer(site, config(delimiter=";", **asked))
    assert caught.value.public.startswith(f"table.csv: {why}")


@pytest.mark.parametrize(
    ("rare", "is_refused"), [(["99"], True), (["7"] * 30 + ["9"], True), (["7"] * 30, False)]
)
@pytest.mark.parametrize("order", [1, -1])
def test_a_sum_and_the_counts_of_its_values_are_compared(
    site: WorkerSettings, rare: list[str], is_refused: bool, order: int
) -> None:
    """Of the sum all but a few rows follow from the counts; in either order, as numbers or as levels first."""
    _write(site, "stage", [f"{row % 4}" for row in range(100)] + rare)
    listed = config(levels={"stage": ["0", "1", "2", "3"]})
    first, second = (config(numbers=["stage"]), listed)[::order]
    answer(site, first)
    if not is_refused:
        answer(site, second, "s")
        return
    with pytest.raises(PolicyRefusal, match="the sum of stage and its levels"):
        answer(site, second, "s")


def test_rows_without_a_gap_are_compared(site: WorkerSettings) -> None:
    """Two correlations of age, over rows of which those of one are those of the other and 3 more."""
    rows = [
        f"{20 + row % 50},{'' if row < 15 else row},{'' if row < 18 else row}" for row in range(80)
    ]
    file = Path(site.data_dir) / "table.csv"
    file.write_text("\n".join(["age,crp,hb", *rows]) + "\n")
    answer(site, config(correlation=["age", "crp"]))
    with pytest.raises(PolicyRefusal, match="correlation of age, and what was asked before"):
        answer(site, config(correlation=["age", "hb"]), "s")


def test_a_table_of_few_rows(site: WorkerSettings) -> None:
    """Nothing is made of it, and nothing noted."""
    Path(site.policy).write_text("min_rows = 74\n")
    with pytest.raises(PolicyRefusal, match="fewer rows than its min_rows"):
        sums.read(site, config(numbers=["age"]))


def test_more_levels_than_a_question_may_list(site: WorkerSettings) -> None:
    """A list of names would ask who is in the table."""
    Path(site.policy).write_text("max_levels = 2\n")
    with pytest.raises(
        PolicyRefusal, match=r"more levels than a question may list \(2, max_levels\)"
    ):
        sums.read(site, config(levels={"ward": ["a", "b", "c"]}))


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"allow": ("mnist",)}, "run.task"),
        ({"data_dir": ""}, "data.dir"),
        ({"policy": "/none"}, "--policy"),
    ],
)
def test_a_site_that_is_not_set_up_for_it(
    site: WorkerSettings, changed: dict[str, Any], field: str
) -> None:
    """The reason is one that may leave it."""
    with pytest.raises(ConfigError) as refused:
        sums.read(replace(site, **changed), config(numbers=["age"]))
    assert refused.value.field == field
    assert refused.value.public


def test_a_preview_notes_nothing(site: WorkerSettings) -> None:
    """It is for the site's own eyes."""
    found = sums.preview(site, config(numbers=["age"], quantiles=[0.5]))
    assert found["numbers"]["age"]["rows"] == 73
    assert not (site.state_dir / "ledger" / "rows").exists()


def test_a_table_is_kept_between_steps(site: WorkerSettings) -> None:
    """With what an analysis has computed from it, while question, file and policy are the same."""
    kept, asked = sums.KeptTable(), config(numbers=["age"])
    first = kept.read(site, asked)
    first.read.table.scratch["margins"] = 1
    assert kept.read(site, asked) is first
    other = kept.read(site, config(numbers=["age"], levels={"ward": ["a"]}))
    assert other is not first
    assert other.read.table.scratch == {}


@pytest.mark.parametrize("what", ["file", "policy", "drop", "ledger"])
def test_a_kept_table_is_read_again_after_a_change(site: WorkerSettings, what: str) -> None:
    """Of its file, of the site's policy, or of the questions that it is compared with."""
    kept, asked = sums.KeptTable(), config(numbers=["age"])
    first, file = kept.read(site, asked), Path(site.data_dir) / "table.csv"
    if what == "file":
        file.write_text(file.read_text() + "20,a,x\n")
    elif what == "policy":
        Path(site.policy).write_text("min_rows = 51\n")
    elif what == "ledger":
        answer(site, config(levels={"hospital": ["x"]}))
    else:
        kept.drop()
    again = kept.read(site, asked)
    assert again is not first
    assert again.read.table.rows == (74 if what == "file" else 73)


def _regression(site: WorkerSettings, features: str, gaps: int) -> RunConfig:
    """A regression on columns of which ``crp`` has gaps. Writes the table."""
    rng = np.random.default_rng(1)
    rows = [
        f"{age:.2f},{'' if row < gaps else round(crp, 2)},{y:.2f}"
        for row, (age, crp, y) in enumerate(rng.normal(size=(90, 3)) + 5)
    ]
    (Path(site.data_dir) / "table.csv").write_text("\n".join(["age,crp,y", *rows]) + "\n")
    task = {"family": "linear", "target": "y", "features": features}
    return RunConfig.from_dict({"run": {"task": "regression"}, "task": task})


@pytest.mark.parametrize(("gaps", "is_refused"), [(0, False), (4, True), (12, False)])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_regression_and_statistics_that_differ_by_a_few_rows(
    site: WorkerSettings, gaps: int, is_refused: bool, is_first: bool
) -> None:
    """Rows with a gap are in one sum of ``age``, and not in the other: whichever is asked first."""
    asked = [_regression(site, "age,crp", gaps), config(numbers=["age"])]
    first, second = asked if is_first else asked[::-1]
    answer(site, first)
    if not is_refused:
        answer(site, second, "s")
        return
    with pytest.raises(PolicyRefusal, match="age, and what was asked before"):
        answer(site, second, "s")


def test_regressions_on_rows_that_differ_by_a_few(site: WorkerSettings) -> None:
    """With a column more, rows with a gap in it are left out."""
    wide = _regression(site, "age,crp", 4)
    answer(site, _regression(site, "age", 4))
    with pytest.raises(PolicyRefusal, match="regression of age, and what was asked before"):
        answer(site, wide, "s")


def _of_categories(
    site: WorkerSettings, features: str, *rare: str, **columns: tuple[str, ...]
) -> RunConfig:
    """A logistic regression of ``died`` on categories alone. Writes the table, whose wards have four gaps."""
    wards = [""] * 4 + ["a"] * 96 + ["b"] * 100 + [*rare] * 3 + ["d"] * 30
    rows = [
        f"{ward},{'xy'[row % 2]},{('no', 'yes')[row % 3 % 2]}" for row, ward in enumerate(wards)
    ]
    (Path(site.data_dir) / "table.csv").write_text("\n".join(["ward,hospital,died", *rows]) + "\n")
    task = {"family": "logistic", "target": "died", "classes": "no,yes", "features": features}
    task["columns"] = {name: {"levels": levels} for name, levels in columns.items()}
    return RunConfig.from_dict({"run": {"task": "regression"}, "task": task})


def test_regressions_without_numbers_on_rows_that_differ_by_a_few(site: WorkerSettings) -> None:
    """Their target's sums would differ by those of the rows with a gap, though there is no column of numbers."""
    answer(site, _of_categories(site, "hospital", hospital=("x", "y")))
    every = {"hospital": ("x", "y"), "ward": ("a", "b", "d")}
    with pytest.raises(PolicyRefusal, match="what was asked before or with it, differ by too few"):
        answer(site, _of_categories(site, "hospital,ward", **every), "s")
    counts = config(levels={"hospital": ["x"], "ward": ["a", "b"]})
    assert len(answer(site, counts, "t"))


def test_a_level_more_is_a_few_rows_more(site: WorkerSettings) -> None:
    """Though many others are not listed, either time."""
    answer(site, _of_categories(site, "ward", "c", ward=("a", "b")))
    with pytest.raises(PolicyRefusal, match="column ward would show few rows"):
        answer(site, _of_categories(site, "ward", "c", ward=("c", "a", "b")), "s")


def test_texts_that_are_not_listed_are_compared(site: WorkerSettings) -> None:
    """Patients who are in neither list of two columns, but for a few: a regression on one, and on both."""
    rows = [
        f"{'pq'[row % 2]},{'xyz'[(row >= 60) + (row >= 120)]},{row % 7}.5" for row in range(160)
    ]
    cut = [f"{'pq'[row % 2] if row < 117 else 'r'},{one[2:]}" for row, one in enumerate(rows)]
    (Path(site.data_dir) / "table.csv").write_text("\n".join(["ward,hospital,y", *cut]) + "\n")

    def asked(**columns: tuple[str, ...]) -> RunConfig:
        task: dict[str, Any] = {"family": "linear", "target": "y", "features": ",".join(columns)}
        task["columns"] = {name: {"levels": levels} for name, levels in columns.items()}
        return RunConfig.from_dict({"run": {"task": "regression"}, "task": task})

    answer(site, asked(hospital=("x", "y")))
    with pytest.raises(PolicyRefusal, match="what was asked before"):
        answer(site, asked(hospital=("x", "y"), ward=("p", "q")), "s")


@pytest.mark.parametrize(("gaps", "is_refused"), [(0, False), (4, True), (12, False)])
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("other", ["statistics", "trees"])
def test_trees_on_rows_that_differ_by_a_few(
    site: WorkerSettings, gaps: int, is_refused: bool, is_first: bool, other: str
) -> None:
    """Rows without the target are in one count of ``age``, and not in the other: whichever is asked first."""
    _regression(site, "age", gaps)
    with Path(site.policy).open("a") as rules:
        rules.write('trees = "clear"\n')
    crp, y = (_trees(target) for target in ("crp", "y"))
    asked = [crp, y if other == "trees" else config(numbers=["age"])]
    first, second = asked if is_first else asked[::-1]
    answer(site, first)
    if not is_refused:
        answer(site, second, "s")
        return
    with pytest.raises(PolicyRefusal, match="age, and what was asked before"):
        answer(site, second, "s")


def _trees(target: str) -> RunConfig:
    task = {"objective": "squared", "target": target, "numbers": ["age"]}
    return RunConfig.from_dict({"run": {"task": "trees"}, "task": task})


def test_trees_of_other_levels_of_a_category(site: WorkerSettings) -> None:
    """First a, and the rest; then c, and the rest: the rest of the rest are 3 rows."""
    with Path(site.policy).open("a") as rules:
        rules.write('trees = "clear"\n')
    answer(site, config(levels={"ward": ["a"]}))
    task = {"objective": "squared", "target": "age", "levels": {"ward": ["a", "c"]}}
    asked = RunConfig.from_dict({"run": {"task": "trees"}, "task": task})
    with pytest.raises(PolicyRefusal, match="ward, and what was asked before"):
        answer(site, asked, "s")


def _patients(site: WorkerSettings, elders: int, *filters: str) -> None:
    """A table of 200 patients of two sexes and three wards, of whom so many women are 90 or more."""
    rows = [
        f"{(90 if row % 2 == 0 and row < 2 * elders else 20) + row % 7},{'FM'[row % 2]},{'abc'[row % 3]},"
        f"{row % 11 + 1}.5"
        for row in range(200)
    ]
    (Path(site.data_dir) / "table.csv").write_text("\n".join(["age,sex,ward,crp", *rows]) + "\n")
    Path(site.policy).write_text(f"min_rows = 50\nmin_cell = 10\nfilters = {[*filters]}\n")


LEVELS = {"sex": ["F", "M"], "ward": ["a", "b", "c"]}


def test_rows_that_meet_conditions(site: WorkerSettings) -> None:
    """Equal to a table of these rows alone; the ledger has the question with its conditions, and their number."""
    _patients(site, 30, "sex", "age < *")
    asked = {
        "numbers": ["crp"],
        "levels": LEVELS,
        "groups": ["crp by ward"],
        "tables": ["sex by ward"],
    }
    found = answer(site, config(**asked, where=["sex = F", "age < 90.0"]))
    entry = next(iter(Ledger(site.state_dir).entries()))
    assert entry.rows == 70
    assert entry.questions[0] == "numbers crp where age < 90 and sex = F"
    assert entry.columns == ("age", "crp", "sex", "ward")
    assert all(one.where == ("age < 90", "sex = F") for one in entry.grouped)
    path = Path(site.data_dir) / "table.csv"
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *(row for row in rows if ",F," in row and row < "9")]) + "\n")
    alone = replace(site, state_dir=site.state_dir / "other")
    assert np.array_equal(answer(alone, config(**asked)), found)


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        (["ward = a"], r"a condition on ward is not in its list \(filters\)"),
        (["age > 30"], r"a condition on age is not in its list"),
        (["sex = F", "age < 90"], "task.where leaves fewer rows than its min_rows"),
        (["age < 96"], r"task.where leaves out too few rows \(min_cell\)"),
        (["sex != X"], r"task.where leaves out too few rows \(min_cell\)"),
    ],
)
def test_conditions_that_a_site_refuses(
    site: WorkerSettings, where: list[str], problem: str
) -> None:
    """Those that its policy does not list, and those that leave in or out a few rows."""
    _patients(site, 60, "sex", "age < *")
    with pytest.raises(PolicyRefusal, match=problem):
        answer(site, config(levels=LEVELS, where=where))


def test_conditions_of_another_file_bind_none_whose_column_is_of_another_kind(
    site: WorkerSettings,
) -> None:
    """Ages in years, and then ages as texts: nothing is compared, and nothing is refused."""
    _patients(site, 30, "age < *")
    answer(site, config(levels=LEVELS, where=["age < 90"]))
    rows = [f"{('young', 'old')[row % 2]},{'FM'[row % 2]}" for row in range(100)]
    (Path(site.data_dir) / "other.csv").write_text("\n".join(["age,sex", *rows]) + "\n")
    answer(site, config(file="other.csv", levels={"sex": ["F", "M"]}), "s")


def test_a_hidden_column_is_no_condition(site: WorkerSettings) -> None:
    """It does not exist, as a column that is not there."""
    _patients(site, 30, "sex")
    with Path(site.policy).open("a") as rules:
        rules.write('never = ["sex"]\n')
    with pytest.raises(DataError, match="has no column sex"):
        answer(site, config(levels={"ward": ["a"]}, where=["sex = F"]))
    Path(site.policy).write_text('filters = ["ward < *"]')
    with pytest.raises(DataError, match="compares numbers, and not all cells are"):
        answer(site, config(levels={"sex": ["F"]}, where=["ward < 3"]))


YOUNGER = ["sex = F", "age < 90"]


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(("elders", "is_refused"), [(3, True), (0, False), (30, False)])
@pytest.mark.parametrize(
    "other",
    [
        {"levels": LEVELS, "where": ["sex = F"]},
        {"levels": {"sex": ["F"]}},
        {"numbers": ["age"], "levels": {"sex": ["F"]}, "groups": ["age by sex"]},
        {"levels": {"sex": ["F", "M"], "ward": ["a", "b"]}, "tables": ["ward by sex"]},
        {"numbers": ["age"], "where": ["sex = F"]},
    ],
)
def test_questions_whose_rows_differ_by_a_few(
    site: WorkerSettings, other: dict[str, Any], elders: int, is_refused: bool, is_first: bool
) -> None:
    """Women, and women below 90: the few above follow, by whatever groups of these rows are counted or summed."""
    _patients(site, elders, "sex", "age < *")
    asked = [config(numbers=["age"], levels=LEVELS, where=YOUNGER), config(**other)]
    first, second = asked if is_first else asked[::-1]
    answer(site, first)
    if not is_refused:
        answer(site, second, "s")
        return
    with pytest.raises(PolicyRefusal, match="differ"):
        answer(site, second, "s")


def test_tables_of_all_rows_and_levels_of_some(site: WorkerSettings) -> None:
    """A cell of a table less a level's rows among some is a few rows, though neither line of the table is."""
    _patients(site, 30, "sex", "age < *")
    path = Path(site.data_dir) / "table.csv"
    # All women of 90 and more but three are in ward a.
    head, *rows = path.read_text().splitlines()
    seen, changed = 0, []
    for row in rows:
        age, sex, ward, crp = row.split(",")
        is_elder = sex == "F" and age >= "90"
        seen += is_elder
        changed.append(f"{age},{sex},{('b' if seen <= 3 else 'a') if is_elder else ward},{crp}")
    path.write_text("\n".join([head, *changed]) + "\n")
    answer(site, config(levels=LEVELS, tables=["ward by sex"]))
    with pytest.raises(PolicyRefusal, match="ward where age < 90 and sex = F, and what was asked"):
        answer(site, config(levels={"ward": ["a", "b", "c"]}, where=YOUNGER), "s")


def test_a_sum_of_rows_between_that_one_of_them_makes(site: WorkerSettings) -> None:
    """The women above 90 are enough, and one of them has nearly all of their sum."""
    _patients(site, 30, "sex", "age < *")
    path = Path(site.data_dir) / "table.csv"
    text = path.read_text()
    row = next(line for line in text.splitlines() if line.startswith("9"))
    path.write_text(text.replace(row, row.rpartition(",")[0] + ",99999", 1))
    crp = {"numbers": ["crp"]}
    Path(site.policy).write_text('min_cell = 10\nfilters = ["sex", "age < *"]\n')
    answer(site, config(**crp, where=["sex = F"]))
    with pytest.raises(PolicyRefusal, match=r"crp where .* differ by too few rows"):
        answer(site, config(**crp, where=YOUNGER), "s")


def test_a_table_in_which_a_few_rows_that_meet_conditions_are_new(site: WorkerSettings) -> None:
    """Though many other rows are new, too."""
    _patients(site, 0, "sex")
    asked = config(levels={"ward": ["a", "b", "c"]}, where=["sex = F"])
    answer(site, asked)
    with (Path(site.data_dir) / "table.csv").open("a") as file:
        file.write("33,M,a,1.5\n" * 20 + "33,F,a,1.5\n")
    with pytest.raises(PolicyRefusal, match="differs from the one of an earlier question"):
        answer(site, asked, "s")


@pytest.mark.parametrize(
    ("share", "seed", "is_refused"), [(0.21, 0, True), (0.2, 0, False), (0.2, 1, False)]
)
def test_trees_that_hold_out_a_few_rows_more(
    site: WorkerSettings, share: float, seed: int, is_refused: bool
) -> None:
    """Those of a larger share are those of a smaller one and a few more: their cells would follow."""
    _regression(site, "age", 0)
    Path(site.policy).write_text('min_rows = 40\nmin_cell = 10\ntrees = "clear"\n')

    def asked(validation: float, seed: int) -> RunConfig:
        return RunConfig.from_dict(
            {
                "run": {"task": "trees"},
                "task": {**_trees("y").task, "validation": validation, "seed": seed},
            }
        )

    answer(site, asked(0.2, 0))
    if not is_refused:
        answer(site, asked(share, seed), "s")
        return
    with pytest.raises(
        PolicyRefusal, match="rows that are trained on differ from those of an earlier"
    ):
        answer(site, asked(share, seed), "s")
