"""``fl-queue evaluate`` with real sites: its figures, what sites withhold, its errors, and a client killed in its round."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn import metrics as reference

from fl_queue.coordinator.rounds import runs
from fl_queue.experiments import evaluating
from fl_queue.protocol.records import Outcome
from fl_queue.store.embedded.server_pair import start
from tests.support import breast_cancer
from tests.support.federation import Federation
from tests.support.server_binaries import chosen_server
from tests.support.table_sites import command, start_sites

FRAME = breast_cancer.frame()
PARTS = [FRAME.iloc[:250], FRAME.iloc[250:420], FRAME.iloc[420:]]
OPEN = "min_rows = 1\nmin_cell = 1\n"
GUIDE = (Path(__file__).parents[3] / "docs/guides/evaluation.md").read_text()
#: The guide's commands, without the program's name: of a file, of a run, the result, and a matrix.
OF_A_FILE, OF_A_RUN, RESULT, KEEPING, MATRIX = (
    shlex.split(line)[1:] for line in re.findall(r"^fl-queue .*", GUIDE, re.MULTILINE)
)
[RULES] = re.findall(r"^```toml\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Federation]:
    """An aggregator and three sites, a model's file and its config."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "study.toml").write_text(breast_cancer.CONFIG)
    breast_cancer.write_model(folder / "model.safetensors", breast_cancer.weights())
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(redis, folder, clients=0, evaluator=False, forked=True)
        try:
            start_sites(made, PARTS, OPEN)
            yield made
        finally:
            made.close()


def report(sites: Federation, *words: str) -> dict[str, Any]:
    """The report of an evaluation."""
    done = command(sites, "evaluate", *words, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def policies(sites: Federation, *texts: str) -> None:
    """Give each site its policy."""
    for number, text in enumerate(texts, 1):
        (sites.folder / f"site-{number}.toml").write_text(text)


def test_a_model_at_all_sites(sites: Federation) -> None:
    """The golden area, and scikit-learn's figures of the pooled table; a site that is killed meanwhile answers again."""
    fired = sites.arm("rows.read", "kill", "site-2")
    found = report(sites, *OF_A_FILE[1:])
    assert fired.exists()
    figures, odds, truth = found["metrics"], breast_cancer.log_odds(FRAME), FRAME["malignant"]
    assert (found["sites"], found["rows"], figures["events"]["value"]) == (3, 569, 212)
    assert figures["auc"]["value"] == pytest.approx(0.9855451615, abs=2e-5)
    assert abs(figures["auc"]["value"] - 0.9855980128) <= figures["auc"]["bound"] + 1e-5
    assert figures["auc"]["error"] == pytest.approx(0.0039356865, abs=1e-5)
    assert figures["accuracy"]["value"] == reference.accuracy_score(truth, odds > 0)
    p = 1 / (1 + np.exp(-odds))
    assert figures["brier"]["value"] == pytest.approx(
        reference.brier_score_loss(truth, p), abs=1e-5
    )
    assert figures["auc"]["sites"] == 3
    assert figures["auc"]["rows"] == 569
    for name, part in zip(sorted(found["per_site"]), PARTS, strict=True):
        own = found["per_site"][name]
        assert own["rows"]["value"] == len(part)
        area = reference.roc_auc_score(part["malignant"], breast_cancer.log_odds(part))
        assert abs(own["auc"]["value"] - area) <= own["auc"]["bound"] + 1e-4
    assert [sum(group[key] for group in found["calibration"]) for key in ("rows", "events")] == [
        569,
        212,
    ]

    text = (sites.folder / "report.md").read_text()
    assert text.startswith("# model.safetensors: 569 rows (212 events) at 3 sites")
    shown = command(sites, *RESULT, "--json")
    assert json.loads(shown.stdout) == found, shown.stderr
    assert (sites.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    taken = command(
        sites, "evaluate", "model.safetensors", "study.toml", "--run", "model-evaluation"
    )
    assert taken.returncode == 2
    assert "see it with `fl-queue result model-evaluation`" in taken.stderr


def test_sites_decide_on_what_they_show(sites: Federation) -> None:
    """Small counts are joined, a site is in the total alone, and one that does not evaluate is left out and named."""
    policies(sites, "min_cell = 10\n", RULES, 'allow = ["train"]\n')
    try:
        found = report(sites, "model.safetensors", "study.toml")
        assert (found["sites"], found["rows"], found["hidden_sites"]) == (2, 420, 1)
        assert found["per_site"] == {}
        assert "evaluate is not in its list (allow)" in found["left_out"]["site-3"]
        area = found["metrics"]["auc"]
        first = FRAME.iloc[:420]
        exact = reference.roc_auc_score(first["malignant"], breast_cancer.log_odds(first))
        assert abs(area["value"] - exact) <= area["bound"]
        assert area["value"] == pytest.approx(exact, abs=0.01)
        assert all(
            count == 0 or count >= 10
            for group in found["calibration"]
            for count in (group["events"], group["rows"] - group["events"])
        )
        record = sites.store.control.history.records(
            sites.store.control.runs.id_of(found["run"]) or ""
        )[-1]
        assert not record.client_validation["site-2"]
    finally:
        policies(sites, OPEN, OPEN, OPEN)


def test_a_trained_run_and_a_site_that_only_evaluates(sites: Federation) -> None:
    """The third site takes no part in the training, and validates its newest version, held-out rows or all."""
    policies(sites, OPEN, OPEN, OPEN + 'allow = ["evaluate"]\n')
    try:
        done = command(
            sites, "start-round", "study.toml", "--set", "run.rounds=1", "--set", "run.evaluate_every=0"
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        run = sites.store.control.runs.id_of("study") or ""
        [trained] = [
            record
            for record in sites.store.control.history.records(run)
            if record.outcome == Outcome.committed
        ]
        assert sorted(trained.accepted) == ["site-1", "site-2"]
        assert "train is not in its list (allow)" in trained.ineligible["site-3"]
        found = report(sites, "study", "--set", 'clients.include=["site-3"]')
        assert (found["sites"], found["rows"]) == (1, 149)
        assert found["model"]["file"] == "study-version-1.safetensors"
        held_out = report(sites, *OF_A_RUN[1:])
        assert held_out["rows"] < 569 / 4
        assert held_out["sites"] == 3
    finally:
        policies(sites, OPEN, OPEN, OPEN)


def test_the_model_of_each_site_at_each_site(sites: Federation, tmp_path: Path) -> None:
    """The merged one is their weighted mean; each row is what an evaluation of the file gives."""
    done = command(
        sites, *KEEPING, "--run", "kept", "--set", "run.rounds=2", "--set", "run.evaluate_every=0"
    )
    assert done.returncode == 0, done.stderr
    shown = command(sites, "evaluate", "kept", *MATRIX[2:], "--json")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert (found["round"], found["figure"]) == (2, "auc")
    names = ["site-1", "site-2", "site-3"]
    assert (found["sites"], [*found["models"]]) == (names, ["all sites' model", *names])
    assert (sites.folder / "matrix.png").read_bytes().startswith(b"\x89PNG")

    state = runs.find_run(sites.store, "kept")
    models = evaluating.site_models(sites.store, sites.redis.state_dir, "kept", tmp_path).models
    records = sites.store.control.history.records(state.run_id)
    [record] = [one for one in records if one.version == 2]
    tensors = {who: load_file(given.path) for who, given in models.items()}
    merged, total = tensors.pop(""), sum(record.weights.values())
    for name in ("layers.0.weight", "layers.0.bias"):
        mean = sum(tensors[who][name] * (record.weights[who] / total) for who in names)
        assert np.allclose(mean, merged[name], rtol=0, atol=1e-6)
        assert not np.allclose(tensors["site-1"][name], tensors["site-2"][name], atol=1e-4)
    again = report(sites, str(models["site-2"].path), "study.toml")
    row = found["models"]["site-2"]
    assert again["metrics"]["auc"]["value"] == row["all"]["auc"]
    for who in names:
        assert again["per_site"][who]["auc"]["value"] == row["sites"][who]["auc"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nothing.safetensors", "study.toml"], 3, "no such file"),
        (["model.safetensors"], 2, "CONFIG: is missing"),
        (["study.toml", "study.toml"], 2, "the suffix is none of .safetensors"),
        (["unknown", "study.toml"], 2, "there is no such run"),
        (["study", "--matrix"], 2, "train with model.keep_updates = true"),
        (["study", "--figure", "auc"], 2, "--figure: is for --matrix"),
        (["study", "--matrix", "-o", "matrix.html"], 2, "a matrix is written as one of"),
        (["study@0", "--matrix"], 2, "no round of updates made version 0"),
        (
            ["model.safetensors", "study.toml", "-o", "report.doc"],
            2,
            "the suffix is none of .json",
        ),
    ],
)
def test_what_cannot_be_evaluated(
    sites: Federation, words: list[str], code: int, message: str
) -> None:
    """It is refused before a run begins, with the fix."""
    done = command(sites, "evaluate", *words)
    assert message in done.stderr
    assert done.returncode == code


def test_a_model_of_another_task_and_sites_that_refuse(sites: Federation) -> None:
    """The tensor is named; and so are the sites and their reasons, where none evaluates."""
    other = breast_cancer.weights()
    other["head.weight"] = other.pop("layers.0.weight")
    breast_cancer.write_model(sites.folder / "other.safetensors", other)
    done = command(sites, "evaluate", "other.safetensors", "study.toml")
    assert done.returncode == 4
    assert "tensor 'layers.0.weight' is missing" in done.stderr
    policies(sites, 'allow = ["train"]\n', "min_rows = 300\n", 'allow = ["train"]\n')
    try:
        refused = command(sites, "evaluate", "model.safetensors", "study.toml")
        assert refused.returncode == 4
        [line] = [line for line in refused.stderr.splitlines() if line.startswith("Error: ")]
        assert "no site has evaluated the model" in line
        assert "site-2: it cannot evaluate" in line
        assert "the table has fewer rows than its min_rows" in line
    finally:
        policies(sites, OPEN, OPEN, OPEN)
