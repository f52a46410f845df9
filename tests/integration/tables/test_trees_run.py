"""
Trees with real sites, by the config and the commands of their guide.

The bits are those of one process, also where a site is killed between two levels.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xgboost

from fl_queue.analyses.base import STATE, Limits
from fl_queue.analyses.trees import Trees
from fl_queue.config import loading
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import tensor_layout
from fl_queue.store.embedded.server_pair import start
from tests.support import tree_runs
from tests.support.federation import Federation, wait_for
from tests.support.server_binaries import chosen_server
from tests.support.table_sites import command, start_sites, table

LEVELS = {"sex": ("F", "M"), "stage": ("I", "II", "III")}
GUIDE = (Path(__file__).parents[3] / "docs/guides/trees.md").read_text()
[CONFIG] = re.findall(r"^```toml\n# risk.toml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
[RULES] = re.findall(r"^```toml\n# site.toml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
#: What the operator calls, by its first word.
COMMANDS = {
    line.split()[1]: shlex.split(line, comments=True)[1:]
    for line in re.findall(r"^fl-queue (?!worker).*", GUIDE, re.MULTILINE)
}


def _table(rows: int, seed: int) -> pd.DataFrame:
    frame = table(rows, seed)
    risk = (
        frame["age"] / 30
        + (frame["stage"] == "III")
        + np.random.default_rng(seed).normal(size=rows)
    )
    frame["relapse"] = (risk > 2).astype(int)
    return frame


TABLES = [_table(rows, seed) for seed, rows in enumerate((150, 90, 210))]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Federation]:
    """An aggregator and three sites with a table each."""
    folder = tmp_path_factory.mktemp("trees")
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(redis, folder, clients=0, evaluator=False, forked=True)
        try:
            start_sites(made, TABLES, RULES)
            (folder / "risk.toml").write_text(CONFIG + "\n[model]\nkeep_updates = true\n")
            yield made
        finally:
            made.close()


def _stopped(sites: Federation, site: str, step: int) -> int:
    """Pid of a site's trainer, which stops where it begins to add up its rows for a step."""
    pid = 0
    for _ in range(step):
        fired = sites.arm("rows.read", "stop", site)
        if pid:
            os.kill(pid, signal.SIGCONT)
        wait_for("the stop", fired.exists, 60)
        pid = int(fired.read_text())
    return pid


def _in_one_process() -> tuple[Trees, np.ndarray]:
    """The analysis and its last state, of the same tables under the same policy."""
    tables = []
    for frame in TABLES:
        numbers = {name: frame[name].to_numpy(float) for name in ("age", "bmi", "relapse")}
        codes = {name: _codes(frame[name], levels) for name, levels in LEVELS.items()}
        tables += tree_runs.tables_of(numbers, codes, np.zeros(len(frame), np.int64))
    return tree_runs.fitted(
        {
            "target": "relapse",
            "numbers": ("age", "bmi"),
            "levels": LEVELS,
            "trees": 2,
            "max_depth": 2,
        },
        tables,
        limits=Limits(min_rows=50, min_cell=10, dominance=15.0),
    )


def _codes(cells: pd.Series, levels: tuple[str, ...]) -> np.ndarray:
    known = {level: code for code, level in enumerate(levels)}
    return np.array([known.get(cell, len(levels)) for cell in cells], np.int64)


def test_trees_of_three_sites(sites: Federation, tmp_path: Path) -> None:
    """A killed site computes its margins again; the model is read by xgboost."""
    assert 'This site\'s policy has trees = "clear"' in (sites.folder / "site-1.log").read_text()
    config = loading.load(str(sites.folder / "risk.toml"))
    state = runs.start_run(sites.store, "risk", config, config.run.rounds)
    lifecycle.advance(sites.store, state.run_id)
    # The second level of the first tree.
    os.kill(_stopped(sites, "site-2", 4), signal.SIGKILL)
    state = sites.finish(state.run_id)
    assert state.state == "completed", state.reason

    analysis, words = _in_one_process()
    models = ModelStore(sites.store, state.run_id, config.redis.chunk_bytes, tmp_path / "cache")
    assert state.version is not None
    found = tensor_layout.views(*models.load_version(state.version))[STATE]
    assert np.array_equal(found, words)
    # Two steps of cells, two levels of two trees, and the losses of all.
    assert state.version == state.rounds_wanted == 7

    shown = command(sites, *COMMANDS["result"])
    assert shown.returncode == 0, shown.stderr
    assert "binary:logistic of relapse, 450 rows at 3 sites" in shown.stdout
    file = sites.folder / "model.json"
    exported = command(sites, *COMMANDS["export"])
    assert exported.returncode == 0, exported.stderr
    assert json.loads(file.read_text()) == json.loads(json.dumps(analysis.model(words)))
    assert xgboost.Booster(model_file=file).num_boosted_rounds() == 2
    wrong = command(sites, *COMMANDS["export"], "--format", "onnx")
    assert "--format: is for models that are trained; leave it out" in wrong.stderr
    verified = command(sites, "verify", "risk")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_site_whose_policy_does_not_allow_them(sites: Federation) -> None:
    """It is named with its rule, before any round."""
    rules = sites.folder / "site-3.toml"
    rules.write_text(RULES.replace("clear", "masked"))
    done = command(sites, *COMMANDS["start-round"], "--run", "refused")
    rules.write_text(RULES)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "site-3" in done.stderr
    assert "trees are answered only under secure sums (trees = masked)" in done.stderr
