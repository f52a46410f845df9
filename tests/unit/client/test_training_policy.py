"""A site's policy holds for training, too: what is trained, on which columns, with whose rows, and how many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl_queue.client import policy, preflight, site_task, sums
from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import DataError, PolicyRefusal
from fl_queue.protocol.trainer_messages import Call
from fl_queue.tasks import calls
from tests.support.site_jobs import SiteJob

ROWS = 60
TABLE = "age,weight,label\n" + "".join(f"{20 + i},{60 + i}.5,{i % 2}\n" for i in range(ROWS))
STATE: Any = SimpleNamespace(name="run", run_id="run-abc123", segment=0)
OPTIONS: dict[str, dict[str, Any]] = {
    "csv": {"features": "age,weight"},
    "table": {"features": "age,weight", "target": "label"},
}


def site(folder: Path, rules: str) -> WorkerSettings:
    (folder / "train.csv").write_text(TABLE)
    (folder / "site.toml").write_text(rules)
    return WorkerSettings(data_dir=str(folder), client="a", policy=str(folder / "site.toml"))


def job(where: WorkerSettings, task: str = "csv", **data: Any) -> SiteJob:
    raw = {
        "run": {"task": task},
        "data": {"partition": "site", "validation_fraction": 0.25} | data,
        "task": OPTIONS.get(task, {}),
    }
    return SiteJob(RunConfig.from_dict(raw), where)


def given(one: SiteJob) -> Any:
    return calls.given_data(one.task(), one.context())


@pytest.mark.parametrize("task", OPTIONS)
def test_a_training_part_has_as_many_rows_as_a_table_must(tmp_path: Path, task: str) -> None:
    """Validation is counted by --min-examples, as its numbers are sums only."""
    pytest.importorskip("pyarrow")
    found = given(job(site(tmp_path, "min_rows = 45"), task))
    assert (len(found.train), len(found.validation)) == (45, 15)
    with pytest.raises(PolicyRefusal, match="fewer examples than its min_rows") as refused:
        given(job(site(tmp_path, "min_rows = 46"), task))
    assert "45" not in refused.value.public
    # Without a file there is --min-examples alone.
    assert given(job(WorkerSettings(data_dir=str(tmp_path), client="a"), task))


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"partition": "iid", "shares": 1}, "data.partition"),
        ({"partition": "quantity_sizes", "sizes": [60]}, "data.partition"),
        ({"train_per_class": [25, 25]}, "data.train_per_class"),
        ({"train_per_class": [25, 25], "validation_per_class": [5, 5]}, "data.train_per_class"),
    ],
)
def test_a_config_chooses_no_rows_unless_the_site_shares_them(
    tmp_path: Path, data: dict[str, Any], field: str
) -> None:
    with pytest.raises(PolicyRefusal, match=field):
        given(job(site(tmp_path, "min_rows = 20"), **data))
    assert given(job(site(tmp_path, "min_rows = 20\nshare = true"), **data)).train


@pytest.mark.parametrize("task", OPTIONS)
@pytest.mark.parametrize("rules", ['never = ["we*"]', 'columns = ["age", "label"]'])
def test_a_hidden_column_is_no_feature(tmp_path: Path, task: str, rules: str) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError) as refused:
        given(job(site(tmp_path, f"min_rows = 20\n{rules}"), task))
    assert refused.value.public == "has no column weight"
    assert given(job(site(tmp_path, 'min_rows = 20\nnever = ["name"]'), task)).train


def test_all_columns_of_a_file_are_not_taken_where_some_are_hidden(tmp_path: Path) -> None:
    where = site(tmp_path, 'min_rows = 20\nnever = ["name"]')
    config = RunConfig.from_dict({"run": {"task": "csv"}, "data": {"partition": "site"}})
    with pytest.raises(PolicyRefusal, match=r"list its columns in task\.features"):
        SiteJob(config, where).context()


@pytest.mark.parametrize(
    ("allow", "purpose", "answered"),
    [
        ([], "train", {Call.train, Call.evaluate, Call.facts}),
        (["train"], "train", {Call.train, Call.evaluate, Call.facts}),
        (["evaluate", "statistics"], "train", {Call.evaluate}),
        (["evaluate", "statistics"], "evaluate", {Call.evaluate, Call.facts}),
        (["statistics"], "train", set()),
        (["statistics"], "evaluate", set()),
    ],
)
def test_a_site_answers_what_is_in_its_list(
    tmp_path: Path, allow: list[str], purpose: str, answered: set[Call]
) -> None:
    """Facts are asked for before a run, and refused where the site would refuse its rounds."""
    one = job(site(tmp_path, f"allow = {allow}"))
    config = replace(one.config, run=replace(one.config.run, purpose=purpose))
    calls = (Call.evaluate, Call.facts, *[Call.train][: purpose == "train"])
    for call in calls:
        request = one.request(call)
        if call in answered:
            assert site_task.context_of(one.site, config, request).client == "a"
        else:
            with pytest.raises(PolicyRefusal, match=r"is not in its list \(allow\)"):
                site_task.context_of(one.site, config, request)
    # Test data are the evaluator's own.
    assert site_task.context_of(one.site, config, one.request(Call.score))


def test_an_analysis_is_in_the_list_or_is_not_made(tmp_path: Path) -> None:
    config = RunConfig.from_dict({
        "run": {"task": "statistics"}, "task": {"file": "train.csv", "numbers": ["age"]}
    })  # fmt: skip
    assert sums.read(site(tmp_path, 'allow = ["statistics"]'), config).policy.allow
    with pytest.raises(PolicyRefusal, match="statistics is not in its list"):
        sums.read(site(tmp_path, 'allow = ["train"]'), config)


def test_the_reason_is_reported_before_round_one_without_a_number_of_rows(tmp_path: Path) -> None:
    where = site(tmp_path, "min_rows = 200")
    found = preflight.read_facts(where, STATE, job(where).config, Resident(where).handle)
    assert found["cannot"] == "yes"
    assert "refused by this site's policy: the training part has fewer" in found["problem"]
    assert not {"45", "60", "200"} & set(found["problem"].split())
    assert policy.read(where.policy).min_rows == 200
