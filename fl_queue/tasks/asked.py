"""
A task's methods, called: what they return is looked at right there, and an error names the method.

A forgotten ``return`` would else come up somewhere else, as an error about something else. Imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.utils.data import Subset

from fl_queue import names
from fl_queue.errors import ConfigError, DataError
from fl_queue.records import Sums
from fl_queue.sampling import seed_for
from fl_queue.sgd import Samples, as_built, part_of, size_of
from fl_queue.tasks import ClientContext, ClientData, OnEpoch, Task
from fl_queue.told import class_name

#: Marks a parameter that a task has handed out.
_BUILT = "_flq_built"
_SUMS = 'a table of sums, such as {"num_examples": 100, "loss_sum": 12.5}'


def model(task: Task) -> nn.Module:
    """
    A freshly built model.

    Raises:
        ConfigError: ``build_model`` returned something else; so for the others, by their names.
    """
    found = task.build_model()
    if not isinstance(found, nn.Module):
        raise _wrong(task, "build_model", found, "a torch.nn.Module")
    trained = [one for one in found.parameters() if one.requires_grad]
    if any(getattr(one, _BUILT, False) for one in trained):
        raise ConfigError(
            "run.task",
            f"build_model() of {task.config.run['task']} returned parameters that it had returned before; "
            "build a new model in each call: a personal model and the round's would be one",
            public=True,
        )
    for one in trained:
        setattr(one, _BUILT, True)
    return as_built(found)


def data(task: Task, context: ClientContext) -> ClientData:
    """A client's data."""
    found = task.client_data(context)
    if not isinstance(found, ClientData):
        raise _wrong(task, "client_data", found, "a ClientData(train, validation)")
    for part in ("train", "validation"):
        samples = getattr(found, part)
        if not hasattr(type(samples), "__len__"):
            wanted = "a data set with a length (an empty one: Subset(train, []))"
            raise _wrong(task, "client_data", samples, wanted, f" as {part}")
    return found


def given_data(task: Task, context: ClientContext) -> ClientData:
    """
    A client's data: its training part no larger than the site wants, and the same in each round.

    A validation part of fewer examples than the site tells metrics of is empty.

    Raises:
        ConfigError: The training part has fewer examples than the site trains with.
    """
    found = data(task, context)
    if _is_few(found.train, context):
        raise too_few(context)
    if _is_few(found.validation, context):
        found = replace(found, validation=Subset(found.validation, []))
    if not context.max_examples:
        return found
    seed = seed_for(context.seed, context.run, context.client, "max_examples")
    return replace(found, train=part_of(found.train, context.max_examples, seed))


def too_few(context: ClientContext) -> ConfigError:
    """Why a site does not train; without the number of its examples."""
    return ConfigError(
        "--min-examples",
        f"this client has fewer than the {context.min_examples} examples that its site trains with; see "
        "data.shares, data.train_per_class and data.validation_fraction, or have the site lower it",
        public=True,
    )


def _is_few(dataset: Samples, context: ClientContext) -> bool:
    # A Flower client counts its examples itself, when it is asked to train.
    is_counted = not getattr(dataset, "counts_itself", False)
    return is_counted and 0 < size_of(dataset) < context.min_examples


def training_data(task: Task, context: ClientContext) -> ClientData:
    """
    A client's data, of which there is something to train with.

    Raises:
        DataError: There is not.
    """
    found = given_data(task, context)
    if size_of(found.train) == 0:
        raise DataError(
            context.data_dir or "training data",
            f"client {context.client} has no training samples; check data.dir and data.partition",
            public=True,
        )
    return found


def trained(
    task: Task, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
) -> Sums:
    """Train a model; sums of the training."""
    return _sums(task, "train", task.train(model, data, context, on_epoch))


def evaluated(task: Task, model: nn.Module, dataset: Samples, context: ClientContext) -> Sums:
    """Sums of a model's metrics on a data set."""
    return _sums(task, "evaluate", task.evaluate(model, dataset, context))


def _sums(task: Task, method: str, found: Any) -> Sums:
    if not isinstance(found, Mapping):
        raise _wrong(task, method, found, _SUMS)
    for key, value in found.items():
        if not isinstance(key, str):
            raise _wrong(task, method, key, "text", " as a name of its sums")
        # The aggregator refuses it, too, with the whole update.
        if not names.is_metric(key.removesuffix("_sum")):
            what = f"{method}() of {task.config.run['task']} returned a sum"
            rule = "begin it with a letter and use letters, digits, _, . and -, at most 64"
            raise ConfigError(
                "run.task",
                f"{what} {key[:80]!r}, whose name cannot be used; {rule}",
                public=f"{what} whose name cannot be used; {rule}",
            )
        # A bool is an int to isinstance; numpy's and torch's numbers do not travel.
        if isinstance(value, bool) or not isinstance(value, (int, float, list)):
            wanted = "a number (float(...) or int(...) makes one)"
            raise _wrong(task, method, value, wanted, f" as {key[:80]}")
        if isinstance(value, list) and not _is_numbers(value):
            raise _wrong(task, method, value, "one of numbers alone", f" as {key[:80]}")
    return found


def _is_numbers(value: list[Any]) -> bool:
    """Whether lists hold nothing but numbers: a text among them, a label say, would leave the site."""
    return all(
        _is_numbers(item) if isinstance(item, list) else isinstance(item, (int, float))
        for item in value
    )


def _wrong(task: Task, method: str, found: Any, wanted: str, where: str = "") -> ConfigError:
    what = "None" if found is None else f"a {class_name(type(found))}"
    missing = "; is there a `return`?" if found is None and not where else ""
    name = task.config.run["task"]
    return ConfigError(
        "run.task",
        f"{method}() of {name} returned {what}{where}, not {wanted}{missing}",
        # Without what it is called: the key of a table may be anything.
        public=f"{method}() of {name} returned {what}, not {wanted}{missing}",
    )
