"""The guide for Hugging Face's users: its class and its config train as they stand there, and so do the presets."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from fl_queue import load_config
from fl_queue.config.data_section import FLWR_PARTITIONERS, PARTITIONS
from fl_queue.experiments import trial
from fl_queue.tasks.hf import packages
from tests.support.checkout import ROOT

GUIDE = (ROOT / "docs/guides/hugging-face.md").read_text()


def block(name: str) -> str:
    """The block of code that begins with the comment of that file name."""
    found = re.search(rf"^```\w+\n(# {re.escape(name)}\n.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    assert found, name
    return found[1]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with a tiny model and its tokenizer, and forty texts in two forms."""
    transformers = packages.transformers()
    tokenizer = transformers.ByT5Tokenizer(extra_ids=0)
    config = transformers.AutoConfig.for_model(
        "gpt2", n_embd=16, n_layer=1, n_head=2, vocab_size=259, pad_token_id=0
    )
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "model")  # fmt: skip
    tokenizer.save_pretrained(tmp_path / "model")
    rows: dict[str, list[Any]] = {"text": ["good film", "bad film"] * 20, "label": [1, 0] * 20}
    packages.datasets().Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    names = {"label": ["positive", "negative"] * 20}
    packages.datasets().Dataset.from_dict(rows | names).to_json(tmp_path / "train.jsonl")
    return tmp_path


def test_the_script_trains_as_it_stands(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = block("reviews.py")
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 18
    (data / "reviews.py").write_text(code)
    (data / "reviews.toml").write_text(block("reviews.toml"))
    monkeypatch.syspath_prepend(str(data))
    monkeypatch.delitem(sys.modules, "reviews", raising=False)
    importlib.invalidate_caches()

    found = trial.run_trial(load_config(str(data / "reviews.toml")), str(data))

    assert (found.num_examples, found.num_validation, found.problem) == (32, 8, "")
    assert found.largest > 0
    assert {"loss", "accuracy", "auc"} <= found.trained.keys()


@pytest.mark.parametrize("name", ["text-classification", "causal-lm"])
def test_a_shipped_config_trains_a_model_of_a_folder(data: Path, name: str) -> None:
    found = trial.run_trial(load_config(name), str(data))

    assert (found.problem, found.num_examples > 0) == ("", True)
    assert 0 < found.update_bytes < found.model_bytes / 2


def test_the_table_of_partitions_is_that_of_the_config() -> None:
    guide = (ROOT / "docs/guides/partitions.md").read_text()
    rows = re.findall(r"^\| (`\w+Partitioner`[^|]*) \| ([^|]*) \|", guide, re.MULTILINE)
    listed = [
        pair
        for theirs, ours in rows
        for pair in zip(theirs.split(", "), ours.split(", "), strict=True)
    ]

    assert {theirs.strip("`"): ours.strip("`") for theirs, ours in listed} == FLWR_PARTITIONERS
    assert set(FLWR_PARTITIONERS.values()) < set(PARTITIONS)
