"""
A transformers model of a config's ``[task]`` table: from a folder of the site, or fresh from sizes; with LoRA.

LoRA: Hu et al. 2021, arXiv 2106.09685. Imports torch when a model is built; no Redis here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fl_queue.common import data_folder
from fl_queue.common.spelling import nearest
from fl_queue.errors import ConfigError, DataError
from fl_queue.tasks.hf import packages
from fl_queue.tasks.hf.packages import LOCAL

#: Value of ``task.tokenizer`` for a tokenizer of bytes, which is made and not read.
BYTES = "bytes"
#: A tokenizer's folder has one of these at least.
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")


def folder_of(options: Mapping[str, Any], data_dir: str, option: str) -> Path:
    """
    Folder of a model or tokenizer at this site.

    Args:
        option: ``model`` or ``tokenizer``.

    Raises:
        ConfigError: This machine has no data folder.
        DataError: There is no such folder in it.
    """
    if not data_dir:
        raise ConfigError("data.dir", "is empty; start the worker with --data FOLDER", public=True)
    folder = data_folder.inside(data_dir, options[option], f"task.{option}")
    if not folder.is_dir():
        raise DataError(
            str(folder),
            f"is no folder; put the files of the model there (task.{option})",
            public=f"task.{option}: there is no such folder in the data folder",
        )
    return folder


def tokenizer_of(options: Mapping[str, Any], data_dir: str) -> Any:
    """
    The tokenizer of ``task.tokenizer``, else that of ``task.model``, else one of bytes that needs no file.

    Returns:
        One that has a token to pad with.

    Raises:
        ConfigError, DataError: It cannot be read from the folder.
    """
    option = "tokenizer" if options["tokenizer"] else "model"
    if options[option] in ("", BYTES):
        return packages.transformers().ByT5Tokenizer(extra_ids=0)
    folder = folder_of(options, data_dir, option)
    if not any(path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
        # transformers would make one with an empty vocabulary.
        what = "has no files of a tokenizer; save it there (tokenizer.save_pretrained), or set task.tokenizer"
        raise DataError(str(folder), what, public=f"task.{option}: its folder {what}")
    found = _read(
        option,
        folder,
        lambda: packages.transformers().AutoTokenizer.from_pretrained(str(folder), **LOCAL),
    )
    if found.pad_token is None:
        if found.eos_token is None:
            raise DataError(
                str(folder),
                "its tokenizer has neither a token to pad with nor an end token; give it a pad_token",
                public=f"task.{option}: its tokenizer has no token to pad with",
            )
        # Padding is masked, so any token will do.
        found.pad_token = found.eos_token
    return found


def build(
    kind: str, options: Mapping[str, Any], data_dir: str, tokenizer: Any, **head: Any
) -> nn.Module:
    """
    The model of ``[task]``, with fresh weights drawn from torch's generator where none are read.

    Args:
        kind: Class of transformers that chooses by the config: ``AutoModelForCausalLM``, ...
        tokenizer: Decides the size of a fresh vocabulary, and the token for padding.
        **head: Fields of the config that the task decides, such as ``num_labels``.

    Raises:
        ConfigError: An option that this model does not have; names it.
        DataError: The folder's files cannot be read.
    """
    maker = getattr(packages.transformers(), kind)
    head = {**head, "pad_token_id": tokenizer.pad_token_id}
    with packages.quiet():
        if options["model"]:
            folder = folder_of(options, data_dir, "model")
            config = _folder_config(folder, head)
            _check_length(config, options)
            model = _of_folder(maker, folder, config, options)
        else:
            config = _fresh_config(options, tokenizer, head)
            _check_length(config, options)
            model = _fresh(maker, config, options)
        if kind == "AutoModelForCausalLM":
            _check_causal(model, "model" if options["model"] else "architecture")
        return adapted(model, kind, options) if options["lora_rank"] else model


def _check_causal(model: Any, option: str) -> None:
    """Raise ConfigError for a model of masked tokens, such as BERT, unless its config makes a decoder of it."""
    masked = packages.transformers().models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    kind = model.config.model_type
    if kind in masked and getattr(model.config, "is_decoder", True) is False:
        where = "its config.json" if option == "model" else "task.architecture_options"
        raise ConfigError(
            f"task.{option}",
            f"{kind} sees the tokens that it is to predict; take a causal model, such as gpt2 or llama, or set "
            f"is_decoder = true in {where}",
            public=True,
        )


def adapted(model: nn.Module, kind: str, options: Mapping[str, Any]) -> nn.Module:
    """
    A model with LoRA: its own weights are frozen, but for a head that is new.

    Args:
        kind: As of ``build``.
        options: ``lora_rank``, ``lora_alpha``, ``lora_dropout``, ``lora_targets``.

    Raises:
        ConfigError: ``task.lora_targets`` names no layer of the model.
    """
    peft = packages.peft()
    targets = list(options["lora_targets"]) or None
    settings = peft.LoraConfig(
        r=options["lora_rank"],
        lora_alpha=options["lora_alpha"],
        lora_dropout=options["lora_dropout"],
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type="SEQ_CLS" if "SequenceClassification" in kind else "CAUSAL_LM",
    )
    try:
        made: nn.Module = peft.get_peft_model(model, settings)
    except ValueError as exc:
        layers = sorted(
            {name.rpartition(".")[2] for name, one in model.named_modules() if _is_linear(one)}
        )
        named = ", ".join(options["lora_targets"]) or "nothing"
        raise ConfigError(
            "task.lora_targets",
            f"{named} is of no layer that LoRA adapts; the model's: {', '.join(layers)}",
            public=True,
        ) from exc
    for module in made.modules():
        # A new head is trained, and steps that are small beside a weight are lost in bfloat16.
        heads = getattr(module, "modules_to_save", None)
        for head in heads.values() if isinstance(heads, nn.ModuleDict) else ():
            head.float().register_forward_pre_hook(_in_float32)
    return made


def _in_float32(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        one.float() if isinstance(one, torch.Tensor) and one.is_floating_point() else one
        for one in arguments
    )


def _is_linear(module: nn.Module) -> bool:
    # GPT-2 has a class of its own.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _folder_config(folder: Path, head: Mapping[str, Any]) -> Any:
    found = _read(
        "model",
        folder,
        lambda: packages.transformers().AutoConfig.from_pretrained(
            str(folder), **LOCAL, **head, use_cache=False
        ),
    )
    if getattr(found, "quantization_config", None):
        raise quantised("task.model")
    return found


def quantised(field: str) -> ConfigError:
    """The error for a model whose weights are packed in 4 or 8 bits (QLoRA)."""
    return ConfigError(
        field,
        "its weights are quantised, which each device packs in another way, and a processor without CUDA not at "
        'all; use unquantised weights, with LoRA and task.dtype = "bfloat16" for half the memory',
        public=True,
    )


def _fresh(maker: Any, config: Any, options: Mapping[str, Any]) -> nn.Module:
    dtype = getattr(torch, options["dtype"])
    made: nn.Module = maker.from_config(config, trust_remote_code=False, dtype=dtype)
    return made


def _of_folder(maker: Any, folder: Path, config: Any, options: Mapping[str, Any]) -> nn.Module:
    """Build a model with a folder's weights, or with fresh ones. Raises DataError if they cannot be read."""
    if options["weights"] == "random":
        return _fresh(maker, config, options)
    if not any(folder.glob("*.safetensors")):
        raise DataError(
            str(folder),
            'has no weights (*.safetensors; other formats can hold code); put them there, or set task.weights = "random"',
            public='task.model: the folder has no weights (*.safetensors); put them there, or set task.weights = "random"',
        )

    def load() -> Any:
        return maker.from_pretrained(
            str(folder),
            config=config,
            use_safetensors=True,
            dtype=getattr(torch, options["dtype"]),
            **LOCAL,
        )

    loaded: nn.Module = _read("model", folder, load)
    # It comes in evaluation mode.
    return loaded.train()


def _fresh_config(options: Mapping[str, Any], tokenizer: Any, head: Mapping[str, Any]) -> Any:
    """Config of ``task.architecture``. Raises ConfigError for a name that it does not have."""
    auto, name = packages.transformers().AutoConfig, options["architecture"]
    try:
        known = auto.for_model(name)
    except ValueError as exc:
        from_ids = packages.transformers().models.auto.configuration_auto.CONFIG_MAPPING_NAMES
        raise ConfigError(
            "task.architecture",
            f"{name!r} is no model type of transformers{nearest(name, from_ids)}",
            public="is no model type of transformers",
        ) from exc
    sizes = dict(options["architecture_options"])
    for key in sizes:
        if not hasattr(known, key):
            fields = [one for one in known.to_dict() if not one.startswith("_")]
            raise ConfigError(
                f"task.architecture_options.{key}",
                f"{name} has no such field{nearest(key, fields)}",
                public="the architecture has no such field",
            )
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "use_cache": False,
    }
    try:
        return auto.for_model(name, **{**tokens, **head, **sizes})
    except (TypeError, ValueError, packages.field_error()) as exc:
        raise ConfigError(
            "task.architecture_options",
            f"{name} does not take them: {' '.join(str(exc).split())[:200]}",
            public=f"the fields do not make a config of {name}",
        ) from exc


def _check_length(config: Any, options: Mapping[str, Any]) -> None:
    most = getattr(config, "max_position_embeddings", None)
    if isinstance(most, int) and 0 < most < options["max_tokens"]:
        raise ConfigError(
            "task.max_tokens",
            f"{options['max_tokens']} is more than the model's {most} positions; lower it",
            public=True,
        )


def _read(option: str, folder: Path, load: Any) -> Any:
    """Read a file of a model's folder. Raises DataError: the text of these packages quotes the path."""
    try:
        return load()
    except (OSError, ValueError, KeyError, RuntimeError, packages.field_error()) as exc:
        if _names_code(folder):
            what = (
                "cannot be read as it is a model of Python code of its own (auto_map in its config), which is not "
                "run; take one that transformers has"
            )
            raise DataError(
                str(folder), f"{what} (task.{option})", public=f"task.{option}: its folder {what}"
            ) from exc
        first = next(iter(str(exc).strip().splitlines()), type(exc).__name__)
        raise DataError(
            str(folder),
            f"cannot be read ({first[:300]}); it must be what save_pretrained writes (task.{option})",
            public=f"task.{option}: its folder cannot be read; it must be what save_pretrained writes",
        ) from exc


def _names_code(folder: Path) -> bool:
    """Whether a folder's configs name code that has to be run (``trust_remote_code``)."""
    for name in ("config.json", "tokenizer_config.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict) and "auto_map" in found:
            return True
    return False
