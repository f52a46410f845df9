"""The guide from statistics to a model: its commands run, in their order, and it shows what they print."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped,unused-ignore]
import pytest
from statsmodels.api import Logit, add_constant  # type: ignore[import-untyped,unused-ignore]

from fl_queue.config.loading import load
from fl_queue.reporting import rounds_table
from fl_queue.store.embedded.server_pair import start
from tests.support.checkout import ROOT
from tests.support.commands import fl_queue
from tests.support.federation import Federation, wait_for
from tests.support.server_binaries import chosen_server
from tests.support.table_sites import command

GUIDE = (ROOT / "docs/guides/from-statistics-to-model.md").read_text()
#: Its lines of commands, in their order.
COMMANDS = [
    shlex.split(line) for line in GUIDE.splitlines() if line.startswith(("fl-queue ", "python "))
]
SCRIPT = ROOT / "examples/tables/write_sites.py"


def ran(folder: Path, words: list[str], federation: Federation) -> str:
    """What a command of the guide prints, with the folder as the current one."""
    if words[1] == "policy":
        done = fl_queue(*words[1:], environment=federation.environment, folder=folder)
    else:
        done = command(federation, *words[1:], folder=folder)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def test_each_command_of_the_guide_runs(tmp_path: Path, no_process_left: None) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    [rules] = re.findall(r"^```toml\n# policy.toml\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    (tmp_path / "policy.toml").write_text(rules)
    workers = [words for words in COMMANDS if words[1] == "worker"]
    others = [words for words in COMMANDS if words[1] != "worker"]
    assert (len(workers), others[0][0], others[1][1]) == (4, "python", "policy")
    subprocess.run([sys.executable, *others[0][1:]], cwd=tmp_path, check=True, timeout=180)
    with start(tmp_path / "state", server=chosen_server()) as redis:
        federation = Federation(redis, tmp_path, clients=0, evaluator=False)
        try:
            for _, _, role, *options in workers:
                if role != "aggregator":  # It is there.
                    started(federation, role, options, tmp_path)
            count = len(federation.processes)
            wait_for(
                "workers", lambda: len(federation.store.control.workers.living()) == count, 120
            )
            printed = {
                words[1]: ran(tmp_path, [*words, *["--json"][: words[1] == "history"]], federation)
                for words in others[1:]
            }
            aucs = wait_for("scores", lambda: scores(federation, "malignant", 5), 60)
        finally:
            federation.close()
    for shown in ("455 rows at 2 sites", "17.5396", "12.1573", "172"):
        assert shown in printed["statistics"]
    assert "455 rows of 2 sites (run malignant-statistics)" in printed["prepare"]
    assert [row["version"] for row in json.loads(printed["history"])["rounds"]] == [1, 2, 3, 4, 5]
    assert aucs[5] > 0.95
    check_regression(tmp_path)
    agreed = tomllib.loads((tmp_path / "prepared.toml").read_text())["task"]["columns"]
    assert repr(agreed["mean radius"]["median"]) in (tmp_path / "malignant.md").read_text()


def scores(federation: Federation, name: str, versions: int) -> dict[int, float]:
    """Version -> AUC on the evaluator's table, once the last one has it; else nothing."""
    run = federation.store.control.runs.id_of(name)
    assert run is not None
    found = rounds_table.history_of(federation.store, run).tested
    aucs = {version: metrics["auc"] for version, metrics in found.items()}
    return aucs if versions in aucs else {}


def check_regression(folder: Path) -> None:
    """The file of the guide has the numbers of statsmodels on all rows of the sites."""
    rows = pd.concat([pd.read_csv(path) for path in sorted(folder.glob("data/site-*/train.csv"))])
    names = ["mean radius", "mean texture", "mean smoothness"]
    fitted = Logit(rows["diagnosis"] == "malignant", add_constant(rows[names])).fit(disp=False)
    ours = pd.read_csv(folder / "odds.csv", index_col=0)
    for name in names:
        assert ours.loc[name].iloc[:2].tolist() == pytest.approx(
            [fitted.params[name], fitted.bse[name]], rel=1e-4
        )


def started(federation: Federation, role: str, options: list[str], folder: Path) -> None:
    """Start a worker of the guide, with its own folder of data."""
    given = dict(zip(options[::2], options[1::2], strict=True))
    name = given.pop("--client", role)
    places = {option: str(folder / value) for option, value in given.items()}
    federation.start(name, *(word for pair in places.items() for word in pair))


@pytest.mark.parametrize(
    ("table", "rows", "target"),
    [
        ("diabetes", 442, "progression"),
        ("breast-cancer", 569, "diagnosis"),
        ("heart", 69, "survival"),
        ("randhie", 20_190, "mdvis"),
    ],
)
def test_the_script_deals_each_row_to_one_table(
    tmp_path: Path, table: str, rows: int, target: str
) -> None:
    script = runpy.run_path(str(SCRIPT))
    script["write"](script["TABLES"][table](), tmp_path, 3)
    found = []
    for path in sorted(tmp_path.glob("*/*.csv")):
        with path.open(newline="") as file:
            header, *lines = csv.reader(file)
        assert target in header
        found.append(len(lines))
    evaluator = -(-rows // 5)
    assert found[0] == evaluator
    assert sum(found) == rows
    assert max(found[1:]) - min(found[1:]) <= 1


def test_the_configs_of_the_guide_are_those_of_the_examples() -> None:
    survey = load(str(ROOT / "examples/tables/tumours.toml"), (), {})
    assert survey.analysis is not None
    for words in COMMANDS:
        for word in words:
            if word.startswith("examples/"):
                assert (ROOT / word).is_file()
                assert word in GUIDE
