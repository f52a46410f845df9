"""``fl-queue regression`` with real sites: the numbers of the pooled table, its files, and what ends it."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from starlette.testclient import TestClient

from fl_queue.store import Store
from fl_queue.store.embedded.server_pair import start
from fl_queue.web.access import Access
from fl_queue.web.connection import Connection
from fl_queue.web.launch import Configs
from fl_queue.web.server import build
from tests.support import regression_tables as tables
from tests.support.federation import Federation
from tests.support.regression_tables import DIABETES, split
from tests.support.server_binaries import chosen_server
from tests.support.table_sites import command, start_sites

POLICY = 'min_rows = 50\nmin_cell = 5\nmax_questions = 500\nnever = ["name"]\n'
GUIDE = (Path(__file__).parents[3] / "docs/guides/regression.md").read_text()


def _blocks(language: str) -> list[str]:
    """The guide's blocks of code. Args: ``language``: of them; empty: commands."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def _commands() -> list[list[str]]:
    """The operator's commands, without their comments."""
    lines = "".join(_blocks("")).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("fl-queue")][
        1:
    ]


def _diabetes() -> pd.DataFrame:
    frame = tables.diabetes()
    frame["sex"] = frame["sex"].map({1: "f", 2: "m"})
    return frame


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Federation]:
    """An aggregator and three sites, each with rows of two tables."""
    folder = tmp_path_factory.mktemp("regression")
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(redis, folder, clients=0, evaluator=False)
        try:
            with contextlib.chdir(folder):
                exec(_blocks("python")[0], {})  # the guide's own tables
            start_sites(made, [_table(folder, site) for site in (1, 2, 3)], POLICY)
            for number, frame in enumerate(split(_diabetes(), 3), 1):
                frame.to_csv(folder / f"site-{number}" / "diabetes.csv", index=False)
            yield made
        finally:
            made.close()


def _table(folder: Path, site: int) -> pd.DataFrame:
    return pd.read_csv(folder / f"site-{site}" / "table.csv")


def _config(folder: Path) -> str:
    path = folder / "cancer.toml"
    path.write_text(_blocks("toml")[0])
    return str(path)


def _check_model(model: Any, found: Any) -> None:
    """The guide shows its fields, and its first terms, to six digits."""
    shown = json.loads(_blocks("json")[0])
    for one, wanted in zip(model["terms"], shown["terms"], strict=False):
        assert one.pop("coefficient") == pytest.approx(wanted.pop("coefficient"), abs=1e-6)
        assert one == wanted
    assert len(model.pop("terms")) == len(found["coefficients"]) == 6
    del shown["terms"]
    assert model == shown


def test_the_guide(sites: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands write what it shows; the numbers are those of the pooled table, bit for bit."""
    monkeypatch.chdir(tmp_path)
    config = _config(tmp_path)
    regression, *others = _commands()
    assert regression == ["regression", "cancer.toml"]
    done = command(sites, *regression, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in others:
        again = command(sites, *words, folder=tmp_path)
        assert again.returncode == 0, again.stdout + again.stderr
        if words[0] == "verify":
            # Of every step, though the run keeps the last states alone.
            assert again.stdout.count(": same, 3 updates") == 8
    assert Path("cancer.md").read_text() == _blocks("markdown")[0]

    found = json.loads(command(sites, "result", "cancer", "--json").stdout)
    _check_model(json.loads(Path("model.json").read_text()), found)
    assert (found["sites"], found["rows"], found["events"], found["steps"]) == (3, 569, 212, 8)
    shows_its_result(sites, found)
    pool = tmp_path / "pool"
    pool.mkdir()
    pd.concat([_table(sites.folder, site) for site in (1, 2, 3)]).to_csv(
        pool / "table.csv", index=False
    )
    here = command(sites, "regression", config, "--here", "--data", str(pool), "--json")
    assert here.returncode == 0, here.stderr
    pooled = json.loads(here.stdout)
    for name in ("coefficients", "covariance", "fit", "steps", "decrement"):
        assert pooled[name] == found[name]


def shows_its_result(sites: Federation, found: dict[str, Any]) -> None:
    """The web page's requests: the result, its tables as text, and no model."""
    state_dir = sites.redis.state_dir
    connection = Connection(
        lambda: Store.open(sites.redis.url, sites.redis.blob_url, state_dir), state_dir
    )
    app = build(connection, Configs(None), Access("", frozenset({"testserver"})))
    with TestClient(app) as client:
        assert client.get("/api/v1/runs/cancer/result").json() == found
        text = client.get("/api/v1/runs/cancer/result.txt")
        assert text.headers["content-type"].startswith("text/plain")
        assert text.text.startswith("table.csv: 569 rows at 3 sites, 212 events\n")
        assert "-40.7380" in text.text
        refused = client.get("/api/v1/runs/cancer/model.safetensors")
        assert refused.status_code == 409
        assert refused.json()["message"].endswith("see `fl-queue result cancer`")


def test_killed_processes_change_nothing(sites: Federation, tmp_path: Path) -> None:
    """A linear regression with robust errors by ``start-round``: a site and the aggregator are killed on the way."""
    fired = [
        sites.arm("ledger.noted", "kill-worker", "site-2"),
        sites.arm("model.published", "kill-worker", "aggregator"),
    ]
    done = command(
        sites, "start-round", _config(tmp_path), "--run", "diabetes", "--wait",
        "--set", "task.file=diabetes.csv", "--set", "task.family=linear", "--set", "task.classes=",
        "--set", "task.target=y", "--set", f"task.features={','.join(DIABETES)}",
        "--set", 'task.columns={sex={levels=["f", "m"]}}', "--set", "task.robust=HC0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(path.exists() for path in fired)
    found = json.loads(command(sites, "result", "diabetes", "--json").stdout)
    by_name = {one["name"]: one for one in found["coefficients"]}
    assert by_name["sex: m"]["coefficient"] == pytest.approx(-22.85964809, rel=1e-9)
    assert by_name["const"]["error"] == pytest.approx(63.5844585141, rel=1e-9)
    assert found["fit"]["r2"] == pytest.approx(0.5177484222, rel=1e-9)
    assert found["steps"] == 4


def test_what_ends_a_regression(sites: Federation, tmp_path: Path) -> None:
    """Columns that are linearly dependent: exit code 4, with the sentence."""
    frame = _diabetes().assign(double=lambda rows: 2 * rows["bmi"] - rows["bp"])
    frame.to_csv(tmp_path / "double.csv", index=False)
    done = command(
        sites, "regression", _config(tmp_path), "--here", "--data", str(tmp_path),
        "--set", "task.file=double.csv", "--set", "task.family=linear", "--set", "task.classes=",
        "--set", "task.target=y", "--set", "task.features=bmi,bp,double",
    )  # fmt: skip
    assert done.returncode == 4
    assert "columns bmi, bp, double are linearly dependent; drop one" in done.stderr
