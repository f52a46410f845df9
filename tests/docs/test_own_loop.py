"""The example with a training loop of its own: the guide shows it, and it runs under each strategy."""

from __future__ import annotations

import pytest

from fl_queue.config.loading import load
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.experiments import trial
from tests.support.checkout import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def in_the_folder_of_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_the_guide_shows_the_loops_of_the_example() -> None:
    guide = (ROOT / "docs/guides/your-own-task.md").read_text()
    blocks = guide.split("`examples/own_loop.py`")[1].split("```python\n")[1:3]

    for block in blocks:
        assert block.split("```")[0] in (EXAMPLES / "own_loop.py").read_text()


def config_of(strategy: str) -> RunConfig:
    """The example's config, under a strategy."""
    raw = load(str(EXAMPLES / "own_loop.toml"), environ={}).to_dict()
    raw["aggregation"] |= {"strategy": strategy, "weighting": "uniform"}
    return RunConfig.from_dict(raw | {"strategy": {}})


@pytest.mark.parametrize("strategy", ["fedprox", "feddyn", "ditto"])
def test_the_example_makes_an_update(strategy: str) -> None:
    found = trial.run_trial(config_of(strategy))

    assert (found.problem, found.num_examples) == ("", 90)
    assert found.largest > 0


@pytest.mark.parametrize("strategy", ["fedprox", "scaffold"])
def test_the_loop_by_the_config_makes_an_update(strategy: str) -> None:
    raw = config_of(strategy).to_dict()
    raw["run"]["task"] = "own_loop:ByConfig"
    raw["train"] |= {"schedule": "cosine", "accumulate": 2, "momentum": 0.9}

    found = trial.run_trial(RunConfig.from_dict(raw))

    assert (found.problem, found.num_examples) == ("", 90)
    assert found.largest > 0


def test_its_adamw_is_refused_under_scaffold() -> None:
    with pytest.raises(ConfigError, match=r"means of SGD's gradients.*steps with AdamW"):
        trial.run_trial(config_of("scaffold"))
