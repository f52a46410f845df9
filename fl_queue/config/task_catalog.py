"""
The built-in tasks: their names, where their class is, and the options they take.

Kept apart from ``fl_queue.tasks`` so that a config can be checked without importing torch.
A user's own task (``module:name``) is not here: its options are checked by the task itself,
on the machine that has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fl_queue.common import data_folder
from fl_queue.common.options import Option, check_travels, unknown_key
from fl_queue.config import image_options, table_options, text_options
from fl_queue.config.analysis_catalog import ANALYSES


@dataclass(frozen=True)
class TaskEntry:
    """
    A built-in task.

    Args:
        target: ``module:Class``.
        doc: One line for users.
        options: What ``[task]`` may hold.
        classes: How many classes there are; 0 when that depends on the options or the data.
        excerpt: Training images of it that are shipped; 0 for other data.
        skews: Whether it applies feature skew (``data.noise``, ``data.rotation``).
        decides: The option without which each site's data decide what the model is about.
        parameters: Of its model; 0 when that depends on options or data.
        check: Raises ConfigError for options that contradict each other.
        metrics: Names and directions of its metrics beside the loss; empty: those of classes.
        metrics_of: Those of a run with such options; None: ``metrics``.
    """

    target: str
    doc: str
    options: dict[str, Option]
    classes: int = 0
    excerpt: int = 0
    skews: bool = False
    decides: str = ""
    parameters: int = 0
    check: Callable[[Mapping[str, Any]], None] = lambda options: None
    metrics: Mapping[str, str] = field(default_factory=dict)
    metrics_of: Callable[[Mapping[str, Any]], Mapping[str, str]] | None = None

    def metrics_in(self, options: Mapping[str, Any]) -> Mapping[str, str]:
        """Names and directions of the metrics of a run with these options; empty: those of classes."""
        return self.metrics if self.metrics_of is None else self.metrics_of(options)


def _range_problem(values: tuple[float, ...]) -> str | None:
    if not values or (len(values) == 2 and values[0] != values[1]):
        return None
    return "is not two different numbers: the value of black, and that of white"


def _colour_problem(values: tuple[int, ...]) -> str | None:
    return (
        None
        if len(values) in (1, 3)
        else "is neither one number (grey) nor three (red, green, blue)"
    )


def _window_problem(value: str) -> str | None:
    parts = value.split(",")
    if value in ("file", "none") or (
        len(parts) == 2 and all(map(_is_number, parts)) and float(parts[1]) > 0
    ):
        return None
    return f'{value!r} is not "file", "none", or centre and width, such as "-600,1500"'


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _slice_problem(value: str) -> str | None:
    plane, _, which = value.partition(":")
    is_known = plane in ("axial", "coronal", "sagittal") and (
        which == "middle" or which.isdecimal()
    )
    if not value or is_known:
        return None
    return f'{value!r} is not axial, coronal or sagittal with a number or middle, such as "axial:middle"'


_MODELS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "densenet121",
)

TASKS: dict[str, TaskEntry] = {
    "mnist-3v7": TaskEntry(
        "fl_queue.tasks.mnist:ThreesAndSevens",
        "threes against sevens, one linear layer 784 -> 1",
        {},
        classes=2,
        excerpt=2000,
        skews=True,
        parameters=785,
    ),
    "mnist-2nn": TaskEntry(
        "fl_queue.tasks.mnist:TwoLayerPerceptron",
        "ten digits, the perceptron 784-200-200-10 (199,210 parameters)",
        {},
        classes=10,
        excerpt=10000,
        skews=True,
        parameters=199_210,
    ),
    "mnist-cnn": TaskEntry(
        "fl_queue.tasks.mnist:ConvNet",
        "ten digits, two 5x5 convolutions, 512 units (1,663,370 parameters)",
        {},
        classes=10,
        excerpt=10000,
        skews=True,
        parameters=1_663_370,
    ),
    "image-folder": TaskEntry(
        "fl_queue.tasks.image_folder:ImageFolderTask",
        "any folder of class folders, with a torchvision model",
        {
            "model": Option(
                "str",
                "resnet18",
                "torchvision model by name; it begins with random weights, or with those of model.initial",
                choices=_MODELS,
            ),
            "classes": Option(
                "str", "", "class folder names, comma separated, the same for all sites"
            ),
            "image_size": Option(
                "int", 64, "side of the square the images are resized to, pixels", low=8, high=1024
            ),
            "channels": Option("int", 3, "1 grey, 3 colour", low=1, high=3),
            "bits": Option(
                "int",
                0,
                "bits of grey images that are stored in 16, such as 12; 0: as each file has it",
                low=0,
                high=16,
                newer=True,
            ),
            "range": Option(
                "floats",
                (),
                "values of black and white in NIfTI and in images of 32 bits or floating-point numbers; empty: such images are refused unless they are in [0, 1]",
                check=_range_problem,
                newer=True,
            ),
            "background": Option(
                "ints",
                (0,),
                "behind transparent pixels: grey, or red, green, blue, each 0 to 255",
                low=0,
                high=255,
                check=_colour_problem,
                newer=True,
            ),
            "frame": Option(
                "int",
                -1,
                "frame of a file that has several, from 0; -1: such a file is refused",
                low=-1,
                newer=True,
            ),
            "augment": Option(
                "strs",
                (),
                "random changes of training images, in this order: "
                + ", ".join(image_options.AUGMENTATIONS),
                check=image_options.augment_problem,
                newer=True,
            ),
            "class_weights": Option(
                "str",
                "",
                'weights of the classes in the training loss: "balanced" by the site\'s own numbers, or one for each, "1,2.5"; empty: equal',
                check=image_options.class_weights_problem,
                newer=True,
            ),
            "normalise": Option(
                "str",
                "none",
                "imagenet: the model begins with the normalisation that torchvision's weights need (names of tensors begin with net.); none: pixels as they are",
                choices=("none", "imagenet"),
                newer=True,
            ),
            "unreadable": Option(
                "str",
                "refuse",
                "an image that cannot be read, or a link that cannot be followed: an error (refuse), or left out and counted (skip)",
                choices=("refuse", "skip"),
                newer=True,
            ),
            "window": Option(
                "str",
                "file",
                'DICOM: the window of each file (file), "centre,width", or none, with task.range',
                check=_window_problem,
                newer=True,
            ),
            "slice": Option(
                "str",
                "",
                'NIfTI: the slice of each volume, such as "axial:middle" or "coronal:40"; needs task.range',
                check=_slice_problem,
                newer=True,
            ),
        },
        skews=True,
        decides="classes",
    ),
    "csv": TaskEntry(
        "fl_queue.tasks.csv_table:CsvTask",
        "a table with a label column: logistic regression or a small perceptron",
        {
            "file": Option(
                "str", "train.csv", "file name in the data folder", check=data_folder.problem
            ),
            "test_file": Option(
                "str",
                "test.csv",
                "the evaluator's file name in its data folder",
                check=data_folder.problem,
            ),
            "label": Option("str", "label", "name of the label column"),
            "features": Option(
                "str", "", "feature columns, comma separated; the same for all sites"
            ),
            "owner": Option(
                "str",
                "",
                "the column that names whose each row is, for the natural partition and for what is held out",
            ),
            "classes": Option(
                "str", "0,1", "label values, comma separated, the same for all sites"
            ),
            "means": Option(
                "floats", (), "mean of each feature; empty: from the first round's clients"
            ),
            "stds": Option(
                "floats", (), "standard deviation of each feature; empty: as means", above=0
            ),
            "hidden": Option("ints", (), "hidden layer sizes; empty: logistic regression", low=1),
        },
        decides="features",
    ),
    "table": TaskEntry(
        "fl_queue.tasks.table:TableTask",
        "a table as it is: numbers, categories, dates, missing values; CSV, Parquet, Arrow (extra tables)",
        table_options.TABLE,
        check=table_options.check,
        metrics={
            name: way for found in table_options.OBJECTIVES.values() for name, way in found.items()
        },
        metrics_of=table_options.metrics_of,
    ),
    "text-classification": TaskEntry(
        "fl_queue.tasks.hf.text_classification:TextClassification",
        "texts by class, with a transformers model, whole or by LoRA (extra hf)",
        text_options.CLASSIFICATION,
        check=text_options.check,
    ),
    "causal-lm": TaskEntry(
        "fl_queue.tasks.hf.causal_lm:CausalLanguageModel",
        "language modelling with a causal transformers model, whole or by LoRA (extra hf)",
        text_options.CAUSAL_LM,
        check=text_options.check,
        metrics={"perplexity": "min", "token_accuracy": "max"},
    ),
}


#: A name for all tasks of MNIST, for who allows tasks.
MNIST = "mnist"


def built_in_family(name: str) -> str:
    """The name under which a built-in task may be allowed together with its like; else its own."""
    return MNIST if name.startswith(f"{MNIST}-") else name


#: Begins the name of a task that is a Flower client.
FLOWER = "flower:"
#: The option of such a task that names what makes its model.
FLOWER_MODEL = "flower_model"


def flower_client(task: str) -> str:
    """``module:attribute`` of a task that is a Flower client; empty for any other."""
    code = task.removeprefix(FLOWER)
    # A module of that name may exist: ``flower:Roses`` is a task like any other.
    return code if code != task and ":" in code else ""


def own_code(task: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """
    Names that a worker must allow for a task, each as ``module:name``; nothing for a built-in one.

    Args:
        task: ``run.task``.
        options: The ``[task]`` table.
    """
    client = flower_client(task)
    if not client:
        return (task,) if ":" in task else ()
    return (client, str(options[FLOWER_MODEL])) if FLOWER_MODEL in options else (client,)


def task_options(task: str, given: dict[str, Any]) -> dict[str, Any]:
    """
    The ``[task]`` table, complete and checked; as it is for a user's own task.

    Raises:
        ConfigError: Unknown task, unknown option, or a value that cannot be used.
    """
    if ":" in task:
        for key, value in given.items():
            check_travels(f"task.{key}", value)
        return dict(given)
    entry = TASKS.get(task) or ANALYSES.get(task)
    if entry is None:
        known = Option("str", "", "", choices=(*TASKS, *ANALYSES))
        known.parse("run.task", task)
        raise AssertionError("unreachable: parse refuses a name that is not a choice")
    for key in given:
        if key not in entry.options:
            raise unknown_key(f"task.{key}", [f"task.{name}" for name in entry.options])
    complete = {
        key: field.parse(f"task.{key}", given[key]) if key in given else field.default
        for key, field in entry.options.items()
    }
    entry.check(complete)
    return complete


def recorded_options(task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The ``[task]`` table as it is recorded with a run: without newer options at their defaults."""
    entry = TASKS.get(task) or ANALYSES.get(task)
    known = entry.options if entry is not None else {}
    return {
        key: value
        for key, value in options.items()
        if not (key in known and known[key].newer and value == known[key].default)
    }


def columns_of(task: str, options: Mapping[str, Any]) -> list[str] | None:
    """
    Names of the columns that a built-in task of tables reads, as its config lists them.

    Returns:
        None where it reads all columns of a file; none of a task that reads no table.
    """
    if task not in ("csv", "table"):
        return []
    if not options["features"]:
        return None
    target = [options["label"]] if task == "csv" else table_options.names_of(options["target"])
    return [
        *table_options.names_of(options["features"]),
        *target,
        *table_options.names_of(options["owner"]),
    ]


def may_differ(task: str, options: Mapping[str, Any]) -> bool:
    """True if sites may differ in the task's classes or features, which the config leaves open."""
    if task in ANALYSES:
        return False
    entry = TASKS.get(task)
    return entry is None or bool(entry.decides and not options[entry.decides])
