"""Transformers models in whole runs: two sites with their own files, and a pool that trains LoRA."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_queue import Run
from fl_queue.config import loading
from fl_queue.store.embedded.server_pair import start
from fl_queue.tasks.hf import packages
from fl_queue.tasks.loading import load_task
from tests.support.federation import Federation, wait_for
from tests.support.server_binaries import chosen_server

WORDS = {"pos": ("good", "fine"), "neg": ("bad", "poor")}
TINY = (
    "train.batch_size=8",
    "task.max_tokens=24",
    "run.preflight=off",
    "run.evaluate_every=0",
    "round.deadline_s=150",
)
BERT = (
    "run.task=text-classification",
    "task.architecture=bert",
    "task.architecture_options={hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16}",
    "task.classes=neg,pos",
    "data.partition=site",
    "data.validation_fraction=0.25",
)
GPT2 = (
    "run.task=causal-lm",
    "task.architecture=gpt2",
    "task.architecture_options={n_embd=16, n_layer=1, n_head=2}",
    "task.lora_rank=2",
    "clients.kind=simulation",
    "clients.count=2",
    "clients.processes=1",
)


def texts(folder: Path, of_site: int) -> Path:
    """A data folder of forty short texts; those of two sites have no word in common."""
    folder.mkdir()
    rows = []
    for number in range(40):
        label = ("pos", "neg")[number % 2]
        rows.append(json.dumps({"text": " ".join([WORDS[label][of_site]] * 3), "label": label}))
    (folder / "train.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Federation]:
    """An aggregator, a pool process, and two sites with a folder each, whose training processes stay."""
    folder = tmp_path_factory.mktemp("texts")
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(redis, folder, 0, evaluator=False, forked=True)
        try:
            made.start("pool", "--processes", "1", "--data", str(texts(folder / "pool", 0)))
            for number in (1, 2):
                data = texts(folder / f"site-{number}", number - 1)
                made.start(f"site-{number}", "--data", str(data), "--trainer-jobs", "0")
            wait_for("workers", lambda: len(made.store.control.workers.living()) == 4, 120)
            yield made
        finally:
            made.close()


def model_of(both: Federation, name: str, version: int) -> dict[str, torch.Tensor]:
    """The whole model of a version, by its public API."""
    redis = both.redis
    with Run.attach(
        name, redis_url=redis.url, blob_url=redis.blob_url, state_dir=redis.state_dir
    ) as run:
        found: dict[str, torch.Tensor] = run.model(version)
        return found


def test_two_sites_train_a_classifier_on_texts_of_their_own(both: Federation) -> None:
    run = both.begin(
        "texts", *TINY, *BERT, "run.rounds=2", "round.cohort=2", "train.learning_rate=0.1"
    )
    state = both.finish(run, 170)

    assert (state.state, state.version) == ("completed", 2)
    for record in both.committed(run):
        assert sorted(record.accepted) == ["site-1", "site-2"]
        assert set(record.client_validation["site-1"]) >= {"loss", "accuracy", "auc"}


def test_a_training_process_stays_for_the_rounds_of_lora(both: Federation) -> None:
    """Loading transformers and peft takes longer than a small round."""
    lora = ("task.lora_rank=2", "train.learning_rate=0.1")
    run = both.begin("resident", *TINY, *BERT, *lora, "run.rounds=3", "round.cohort=2")
    assert both.finish(run, 170).state == "completed"

    for site in ("site-1", "site-2"):
        log = (both.folder / f"{site}.log").read_text()
        assert "run resident, round 3" in log
        assert "changed in" not in log


def test_a_pool_trains_lora_and_nothing_else_changes(both: Federation) -> None:
    run = both.begin(
        "adapters", *TINY, *GPT2, "run.rounds=2", "round.cohort=2", "train.learning_rate=0.1"
    )
    state = both.finish(run, 170)

    assert (state.state, state.version) == ("completed", 2)
    manifest = both.store.control.versions.manifest(run)
    assert manifest is not None
    trained = {spec.name for spec in manifest.tensors} - set(manifest.frozen)
    assert {name.split(".")[-3] for name in trained} == {"lora_A", "lora_B"}
    numbers = sum(spec.size for spec in manifest.tensors if spec.name in trained)
    newest = both.committed(run)[-1].round
    receipts = both.store.control.receipts.of_round(run, newest).values()
    assert {receipt.nbytes for receipt in receipts} == {4 * numbers}
    first, last = (model_of(both, "adapters", version) for version in (0, 2))
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert changed <= trained
    assert any("lora_B" in name for name in changed)


def test_a_version_is_saved_as_adapters_of_peft(both: Federation, tmp_path: Path) -> None:
    config = loading.load("causal-lm", ("task.model=", *GPT2, *TINY, "train.accumulate=1"))
    model: Any = load_task("causal-lm", config).build_model()

    # As docs/guides/hugging-face.md has it.
    model.load_state_dict(model_of(both, "adapters", 2))
    model.save_pretrained(tmp_path)

    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        one.name for one in tmp_path.iterdir()
    }
    tokens = torch.arange(5, 21).reshape(2, 8)
    expected = model.eval()(input_ids=tokens).logits
    base = model.unload()
    assert not torch.equal(base(input_ids=tokens).logits, expected)
    found = packages.peft().PeftModel.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(found(input_ids=tokens).logits, expected)
