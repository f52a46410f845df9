"""Options of the tasks on texts that contradict each other are refused when the config is read."""

from __future__ import annotations

from typing import Any

import pytest

from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError

FRESH = {"architecture": "bert"}


def config_of(task: str = "text-classification", **options: Any) -> RunConfig:
    return RunConfig.from_dict({"run": {"task": task}, "task": options})


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({}, "task.model", "is empty; name a folder in the data folder, or a task.architecture"),
        ({"model": "m", **FRESH}, "task.model", "are both given; leave one empty"),
        (
            {"model": "m", "architecture_options": {"hidden_size": 3}},
            "task.architecture_options",
            "has its own config.json",
        ),
        (
            {**FRESH, "lora_targets": ["query"]},
            "task.lora_rank",
            "is 0, so the other lora_ options",
        ),
        ({**FRESH, "lora_dropout": 0.1}, "task.lora_rank", "is 0, so the other lora_ options"),
        ({**FRESH, "dtype": "bfloat16"}, "task.dtype", "for the frozen model of LoRA"),
        ({**FRESH, "classes": "a"}, "task.classes", "two or more different classes"),
        ({**FRESH, "classes": "a, a"}, "task.classes", "two or more different classes"),
        ({"model": "../m"}, "task.model", "without .. in it"),
        ({"model": "/m"}, "task.model", "without .. in it"),
        ({**FRESH, "tokenizer": "../t"}, "task.tokenizer", "without .. in it"),
        ({**FRESH, "file": "/etc/passwd"}, "task.file", "without .. in it"),
        ({**FRESH, "weights": "pickle"}, "task.weights", "is not one of file, random"),
        ({**FRESH, "max_tokens": 1}, "task.max_tokens", "must be at least 2"),
        ({**FRESH, "lora_alpha": 0}, "task.lora_alpha", "must be more than 0"),
        ({**FRESH, "lora_rnk": 1}, "task.lora_rnk", "lora_rank"),
        ({**FRESH, "architecture_options": 3}, "task.architecture_options", "is not a table"),
    ],
)
def test_options_that_cannot_be_used_are_named(
    options: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        config_of(**options)
    assert caught.value.field == field


def test_a_language_model_has_no_classes() -> None:
    assert "classes" not in config_of("causal-lm", **FRESH).task
    with pytest.raises(ConfigError, match=r"task\.classes"):
        config_of("causal-lm", classes="a,b", **FRESH)


@pytest.mark.parametrize("name", ["text-classification", "causal-lm"])
def test_the_natural_partition_needs_the_owners_column(name: str) -> None:
    raw = {"run": {"task": name}, "data": {"partition": "natural"}, "task": dict(FRESH)}
    with pytest.raises(ConfigError, match=r"task\.owner"):
        RunConfig.from_dict(raw)
    assert RunConfig.from_dict(raw | {"task": {**FRESH, "owner": "by"}})


def test_a_config_goes_through_its_record_and_back() -> None:
    config = loading.load("text-classification", ("task.model=", "task.architecture=bert", "task.architecture_options={hidden_size=8}"))  # fmt: skip

    again = RunConfig.from_dict(config.record())
    assert again == config
    assert again.digest == config.digest
    assert dict(again.task["architecture_options"]) == {"hidden_size": 8}
