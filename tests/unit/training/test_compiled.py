"""Passes that ``torch.compile`` makes: names stay, errors name the option, processes that stay have the bits of fresh ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fl_queue.errors import ConfigError
from fl_queue.training import compiled
from tests.support.kept_rounds import check_same_bits, config_of, own_module

SETTINGS = ("task.label=label", "task.features=age,weight", "task.classes=0,1")
SET = [word for setting in SETTINGS for word in ("--set", setting)]

pytestmark = pytest.mark.usefixtures(own_module.__name__)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that nothing else has compiled."""
    # As ``client.trainer.environment`` has them: with threads that compile, a process cannot be forked.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")


class Small(nn.Module):
    """A layer whose output needs code of the compiler's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x)) * 2


def test_names_of_tensors_stay() -> None:
    model = Small()
    names = [*model.state_dict()]

    compiled.prepare(model)

    assert [*model.state_dict()] == names
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.slow  # Two compilations, of some seconds each.
def test_more_shapes_than_are_compiled_are_named() -> None:
    torch.compiler.reset()
    model = Small()
    compiled.prepare(model)
    before = compiled.seconds()

    with compiled.naming(True):
        model(torch.ones(1, 3))
    assert compiled.seconds() > before
    with pytest.raises(ConfigError, match=r"--compile: .*batches of one shape"):
        one_step_more(model)


def one_step_more(model: nn.Module) -> None:
    """Call a model with another shape, where no second one is compiled."""
    with torch._dynamo.config.patch(recompile_limit=1), compiled.naming(True):
        model(torch.ones(5, 3))


@pytest.mark.slow  # A process of its own, which has asked for no compiler yet.
def test_a_machine_without_a_compiler_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fl_queue", "try-task", "csv", "--compile", "--data", str(table(tmp_path)), *SET],
        env={**os.environ, "CXX": "/nonexistent/c++"}, text=True, capture_output=True, timeout=300, check=False,
    )  # fmt: skip

    assert done.returncode == 2, done.stderr
    assert "--compile: torch cannot compile this model here (InductorError)" in done.stderr
    assert "start the worker without --compile" in done.stderr


@pytest.mark.slow  # Each fresh process imports the compiler.
@pytest.mark.timeout(900)
def test_a_process_that_stays_has_the_bits_of_fresh_ones(tmp_path: Path) -> None:
    config = config_of({"run": {"task": "kept_own:made"}, "train": {"epochs": 1}})

    found = check_same_bits(tmp_path, config, compiled=True)

    assert found[-1].header.environment[compiled.COMPILED] == 1


def table(folder: Path) -> Path:
    """A site's folder for the preset ``csv``."""
    text = "age,weight,label\n" + "".join(f"{20 + i},{60 + i % 7}.5,{i % 2}\n" for i in range(40))
    for name in ("train.csv", "test.csv"):
        (folder / name).write_text(text)
    return folder
