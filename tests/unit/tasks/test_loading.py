"""Which tasks a site lets in: what --task-allow names, and of a module only what is defined there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fl_queue.cli.worker import worker
from fl_queue.config.run_config import RunConfig
from fl_queue.config.task_catalog import TASKS
from fl_queue.errors import ConfigError
from fl_queue.experiments import launching
from fl_queue.strategies import load_strategy
from fl_queue.strategies.fedavg import FedAvg
from fl_queue.tasks import export
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task

HELPFUL = """
import functools
from shutil import rmtree
from subprocess import Popen, check_output

import torch
from torch import load

from fl_queue.strategies.fedavg import FedAvg
from fl_queue.tasks.csv_table import CsvTask

run = functools.partial(check_output)
cached = functools.lru_cache(check_output)
shell = torch.hub.load


class Own(CsvTask):
    "A task of this module."


class OwnStrategy(FedAvg):
    "A strategy of this module."


def beans(hidden=4):
    return torch.nn.Linear(1, 2), torch.utils.data.TensorDataset(torch.zeros(20, 1), torch.zeros(20).long())


@functools.lru_cache
def wrapped(hidden=4):
    return beans(hidden)
"""
IMPORTED = ("check_output", "Popen", "rmtree", "load", "run", "cached", "shell", "CsvTask")


@pytest.fixture
def helpful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module ``helpful`` of a site's author, who imports what authors import."""
    (tmp_path / "helpful.py").write_text(HELPFUL)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "helpful", raising=False)
    return tmp_path


def config_of(task: str, **options: object) -> RunConfig:
    if task in ("text-classification", "causal-lm"):
        options = {"architecture": "gpt2", **options}
    if task == "table":
        options = {"features": "age", "target": "died", **options}
    return RunConfig.from_dict({"run": {"task": task}, "task": options})


def test_a_config_gets_no_shell_out_of_an_allowed_module(helpful: Path) -> None:
    mark = helpful / "pwned"
    config = config_of("helpful:check_output", args=f"id > {mark}", shell=True)
    with pytest.raises(ConfigError, match=r"run\.task.*helpful:check_output"):
        load_task("helpful:check_output", config, ["helpful:*"]).client_data(
            ClientContext.of(config, client="a", run="run", round_number=1)
        )
    assert not mark.exists()


@pytest.mark.parametrize("name", IMPORTED)
def test_a_star_means_what_the_module_defines(helpful: Path, name: str) -> None:
    config = config_of(f"helpful:{name}")
    reason = "no class Popen" if name == "Popen" else f"--task-allow helpful:{name}"
    with pytest.raises(ConfigError, match=reason) as caught:
        load_task(f"helpful:{name}", config, ["helpful:*"])
    assert caught.value.field == "run.task"


@pytest.mark.parametrize("name", ["beans", "wrapped", "Own"])
def test_what_the_module_defines_is_let_in(helpful: Path, name: str) -> None:
    assert load_task(f"helpful:{name}", config_of(f"helpful:{name}"), ["helpful:*"])


def test_an_imported_class_is_let_in_by_its_name(helpful: Path) -> None:
    assert load_task("helpful:CsvTask", config_of("helpful:CsvTask"), ["helpful:CsvTask"])


def test_a_star_of_strategies_means_the_same(helpful: Path) -> None:
    assert type(load_strategy("helpful:OwnStrategy", {}, ["helpful:*"])).__name__ == "OwnStrategy"
    with pytest.raises(ConfigError, match="--strategy-allow helpful:FedAvg"):
        load_strategy("helpful:FedAvg", {}, ["helpful:*"])
    assert type(load_strategy("helpful:FedAvg", {}, ["helpful:FedAvg"])) is FedAvg


# Built-in tasks


@pytest.mark.parametrize("name", TASKS)
def test_a_site_that_allows_something_allows_nothing_else(name: str) -> None:
    for allow in (["beans:Beans"], ["beans:*"], ["image-folder" if name == "csv" else "csv"]):
        if name in allow:
            continue
        with pytest.raises(ConfigError, match=f"--task-allow {name}") as caught:
            load_task(name, config_of(name), allow)
        assert caught.value.field == "run.task"
        assert caught.value.public == caught.value.reason


@pytest.mark.parametrize("name", TASKS)
def test_built_in_tasks_are_let_in_by_name_and_when_nothing_is_named(name: str) -> None:
    family = "mnist" if name.startswith("mnist") else name
    for allow in ([], [name], [family, "beans:Beans"]):
        assert load_task(name, config_of(name), allow)


@pytest.mark.parametrize(
    ("given", "reason"),
    [("cvs", "csv"), ("beans", "MODULE:NAME"), ("mnist-4", "mnist"), ("", "MODULE:NAME")],
)
def test_the_option_knows_the_built_in_names(
    given: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr("os.execve", lambda *command: started.append(command[2]))
    run = ["client", "--client", "a", "--task-allow"]
    with pytest.raises(ConfigError, match=f"--task-allow: .*{reason}"):
        worker([*run, given], standalone_mode=False)
    assert started == []
    for name in ("csv", "mnist", "mnist-2nn", "image-folder", "beans:Beans"):
        worker([*run, name], standalone_mode=False)
    assert started[0]["FLQ_SITE_ALLOW"] == "csv"  # type: ignore[index]


def test_own_commands_train_built_in_tasks_beside_own_ones() -> None:
    own, built_in = config_of("beans:Beans"), config_of("csv")
    assert launching.allowed([built_in]) == ()
    assert set(launching.allowed([own, built_in])) == {"beans:Beans", *TASKS}
    assert export.load(config_of("mnist-3v7"), ["beans:Beans"], "")
