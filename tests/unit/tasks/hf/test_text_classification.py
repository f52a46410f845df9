"""The task text-classification: data by class and owner, padded batches, and a training by the default loop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, DataError
from fl_queue.experiments import trial
from fl_queue.tasks.base import Task
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task
from fl_queue.tasks.site_facts import facts_of
from tests.support.kept_rounds import check_same_bits, on_one_thread
from tests.unit.tasks.hf.test_models import BERT

WORDS = {"pos": "good", "neg": "bad"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty short texts of two classes and four owners; those of the evaluator beside them."""
    for name, count in (("train", 40), ("test", 10)):
        rows = []
        for number in range(count):
            label = ("pos", "neg")[number % 2]
            text = " ".join([WORDS[label]] * (1 + number % 3))
            rows.append(json.dumps({"text": text, "label": label, "by": f"o{number % 4}"}))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    return tmp_path


def config_of(data: dict[str, Any] | None = None, rate: float = 0.1, **options: Any) -> RunConfig:
    task = {**BERT, "classes": "neg,pos", "max_tokens": 32, **options}
    return RunConfig.from_dict(
        {
            "run": {"task": "text-classification"},
            "data": {"validation_fraction": 0.25, **(data or {})},
            "train": {"batch_size": 8, "learning_rate": 0.1, "epochs": 4},
            "task": task,
        }
    )


def made(config: RunConfig, folder: Path, share: int = 0, shares: int = 1) -> tuple[Task, Any]:
    task = load_task("text-classification", config, data_dir=str(folder))
    context = ClientContext.of(
        config,
        client="a",
        run="r",
        round_number=1,
        data_dir=str(folder),
        share=share,
        shares=shares,
    )
    return task, task.client_data(context)


def test_a_sample_is_a_text_by_its_tokens_and_class(folder: Path) -> None:
    task, data = made(config_of({"validation_fraction": 0.0}), folder)

    first = data.train[0]
    assert bytes(first["input_ids"][:-1].numpy().astype("u1") - 3) == b"good"
    assert first["labels"] == 1
    batch = task.collate([data.train[index] for index in range(3)])  # type: ignore[misc]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 15)
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 8, 15]
    assert (batch["input_ids"] * (1 - batch["attention_mask"])).sum() == 0
    assert batch["labels"].tolist() == [1, 0, 1]
    test = task.test_data(str(folder))
    assert test is not None
    assert len(test) == 10  # type: ignore[arg-type]
    assert task.test_data("") is None


def test_a_long_text_is_cut(folder: Path) -> None:
    _, data = made(config_of(max_tokens=6), folder)

    assert max(len(one["input_ids"]) for one in data.train) == 6


def test_texts_that_are_cut_are_counted_and_shown(folder: Path) -> None:
    # Of 3 to 15 bytes with the end token: `good` and `bad` once, twice, three times.
    task, data = made(config_of(max_tokens=8), folder)
    longer = sum(
        len(json.loads(line)["text"]) + 1 > 8
        for line in (folder / "train.jsonl").read_text().splitlines()
    )

    assert data.counts == data.unused == {"cut text": longer}
    assert 0 < longer < 40
    assert facts_of(task, data)["files"] == f"{longer} cut text"
    assert made(config_of(max_tokens=32), folder)[1].counts == {}


def test_partitions_split_by_class_and_owner(folder: Path) -> None:
    config = config_of({"partition": "label_count", "labels_per_client": 1, "shares": 2})
    labels = [{int(one["labels"]) for one in made(config, folder, n, 2)[1].train} for n in (0, 1)]
    assert sorted(labels, key=min) == [{0}, {1}]

    config = config_of(
        {"partition": "natural", "shares": 4, "validation_fraction": 0.0}, owner="by"
    )
    sizes = [len(made(config, folder, share, 4)[1].train) for share in range(4)]
    assert sizes == [10, 10, 10, 10]


@pytest.mark.parametrize("lora", [0, 2])
def test_it_learns_with_the_same_bits_each_time(folder: Path, lora: int) -> None:
    config = config_of(lora_rank=lora)
    first, second = (trial.run_trial(config, str(folder)) for _ in range(2))

    assert first.problem == ""
    # A new head on fresh, frozen weights has little to learn from.
    assert lora or first.trained["loss"] < first.base["loss"]
    assert {"accuracy", "f1", "auc"} <= first.trained.keys()
    assert (first.trained, first.largest) == (second.trained, second.largest)
    assert bool(first.frozen) == bool(lora)
    assert first.update_bytes == 4 * (first.parameters - first.frozen)


@pytest.mark.parametrize(("lora", "loaders"), [(0, 0), (2, 2)])
def test_a_process_that_stays_has_the_bits_of_fresh_ones(
    folder: Path, lora: int, loaders: int
) -> None:
    config = config_of(lora_rank=lora)
    config = replace(config, train=replace(config.train, epochs=1))
    # Imports what it needs, once here and not in each process.
    with on_one_thread():
        load_task("text-classification", config, data_dir=str(folder)).build_model()

    check_same_bits(folder, config, data_dir=str(folder), loader_workers=loaders)


def test_its_facts_name_the_classes_and_number_the_vocabulary(folder: Path) -> None:
    task, data = made(config_of(), folder)

    found = facts_of(task, data)
    assert "neg, pos" in found["classes"]
    assert found["tokenizer"]
    assert task.usage().labels == ("neg", "pos")
    model: Any = task.build_model()
    assert model.config.id2label == {0: "neg", 1: "pos"}


def test_an_unknown_label_is_shown_to_the_site_alone(folder: Path) -> None:
    with pytest.raises(DataError, match=r"row 2: its label is not one of .*: pos, good") as caught:
        made(config_of(classes="pos,good"), folder)
    assert caught.value.public == "a label (task.label) is not one of task.classes"


def test_without_a_data_folder_the_option_is_named() -> None:
    task = load_task("text-classification", config_of())
    context = ClientContext.of(task.config, client="a", run="r", round_number=1)

    with pytest.raises(ConfigError, match="start the worker with --data"):
        task.client_data(context)


def test_the_model_is_that_of_each_machine(folder: Path) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(load_task("text-classification", config_of(), data_dir=str(folder)).build_model().state_dict())  # fmt: skip
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
