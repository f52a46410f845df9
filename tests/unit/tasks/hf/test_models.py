"""Models and tokenizers of a site's folder or of sizes: nothing is downloaded, unpickled, or run."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fl_queue.config.task_catalog import task_options
from fl_queue.errors import ConfigError, DataError
from fl_queue.tasks.hf import models, packages
from fl_queue.training.model_tensors import manifest_of

CLASSIFIER = "AutoModelForSequenceClassification"
BERT = {
    "architecture": "bert",
    "architecture_options": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    },
}
GPT2 = {"architecture": "gpt2", "architecture_options": {"n_embd": 16, "n_layer": 1, "n_head": 2}}


def build(
    options: Mapping[str, Any], data_dir: Path | str = "", seed: int = 1, kind: str = CLASSIFIER
) -> nn.Module:
    task = "text-classification" if kind == CLASSIFIER else "causal-lm"
    complete = task_options(task, dict(options))
    torch.manual_seed(seed)
    tokenizer = models.tokenizer_of(complete, str(data_dir))
    head = {"id2label": {0: "a", 1: "b", 2: "c"}} if kind == CLASSIFIER else {}
    return models.build(kind, complete, str(data_dir), tokenizer, **head)


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with a saved model, ``tiny``."""
    model: Any = build(BERT)
    model.save_pretrained(tmp_path / "tiny")
    return tmp_path


def test_fresh_weights_are_of_torchs_seed() -> None:
    assert same(build(BERT), build(BERT))
    assert not same(build(BERT), build(BERT, seed=2))


def test_the_vocabulary_is_that_of_the_tokenizer() -> None:
    model: Any = build(GPT2, kind="AutoModelForCausalLM")

    assert model.get_input_embeddings().weight.shape == (259, 16)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (0, 1)


def test_a_folder_has_its_weights_or_its_config_alone(folder: Path) -> None:
    bytes_of = {"model": "tiny", "tokenizer": "bytes"}
    loaded = build(bytes_of, folder, seed=2)

    assert same(loaded, build(BERT))
    assert loaded.training
    fresh = build({**bytes_of, "weights": "random"}, folder, seed=2)
    assert fresh.state_dict().keys() == loaded.state_dict().keys()
    assert not same(fresh, loaded)


def test_a_file_that_could_hold_code_is_not_read(folder: Path) -> None:
    class Marks:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(folder / "ran"),))

    (folder / "tiny/model.safetensors").unlink()
    (folder / "tiny/pytorch_model.bin").write_bytes(pickle.dumps(Marks()))

    with pytest.raises(DataError, match=r"has no weights \(\*\.safetensors") as caught:
        build({"model": "tiny", "tokenizer": "bytes"}, folder)
    assert str(folder) not in caught.value.public
    assert not (folder / "ran").exists()


def test_code_of_a_models_folder_is_not_run(folder: Path) -> None:
    config = json.loads((folder / "tiny/config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Strange"}}
    (folder / "tiny/config.json").write_text(json.dumps(config))
    (folder / "tiny/code.py").write_text(f"import os\nos.mkdir({str(folder / 'ran')!r})\n")

    with pytest.raises(DataError, match=r"cannot be read .*task\.model") as caught:
        build({"model": "tiny", "tokenizer": "bytes"}, folder)
    assert "strange" not in caught.value.public
    assert (
        "Python code of its own (auto_map in its config), which is not run" in caught.value.public
    )
    assert not (folder / "ran").exists()


def test_a_tokenizer_is_read_from_its_folder(folder: Path) -> None:
    transformers = packages.transformers()
    transformers.ByT5Tokenizer(extra_ids=7).save_pretrained(folder / "words")
    transformers.ByT5Tokenizer(extra_ids=9).save_pretrained(folder / "tiny")

    for options, size in (
        ({"model": "tiny"}, 268),
        ({"model": "tiny", "tokenizer": "words"}, 266),
        ({"model": "tiny", "tokenizer": "bytes"}, 259),
        ({"architecture": "bert", "tokenizer": "words"}, 266),
        ({"architecture": "bert"}, 259),
    ):
        complete = task_options("text-classification", options)
        assert len(models.tokenizer_of(complete, str(folder))) == size


@pytest.mark.parametrize(("base", "kind"), [(BERT, CLASSIFIER), (GPT2, "AutoModelForCausalLM")])
def test_with_lora_its_matrices_and_a_new_head_are_trained(base: Any, kind: str) -> None:
    manifest = manifest_of(build({**base, "lora_rank": 2}, kind=kind))

    trained = {spec.name for spec in manifest.tensors} - set(manifest.frozen)
    assert trained
    assert all(".lora_" in name or "classifier.modules_to_save" in name for name in trained)
    assert any("classifier" in name for name in trained) == (kind == CLASSIFIER)


@pytest.mark.parametrize(("base", "kind"), [(BERT, CLASSIFIER), (GPT2, "AutoModelForCausalLM")])
def test_a_frozen_model_may_be_of_half_precision_and_what_is_trained_is_not(
    base: Any, kind: str
) -> None:
    model: Any = build({**base, "lora_rank": 2, "dtype": "bfloat16"}, kind=kind)
    found = {(one.requires_grad, one.dtype) for one in model.parameters()}
    assert found == {(True, torch.float32), (False, torch.bfloat16)}

    tokens = torch.arange(5, 21).reshape(2, 8)
    model(input_ids=tokens, labels=torch.tensor([0, 1]) if kind == CLASSIFIER else tokens).loss.backward()  # fmt: skip
    trained = [one for one in model.parameters() if one.requires_grad]
    assert any(one.grad.abs().sum() > 0 for one in trained)
    assert {one.grad.dtype for one in trained} == {torch.float32}


def test_quantised_weights_are_refused_by_name(folder: Path) -> None:
    config = json.loads((folder / "tiny/config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "tiny/config.json").write_text(json.dumps(config))

    with pytest.raises(ConfigError, match=r"^task\.model: its weights are quantised") as caught:
        build({"model": "tiny", "tokenizer": "bytes"}, folder)
    assert caught.value.public


def test_the_layers_of_lora_are_chosen() -> None:
    def adapted(*targets: str) -> set[str]:
        model = build({**BERT, "lora_rank": 2, "lora_targets": list(targets)})
        return {
            name.split(".lora_")[0].rpartition(".")[2]
            for name, _ in model.named_parameters()
            if ".lora_" in name
        }

    assert adapted("key", "dense") == {"key", "dense"}
    assert adapted("all-linear") == {"query", "key", "value", "dense"}
    with pytest.raises(ConfigError, match=r"keys is of no layer .*: classifier, dense, key, query"):
        adapted("keys")


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"architecture": "gtp2"}, "task.architecture", "did you mean"),
        (
            {"architecture": "bert", "architecture_options": {"hiden_size": 3}},
            "task.architecture_options.hiden_size",
            "hidden_size",
        ),
        (
            {"architecture": "bert", "architecture_options": {"hidden_size": "wide"}},
            "task.architecture_options",
            "bert does not take them",
        ),
        ({**BERT, "max_tokens": 513}, "task.max_tokens", "513 is more than the model's 512"),
        ({"model": "tiny"}, "data.dir", "start the worker with --data"),
    ],
)
def test_options_that_a_model_does_not_have_are_named(
    options: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        build(options)

    assert caught.value.field == field
    assert caught.value.public


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    """Transformers makes one that knows no word."""
    options = {"model": "tiny", "tokenizer": ""}
    with pytest.raises(DataError, match="has no files of a tokenizer") as caught:
        models.tokenizer_of(options, str(folder))
    assert caught.value.public.startswith("task.model: its folder has no files of a tokenizer")


def test_a_model_of_masked_tokens_is_no_causal_one() -> None:
    with pytest.raises(ConfigError, match="bert sees the tokens that it is to predict") as caught:
        build(BERT, kind="AutoModelForCausalLM")
    assert caught.value.field == "task.architecture"
    sizes: Any = BERT["architecture_options"]
    decoder = {**BERT, "architecture_options": {**sizes, "is_decoder": True}}
    build(decoder, kind="AutoModelForCausalLM")
    build(GPT2, kind="AutoModelForCausalLM")


@pytest.mark.parametrize("broken", ["absent", "no config", "no JSON"])
def test_a_folder_that_is_no_models_is_named_without_its_path(tmp_path: Path, broken: str) -> None:
    if broken != "absent":
        (tmp_path / "tiny").mkdir()
    if broken == "no JSON":
        (tmp_path / "tiny/config.json").write_text("{Erika")

    with pytest.raises(DataError, match=r"task\.model") as caught:
        build({"model": "tiny", "tokenizer": "bytes"}, tmp_path)
    assert str(tmp_path) not in caught.value.public
    assert "Erika" not in caught.value.public
