"""Options of the built-in tasks on texts (transformers models). No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_queue.common import data_folder
from fl_queue.common.options import Option, OptionTable
from fl_queue.errors import ConfigError


def _name_problem(name: str) -> str:
    """Problem of a name that may be empty."""
    return data_folder.problem(name) if name else ""


_MODEL = {
    "model": Option(
        "str",
        "",
        "folder in the data folder with a model as save_pretrained writes it, the same for all sites",
        check=_name_problem,
    ),
    "weights": Option(
        "str",
        "file",
        "of task.model: file (*.safetensors), or random (only its config.json is used)",
        choices=("file", "random"),
    ),
    "architecture": Option(
        "str",
        "",
        "instead of task.model: a model type of transformers, such as bert or gpt2, with random weights",
    ),
    "architecture_options": Option(
        "table",
        OptionTable(),
        "fields of the architecture's config, such as { hidden_size = 64 }",
    ),
    "dtype": Option(
        "str",
        "float32",
        "of the frozen model, with lora_rank: float32, or bfloat16 (half the memory and bytes; what is trained stays float32)",
        choices=("float32", "bfloat16"),
    ),
    "tokenizer": Option(
        "str",
        "",
        "folder in the data folder with a tokenizer, or bytes (needs no file); empty: that of task.model, else bytes",
        check=_name_problem,
    ),
    "max_tokens": Option(
        "int", 128, "longest sample, in tokens", low=2, high=1_000_000
    ),
    "lora_rank": Option(
        "int", 0, "rank of LoRA's matrices, which alone are trained; 0: the whole model", low=0, high=4096
    ),
    "lora_alpha": Option(
        "float", 16.0, "LoRA's matrices are scaled by lora_alpha / lora_rank; above 0", above=0
    ),
    "lora_dropout": Option("float", 0.0, "dropout before LoRA's matrices, 0 to 0.9", low=0, high=0.9),
    "lora_targets": Option(
        "strs",
        (),
        "names of the layers with LoRA, or all-linear; empty: those that peft knows for the architecture",
    ),
}  # fmt: skip


def _files(suffixes: str) -> dict[str, Option]:
    return {
        "file": Option(
            "str",
            "train.jsonl",
            f"name of a file in the data folder: {suffixes}; or of a folder of .parquet files",
            check=data_folder.problem,
        ),
        "test_file": Option(
            "str",
            "test.jsonl",
            "the evaluator's file name in its data folder",
            check=data_folder.problem,
        ),
        "text": Option("str", "text", "name of the field or column with the text"),
    }


_OWNER = {
    "owner": Option(
        "str",
        "",
        "the field or column that names whose each text is, for the natural partition and for what is held out",
    )
}

CLASSIFICATION = {
    **_MODEL,
    **_files("JSON lines (.jsonl), .csv or .parquet"),
    "label": Option("str", "label", "name of the field or column with the label"),
    **_OWNER,
    "classes": Option(
        "str", "0,1", "label values, comma separated, the same for all sites"
    ),
}  # fmt: skip

CAUSAL_LM = {
    **_MODEL,
    **_files("JSON lines (.jsonl), .csv, .parquet, or .txt with a text in each line"),
    **_OWNER,
}


def check(options: Mapping[str, Any]) -> None:
    """
    Refuse options that contradict each other.

    Raises:
        ConfigError: Names the option to change.
    """
    model, architecture = options["model"], options["architecture"]
    if bool(model) == bool(architecture):
        raise ConfigError(
            "task.model",
            "and task.architecture are both given; leave one empty"
            if model
            else "is empty; name a folder in the data folder, or a task.architecture for random weights",
            public=True,
        )
    if options["architecture_options"] and not architecture:
        raise ConfigError(
            "task.architecture_options",
            "is for task.architecture; a folder of task.model has its own config.json",
            public=True,
        )
    if not options["lora_rank"] and (options["lora_targets"] or options["lora_dropout"]):
        raise ConfigError(
            "task.lora_rank", "is 0, so the other lora_ options have no effect; set it", public=True
        )
    if options["dtype"] != "float32" and not options["lora_rank"]:
        raise ConfigError(
            "task.dtype",
            f"{options['dtype']} is for the frozen model of LoRA; set it to float32, or task.lora_rank "
            "(train.precision has the whole model's forward passes in bfloat16)",
            public=True,
        )
    listed = options.get("classes")
    if listed is not None:
        names = names_of(listed)
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigError(
                "task.classes",
                f"{', '.join(names)}: two or more different classes are needed",
                public=True,
            )


def names_of(text: str) -> list[str]:
    """Names of a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]
