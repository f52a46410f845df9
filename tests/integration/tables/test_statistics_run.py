"""``fl-queue statistics`` with real sites: numbers, refusals, ledger, ``site_answers``, and what ``archiving`` keeps."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from fl_queue.client import policy
from fl_queue.store.embedded.server_pair import start
from tests.support.federation import Federation
from tests.support.server_binaries import chosen_server
from tests.support.table_sites import command, config_file, start_sites, table

TABLES = [table(rows, seed) for seed, rows in enumerate((150, 90, 210))]
POLICY = 'min_rows = 50\nmin_cell = 5\nmax_questions = 500\nnever = ["name"]\n'


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Federation]:
    """An aggregator and three sites with a table each."""
    folder = tmp_path_factory.mktemp("tables")
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(redis, folder, clients=0, evaluator=False, forked=True)
        try:
            start_sites(made, TABLES, POLICY)
            yield made
        finally:
            made.close()


def test_statistics_of_three_sites(sites: Federation, tmp_path: Path) -> None:
    """Equal to pandas on all tables together; verified, shown again, and in the ledger of the sites."""
    config = config_file(tmp_path, 3)
    output = tmp_path / "result.json"
    done = command(sites, "statistics", str(config), "--json", "-o", str(output))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert json.loads(output.read_text()) == found
    frame = pd.concat(TABLES)
    assert (found["sites"], found["rows"]) == (3, 450)
    for name in ("age", "bmi"):
        ours, column = found["numbers"][name], frame[name]
        assert (ours["rows"], ours["missing"]) == (column.count(), column.isna().sum())
        assert ours["mean"] == pytest.approx(column.mean(), rel=1e-12)
        assert ours["sd"] == pytest.approx(column.std(), rel=1e-12)
        for quantile in ours["quantiles"]:
            wanted = column.quantile(quantile["quantile"])
            assert quantile["low"] <= wanted <= quantile["high"]
    crossed = pd.crosstab(frame["sex"], frame["stage"]).to_numpy().tolist()
    assert [row[:3] for row in found["tables"]["sex by stage"]["counts"][:2]] == crossed
    whole = frame[["age", "bmi"]].dropna().corr()
    assert np.allclose(found["correlation"]["correlation"], whole, rtol=0, atol=1e-12)

    shown = command(sites, "result", "survey")
    assert shown.returncode == 0, shown.stderr
    assert "450 rows at 3 sites" in shown.stdout
    again = command(sites, "statistics", str(config), "--json")
    assert json.loads(again.stdout) == found
    exported = command(sites, "export", "survey", "-o", str(tmp_path / "model.safetensors"))
    assert exported.returncode == 2
    assert "is an analysis, not a model; see `fl-queue result survey`" in exported.stderr
    back = command(sites, "start-round", str(config), "--run", "survey", "--from-version", "1")
    assert back.returncode == 2
    assert "does not go back to an earlier step" in back.stderr
    verified = command(sites, "verify", "survey")
    assert verified.returncode == 0, verified.stdout + verified.stderr

    # Made by the lock under which a site reads its table and notes its answer.
    assert (sites.redis.state_dir / "ledger" / "asking").exists()
    noted = json.loads(command(sites, "ledger", "--json").stdout)
    assert sorted((entry["client"], entry["round"]) for entry in noted) == [
        (f"site-{site}", number) for site in (1, 2, 3) for number in (1, 2)
    ]
    assert {entry["policy"] for entry in noted} == {
        policy.read(str(sites.folder / "site-1.toml")).digest
    }
    assert all("quantiles of age, bmi" in entry["questions"] for entry in noted)
    history = json.loads(command(sites, "history", "survey", "--json").stdout)
    assert [one["purpose"] for one in history["records"]] == ["sums", "sums"]
    assert [row["version"] for row in history["rounds"]] == [1, 2]


def test_each_site_alone_where_all_of_them_show_it(sites: Federation, tmp_path: Path) -> None:
    """The numbers of each table; a site may refuse that, and is named."""
    config = config_file(tmp_path, 3, "single.toml")
    words = ["statistics", str(config), "--per-site", "--json"]
    done = command(
        sites, *words, "--set", "model.keep_versions=1", "--set", "model.keep_updates=false"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == 450
    for number, frame in enumerate(TABLES, 1):
        one = found["per_site"][f"site-{number}"]
        assert (one["sites"], one["rows"]) == (1, len(frame))
        assert one["numbers"]["bmi"]["rows"] == frame["bmi"].count()
        assert one["numbers"]["bmi"]["mean"] == pytest.approx(frame["bmi"].mean(), rel=1e-12)
        counts = {level["level"]: level["rows"] for level in one["levels"]["sex"]}
        assert counts["F"] == (frame["sex"] == "F").sum()
    # The answers are kept for all steps, though the last version alone would be: so each of them is computed again.
    verified = command(sites, "verify", "single", "--json")
    assert verified.returncode == 0, verified.stdout
    assert [one["result"] for one in json.loads(verified.stdout)] == ["same", "same"]
    output = tmp_path / "sites.csv"
    shown = command(sites, "result", "single", "-o", str(output))
    assert "site-2 alone" in shown.stdout
    assert f"site-3,numbers,age,,rows,{TABLES[2]['age'].count()}" in output.read_text()

    own = sites.folder / "site-2.toml"
    own.write_text(f"{POLICY}per_site = false\n")
    try:
        refused = command(sites, *words, "--run", "refused", "--set", "run.preflight=off", "--set", "round.max_abandoned=1")  # fmt: skip
    finally:
        own.write_text(POLICY)
    assert refused.returncode == 4
    assert "site-2" in refused.stderr
    assert "its numbers are not shown alone (per_site)" in refused.stderr


def test_a_hidden_column_is_no_column(sites: Federation, tmp_path: Path) -> None:
    """A column that a policy never shows is as if it were not there, for every site."""
    config = config_file(tmp_path, 3, "hidden.toml")
    done = command(
        sites, "statistics", str(config), "--set", "task.correlation=[]",
        "--set", 'task.levels={name=["patient 0 1"]}', "--set", "task.groups=[]",
        "--set", "task.tables=[]", "--set", "run.preflight=off", "--set", "round.max_abandoned=1",
    )  # fmt: skip
    assert done.returncode == 4
    assert "has no column name" in done.stderr
    assert "patient" not in done.stderr


def test_too_few_sites_with_the_file_end_it(sites: Federation, tmp_path: Path) -> None:
    """Before the deadline of a round, which is 300 s here; it works once the others are mended."""
    TABLES[0].to_csv(sites.folder / "site-1" / "later.csv", index=False)
    config = config_file(tmp_path, 3, "later.toml")
    words = ["statistics", str(config), "--set", "task.file=later.csv", "--set", "task.groups=[]"]
    words += ["--set", "task.tables=[]", "--set", "task.correlation=[]", "--set", "task.levels={}"]
    done = command(sites, *words)
    assert done.returncode == 4, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "too few sites can answer: round.cohort wants 3 clients, and 1 may take part" in line
    assert (
        "site-2, site-3: it cannot train: DataError: later.csv: cannot be read: No such file"
        in line
    )
    assert line.endswith("mend them, and start it under another name (--run)")
    for number in (2, 3):
        path = sites.folder / f"site-{number}" / "later.csv"
        TABLES[number - 1].to_csv(path, index=False)
    again = command(sites, *words, "--run", "mended", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["rows"] == 450


PREPARED = """
[run]
task = "table"
rounds = 1
evaluate_every = 0

[data]
partition = "site"

[train]
batch_size = 32

[task]
file = "table.csv"
features = "age,bmi,stage"
target = "sex"
classes = "F,M"
fill = "median"

[task.columns]
stage = { type = "category" }
"""


def test_a_model_is_trained_with_what_the_sites_agreed_on(
    sites: Federation, tmp_path: Path
) -> None:
    """From statistics of all rows into the config, and into the exported model; no site sends its own."""
    config, prepared = tmp_path / "model.toml", tmp_path / "prepared.toml"
    config.write_text(PREPARED)
    refused = command(sites, "start-round", str(config))
    assert refused.returncode == 2
    assert "task.columns.age.median: is not agreed yet" in refused.stderr
    done = command(sites, "prepare", str(config), "-o", str(prepared))
    assert done.returncode == 0, done.stderr
    assert "450 rows of 3 sites (run model-statistics)" in done.stdout
    text = prepared.read_text()
    assert command(sites, "prepare", str(config), "-o", str(prepared)).returncode == 0
    assert prepared.read_text() == text
    columns = tomllib.loads(text)["task"]["columns"]
    assert columns["stage"]["levels"] == ["I", "II", "III"]
    bmi = pd.concat(TABLES)["bmi"]
    assert columns["bmi"]["mean"] == pytest.approx(bmi.mean(), rel=1e-12)
    assert columns["bmi"]["sd"] == pytest.approx(bmi.std(), rel=1e-12)
    assert columns["bmi"]["median"] == pytest.approx(bmi.median(), abs=0.1)
    nothing = command(sites, "prepare", str(prepared), "-o", str(tmp_path / "again.toml"))
    assert nothing.returncode == 2
    assert "leaves nothing open" in nothing.stderr

    trained = command(sites, "start-round", str(prepared), "--run", "model", "--wait")
    assert trained.returncode == 0, trained.stderr
    model = tmp_path / "model.safetensors"
    assert command(sites, "export", "model", "-o", str(model)).returncode == 0
    assert set(load_file(model)) == {"layers.0.weight", "layers.0.bias"}
