"""The task causal-lm: blocks of joined texts, and a loss over the predicted tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fl_queue.config import metric_choice
from fl_queue.config.run_config import RunConfig
from fl_queue.config.task_catalog import TASKS
from fl_queue.errors import ConfigError
from fl_queue.experiments import trial
from fl_queue.tasks.base import declared_of
from fl_queue.tasks.hf import packages, samples
from fl_queue.tasks.hf.samples import TokenSamples
from fl_queue.tasks.loading import load_task
from tests.support.kept_rounds import check_same_bits, on_one_thread
from tests.unit.tasks.hf.test_models import GPT2

TEXT = "the cat sat on the mat\n" * 30


def config_of(**options: Any) -> RunConfig:
    return RunConfig.from_dict(
        {
            "run": {"task": "causal-lm"},
            "train": {"batch_size": 4, "learning_rate": 0.3, "epochs": 3, "accumulate": 2},
            "task": {**GPT2, "file": "a.txt", "max_tokens": 16, **options},
        }
    )


@settings(max_examples=50)
@given(st.lists(st.text(max_size=9), max_size=6), st.integers(2, 12))
def test_blocks_are_the_texts_one_after_the_other(texts: list[str], size: int) -> None:
    tokenizer = packages.transformers().ByT5Tokenizer(extra_ids=0)

    found = samples.blocks(tokenizer, texts, size)

    whole = b"".join(text.encode() + b"\xfe" for text in texts)  # \xfe + 3 stands for the end token
    ids = [1 if byte == 0xFE else byte + 3 for byte in whole]
    joined = [token for block in found for token in block]
    assert joined == ids[: len(joined)]
    assert len(ids) - len(joined) == (len(ids) % size == 1)
    assert all(len(block) == size for block in found[:-1])


def test_the_loss_is_the_mean_over_predicted_tokens(tmp_path: Path) -> None:
    task = load_task("causal-lm", config_of())
    model = task.build_model().eval()
    ids = [[5, 6, 7, 8, 9], [5, 6], [7, 8, 9]]
    data = TokenSamples(ids, None)
    batch: Any = task.collate([data[index] for index in range(3)])  # type: ignore[misc]

    output = task.forward(model, batch)
    expected, count = torch.zeros(()), 0
    for row in ids:
        logits = model(input_ids=torch.tensor([row])).logits[0, :-1]
        expected = expected + functional.cross_entropy(
            logits, torch.tensor(row[1:]), reduction="sum"
        )
        count += len(row) - 1
    assert count == 7
    torch.testing.assert_close(task.loss(output, batch["labels"]), expected / count)


@pytest.mark.parametrize(("rank", "dtype"), [(0, "float32"), (2, "float32"), (2, "bfloat16")])
def test_it_learns_with_the_same_bits_each_time(tmp_path: Path, rank: int, dtype: str) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    config = config_of(lora_rank=rank, dtype=dtype)
    found = [trial.run_trial(config, str(tmp_path)) for _ in range(2)]

    assert found[0].problem == ""
    assert {"loss", "perplexity", "token_accuracy"} == found[0].trained.keys()
    assert found[0].trained["perplexity"] == pytest.approx(
        math.exp(found[0].trained["loss"]), rel=1e-3
    )
    assert found[0].trained["loss"] < found[0].base["loss"]
    assert (found[0].trained, found[0].largest) == (found[1].trained, found[1].largest)
    assert bool(found[0].frozen) == bool(rank)


@pytest.mark.parametrize(("rank", "dtype"), [(0, "float32"), (2, "bfloat16")])
def test_a_process_that_stays_has_the_bits_of_fresh_ones(
    tmp_path: Path, rank: int, dtype: str
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    config = config_of(lora_rank=rank, dtype=dtype)
    config = replace(config, train=replace(config.train, epochs=1))
    # Imports what it needs, once here and not in each process.
    with on_one_thread():
        load_task("causal-lm", config, data_dir=str(tmp_path)).build_model()

    check_same_bits(tmp_path, config, data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("select", "words"),
    [
        ("accuracy:max", "is not what the clients of causal-lm report"),
        ("perplexity:max", "chooses the worst version; write perplexity:min"),
        ("token_accuracy:min", "write token_accuracy:max"),
    ],
)
def test_a_metric_that_it_does_not_report_is_refused_when_a_run_begins(
    select: str, words: str
) -> None:
    metric_choice.check_config(config_of())
    config = RunConfig.from_dict({**config_of().to_dict(), "run": {"task": "causal-lm", "select": select}})  # fmt: skip

    with pytest.raises(ConfigError, match=words):
        metric_choice.check_config(config)


def test_the_catalog_has_the_metrics_that_the_task_declares() -> None:
    declared = declared_of(load_task("causal-lm", config_of()))

    assert declared is not None
    assert dict(declared.names) == {**TASKS["causal-lm"].metrics, "loss": "min"}
