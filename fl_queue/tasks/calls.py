"""
A task's methods, called: what they return is looked at right there, and an error names the method.

A forgotten ``return`` would else come up somewhere else, as an error about something else. Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.utils.data import Subset

from fl_queue import metrics
from fl_queue.common.seeding import seed_for
from fl_queue.config.task_catalog import TASKS
from fl_queue.errors import ConfigError, DataError, MessageError, PolicyRefusal
from fl_queue.protocol import identifiers, site_facts
from fl_queue.protocol.records import Sums
from fl_queue.tasks import plain_numbers
from fl_queue.tasks.base import ClientData, OnEpoch, Task, declared_of, overridden
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.error_disclosure import class_name
from fl_queue.training import memory
from fl_queue.training.evaluation import EvaluationOptions, evaluate
from fl_queue.training.metric_kinds import own_sums
from fl_queue.training.row_floor import check_batch, check_pull
from fl_queue.training.sgd import Samples, as_built, part_of, size_of
from fl_queue.training.step_hook import LocalTraining

#: Marks a parameter that a task has handed out.
_BUILT = "_flq_built"
#: Metrics of outputs and targets that turn out to be of classes, and of all.
DETECTED = ("accuracy", "auc", "f1", "loss")
_SUMS = 'a table of sums, such as {"num_examples": 100, "loss_sum": 12.5}'


def model(task: Task) -> nn.Module:
    """
    A freshly built model.

    Raises:
        ConfigError: ``build_model`` returned something else; so for the others, by their names.
    """
    with memory.naming("the model"):
        found = task.build_model()
    if not isinstance(found, nn.Module):
        raise _wrong(task, "build_model", found, "a torch.nn.Module")
    trained = [one for one in found.parameters() if one.requires_grad]
    if any(getattr(one, _BUILT, False) for one in trained):
        raise ConfigError(
            "run.task",
            f"build_model() of {task.config.run.task} returned parameters that it had returned before; "
            "build a new model in each call: a personal model and the round's would be one",
            public=True,
        )
    for one in trained:
        setattr(one, _BUILT, True)
    return as_built(found)


def data(task: Task, context: ClientContext) -> ClientData:
    """A client's data."""
    with memory.naming("the data"):
        found = task.client_data(context)
    if not isinstance(found, ClientData):
        raise _wrong(task, "client_data", found, "a ClientData(train, validation)")
    for part in ("train", "validation"):
        samples = getattr(found, part)
        if not hasattr(type(samples), "__len__"):
            wanted = "a data set with a length (an empty one: Subset(train, []))"
            raise _wrong(task, "client_data", samples, wanted, f" as {part}")
    return found


def given_data(task: Task, context: ClientContext, found: ClientData | None = None) -> ClientData:
    """
    A client's data: its training part no larger than the site wants, and the same in each round.

    A validation part that is too small for the site's ``min_examples`` is empty.

    Args:
        found: As the task has read them; None: they are read now.

    Raises:
        ConfigError, PolicyRefusal: The training part has fewer examples than the site trains with.
    """
    found = data(task, context) if found is None else found
    if _is_few(found.train, max(context.min_examples, context.min_training)):
        raise too_few(context)
    if _is_few(found.validation, context.min_examples):
        found = replace(found, validation=Subset(found.validation, []))
    if not context.max_examples:
        return found
    seed = seed_for(context.seed, context.run, context.client, "max_examples")
    return replace(found, train=part_of(found.train, context.max_examples, seed))


def file_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts of a site's files that leave it: under known words only, as another may be the site's secret."""
    return {kind: int(counts[kind]) for kind in site_facts.FILE_KINDS if counts.get(kind)}


def too_few(context: ClientContext) -> ConfigError | PolicyRefusal:
    """Why a site does not train; without the number of its examples."""
    if context.min_training > context.min_examples:
        return PolicyRefusal("the training part has fewer examples than its min_rows")
    return ConfigError(
        "--min-examples",
        f"this client has fewer than the {context.min_examples} examples that its site trains with; see "
        "data.shares, data.train_per_class and data.validation_fraction, or have the site lower it",
        public=True,
    )


def _is_few(dataset: Samples, least: int) -> bool:
    # A Flower client counts its examples itself, when it is asked to train.
    is_counted = not getattr(dataset, "counts_itself", False)
    return is_counted and 0 < size_of(dataset) < least


def training_data(task: Task, context: ClientContext, read: ClientData | None = None) -> ClientData:
    """
    A client's data, of which there is something to train with.

    Args:
        read: As the task has read them; None: they are read now.

    Raises:
        DataError: There is not.
        ConfigError: The config asks for steps that the site does not make.
    """
    train = task.config.train
    check_batch(context.min_batch, context.batch_size, train.accumulate)
    if context.min_batch > 1:
        check_pull(context.learning_rate, train.weight_decay, 0.0)
    found = given_data(task, context, read)
    if size_of(found.train) == 0:
        raise DataError(
            context.data_dir or "training data",
            f"client {context.client} has no training samples; check data.dir and data.partition",
            public=True,
        )
    return found


def check_devices(task: Task, context: ClientContext) -> None:
    """
    Refuse several devices for a task whose training they cannot share.

    Raises:
        ConfigError: It trains by a loop of its own.
    """
    if context.ranks is not None and overridden(task, "train"):
        raise ConfigError(
            "--devices",
            f"{task.config.run.task} trains by a loop of its own, of which several devices cannot share the batches; "
            "have the site use --device, or let the task train by the default loop (train.optimizer, loss, collate)",
            public=True,
        )


def trained(
    task: Task, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
) -> Sums:
    """Train a model; sums of the training. Raises ConfigError: as of ``check_devices``."""
    check_devices(task, context)

    def report(epoch: int, epochs: int, found: Mapping[str, float]) -> None:
        on_epoch(_counted(task, epoch), _counted(task, epochs), _finished(task, found))

    made = LocalTraining(model, context.rule, lambda: task.sgd_options(context))
    with memory.naming("the training"), made.watching() as training:
        found = task.train(model, data, replace(context, training=training), report)
        training.finish()
    return _sums(task, "train", found)


def evaluated(task: Task, model: nn.Module, dataset: Samples, context: ClientContext) -> Sums:
    """Sums of a model's metrics on a data set."""
    with memory.naming("an evaluation"):
        found = task.evaluate(model, dataset, context)
    return _sums(task, "evaluate", found)


def metric_names(task: Task) -> list[str]:
    """
    The metrics that an own task's evaluation has, as a run records them with version 0.

    ``dice:max`` for those that it declares; ``accuracy`` for those that it may have, where it declares none and
    is evaluated by the default. Empty where the config shows them, or only the task's code does.
    """
    if task.config.run.task in TASKS:
        return []
    found = declared_of(task)
    if found is not None:
        return found.to_record()
    return [*DETECTED] if overridden(task, "evaluate") is None else []


def training_losses(task: Task, model: nn.Module, data: ClientData, context: ClientContext) -> Sums:
    """
    Sums of a model's loss on the training data, as the training minimises it.

    By the training loss of a task that has its own, where the default loop trains with it.
    """
    if not overridden(task, "training_loss") or overridden(task, "train"):
        return evaluated(task, model, data.train, context)
    found = evaluate(
        model,
        data.train,
        task.training_loss(data, context),
        context.device,
        context.loader_workers,
        context.batch_size,
        options=EvaluationOptions(
            hooks=replace(task.hooks, own_sums=None),
            batch_size=task.config.train.evaluation_batch,
            ranks=context.ranks,
        ),
    )
    return _sums(task, "evaluate", found)


def described(task: Task, data: ClientData) -> Mapping[str, str | list[Any]]:
    """The facts that must be the same at all sites: texts, and lists of names."""
    found: Any = task.describe(data)
    wanted = 'a table of names, such as {"classes": ["cat", "dog"]}'
    if not isinstance(found, Mapping):
        raise _wrong(task, "describe", found, wanted)
    plain = {}
    for key, value in found.items():
        if not isinstance(key, str):
            raise _wrong(task, "describe", key, "text", " as a name")
        names_of = plain_numbers.names(value)
        if not isinstance(names_of, Iterable):
            raise _wrong(task, "describe", value, "a text or a list of names", f" as {key[:80]}")
        plain[key] = names_of if isinstance(names_of, str) else list(names_of)
    return plain


def _counted(task: Task, value: Any) -> int:
    """The number of an epoch, or how many there are, as Python's."""
    count = plain_numbers.number(value)
    if type(count) is not int or count < 1:
        raise ConfigError(
            "run.task",
            f"train() of {task.config.run.task} calls on_epoch with an epoch, or a number of epochs, that is no "
            "whole number from 1; call on_epoch(epoch, epochs, metrics) with the first epoch as 1",
            public=True,
        )
    return count


def _finished(task: Task, found: Any) -> dict[str, float]:
    """Metrics of an epoch as Python's numbers; what is not finite has no place in an event."""
    if not isinstance(found, Mapping):
        raise _wrong(task, "train", found, "a table of metrics", " for on_epoch")
    plain = {name: plain_numbers.number(value) for name, value in found.items()}
    for name, value in plain.items():
        if not isinstance(value, (int, float)):
            raise _wrong(task, "train", value, "a number", f" for on_epoch as {str(name)[:80]}")
    return {name: value for name, value in plain.items() if plain_numbers.is_finite(value)}


def _sums(task: Task, method: str, found: Any) -> Sums:
    """
    Sums as they travel: numbers of numpy's and torch's as Python's, and what the aggregator would take.

    A sum that is not finite is left out: the rest of the update is as good without it.
    """
    if not isinstance(found, Mapping):
        raise _wrong(task, method, found, _SUMS)
    plain: dict[str, Any] = {}
    for key, value in _with_own(task, method, found).items():
        if not isinstance(key, str):
            raise _wrong(task, method, key, "text", " as a name of its sums")
        # A member of an enum may be text, too.
        name = str.__str__(key)
        _check_name(task, method, name)
        number = _plain(task, method, name, value)
        if name.endswith("_sum") and not isinstance(number, list) and not metrics.is_sum(number):
            plain_numbers.say_left_out(f"{method}() of {task.config.run.task}", name)
            continue
        if metrics.is_form(name) and not _are_finite(number):
            plain_numbers.say_left_out(f"{method}() of {task.config.run.task}", name)
            continue
        plain[name] = number
    try:
        metrics.check(plain)
    except MessageError as exc:
        what = f"{method}() of {task.config.run.task} returned"
        rule = "the keys are listed in fl_queue/metrics/__init__.py"
        raise ConfigError(
            "run.task",
            f"{what} what no run accepts: {exc.reason}; {rule}",
            public=f"{what} sums that no run accepts; {rule}",
        ) from exc
    return plain


def _with_own(task: Task, method: str, found: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Sums in which those that the task's own metrics name stand under the metrics' keys."""
    declared = declared_of(task) if method == "evaluate" else None
    own = declared.own if declared is not None else ()
    names = {name for one in own for name in (one.numerator, one.denominator)} & found.keys()
    if not names:
        return found
    samples = plain_numbers.number(found.get("num_examples", 0))
    made = own_sums({name: found[name] for name in names}, own, samples)
    return {key: value for key, value in found.items() if key not in names} | made


def _are_finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_are_finite, value))
    return plain_numbers.is_finite(value)


def _check_name(task: Task, method: str, key: str) -> None:
    """Raises ConfigError for a name with which the aggregator would refuse the whole update."""
    what = f"{method}() of {task.config.run.task} returned"
    if not identifiers.is_metric(key.removesuffix("_sum")):
        rule = "begin it with a letter and use letters, digits, _, . and -, at most 64"
        raise ConfigError(
            "run.task",
            f"{what} a sum {key[:80]!r}, whose name cannot be used; {rule}",
            public=f"{what} a sum whose name cannot be used; {rule}",
        )
    if not key.endswith(("_sum", "num_examples")) and not metrics.is_table(key):
        rule = (
            "means do not add up; return the sum over the examples, under a name that ends in _sum"
        )
        raise ConfigError(
            "run.task",
            f"{what} {key[:80]}, which is no sum: {rule} ({key[:80]}_sum)",
            public=f"{what} what is no sum: {rule}",
        )


def _plain(task: Task, method: str, key: str, value: Any) -> Any:
    """One sum, as a number or as lists of numbers."""
    number = plain_numbers.table(value) if metrics.is_table(key) else plain_numbers.number(value)
    if isinstance(number, list):
        if not _is_numbers(number):
            raise _wrong(task, method, number, "one of numbers alone", f" as {key[:80]}")
        return number
    # A bool is an int to isinstance.
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        wanted = "a number (float(...) or int(...) makes one)"
        raise _wrong(task, method, value, wanted, f" as {key[:80]}")
    # A header takes integers of 64 bits; a float has room for more.
    is_short = not isinstance(number, int) or -(2**63) <= number < 2**64
    return number if is_short or not plain_numbers.is_finite(number) else float(number)


def _is_numbers(value: list[Any]) -> bool:
    """Whether lists hold nothing but numbers: a text among them, such as a label, would leave the site."""
    return plain_numbers.are_plain(value) or all(
        _is_numbers(item) if isinstance(item, list) else isinstance(item, (int, float))
        for item in value
    )


def _wrong(task: Task, method: str, found: Any, wanted: str, where: str = "") -> ConfigError:
    what = "None" if found is None else f"a {class_name(type(found))}"
    missing = "; is there a `return`?" if found is None and not where else ""
    name = task.config.run.task
    return ConfigError(
        "run.task",
        f"{method}() of {name} returned {what}{where}, not {wanted}{missing}",
        # Without what it is called: the key of a table may be anything.
        public=f"{method}() of {name} returned {what}, not {wanted}{missing}",
    )
