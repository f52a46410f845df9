"""
The strategy's terms in a training loop of the user's own, by a hook on torch's optimizers.

A plain loop, ``transformers.Trainer``, Accelerate and Lightning all end in ``step`` of an optimizer of torch.
There the gradients are known, unscaled and clipped, and a step that a ``GradScaler`` leaves out is not made. Imports
torch. No Redis here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from fl_queue.errors import ConfigError
from fl_queue.training import stopping
from fl_queue.training.local_rule import LocalRule
from fl_queue.training.optimizers import is_stepped_here
from fl_queue.training.own_loop import OwnLoop
from fl_queue.training.sample_sets import Samples
from fl_queue.training.sgd import SgdOptions

#: Names of parameters' classes that hold parts of several parameters, or a part of one.
_SHARDED = ("FlatParameter", "DTensor")
#: What a hook of torch gets and may replace: positional and named arguments.
_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class LocalTraining:
    """
    One training of a model by a task's code: what a strategy needs of its steps.

    While it is ``watching``, each step of an optimizer of torch that holds parameters of the model is counted, after
    the strategy's terms have been added to the gradients. Steps by ``local_sgd``, which adds them itself, are passed
    over, and with them the steps of other optimizers within one of those. For optimizers that are not torch's there are ``add_terms`` and ``count_step``.

    Args:
        model: The model in training.
        rule: The strategy's terms; None: there is nothing to add or to count.
        options: Makes what ``[train]`` and the site decide, when a loop asks for it; None: it cannot ask.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: LocalRule | None,
        options: Callable[[], SgdOptions] | None = None,
    ) -> None:
        self._rule, self._model, self._options = rule, model, options
        self._loop: OwnLoop | None = None
        self._parameters = {one for one in model.parameters() if one.requires_grad}
        #: Optimizer -> how many parameters each of its groups had, and those of the model.
        self._held: dict[Optimizer, tuple[list[int], list[nn.Parameter]]] = {}
        #: The optimizer whose step has begun and not ended.
        self._open: Optimizer | None = None

    @contextmanager
    def watching(self) -> Iterator[LocalTraining]:
        """Hold the hook within this block."""
        handles = [register_optimizer_step_pre_hook(self._before)]
        if self._rule is not None and (self._rule.has_terms or self._rule.only_sgd):
            handles.append(register_optimizer_step_post_hook(self._after))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    @property
    def loop(self) -> OwnLoop:
        """The parts of ``local_sgd`` for a loop of the task's own."""
        if self._loop is None:
            if self._options is None:
                raise _refused("this training has no options of [train]; begin it with a task")
            self._loop = OwnLoop(self._model, self._options(), self._rule)
        return self._loop

    def batches(self, dataset: Samples) -> Iterator[Any]:
        """
        The batches of one epoch, as ``local_sgd`` makes them: in a new random order, collated, on the device.

        Args:
            dataset: Such as ``data.train``.

        Raises:
            ConfigError, DataError: As of ``local_sgd``.
        """
        return self.loop.batches(dataset)

    def optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """
        An optimizer of torch as ``[train]`` has it, with what the client has kept of its state.

        Its groups, options and learning rate are set. A loop that steps it itself clips, accumulates, scales and
        schedules by itself, too; ``step`` does that as ``[train]`` has it.

        Args:
            model: A part of the model; None: all of it.

        Raises:
            ConfigError: An option cannot be used, or ``train.ema`` is set, which follows the steps of ``step``.
        """
        return self.loop.optimizer(self._model if model is None else model)

    def forward(self) -> AbstractContextManager[Any]:
        """Around a forward pass and its loss: computes in ``train.precision``."""
        return self.loop.forward()

    def step(self, loss: Tensor) -> bool:
        """
        Compute the gradients of a batch; at the end of a step, clip, add the strategy's terms, and update.

        By ``[train]``: ``accumulate``, ``clip_norm``, ``precision``, ``schedule``, ``optimizer``. With ``batches``
        around it the bits are those of ``local_sgd``.

        Args:
            loss: The mean of a batch.

        Returns:
            Whether the parameters were to be updated; False within an accumulation.

        Raises:
            ConfigError: A schedule without ``batches``, or several optimizers.
        """
        return self.loop.step(loss)

    def finish(self) -> None:
        """End the training: keep the optimizer's state, and put the mean of the weights in place."""
        if self._loop is not None:
            self._loop.finish()

    def add_terms(self, parameters: Iterable[nn.Parameter] | None = None) -> None:
        """
        Add the strategy's terms to the gradients, before a step of an optimizer that is not torch's.

        Args:
            parameters: Of the model; None: all that are trained.
        """
        if self._rule is not None:
            chosen = list(self._parameters if parameters is None else parameters)
            self._rule.add_terms(chosen)
            self._rule.seen.update(chosen)

    def count_step(
        self, learning_rate: float = 0.0, momentum: float = 0.0, nesterov: bool = False
    ) -> None:
        """
        Count a step of an optimizer that is not torch's.

        Args:
            learning_rate, momentum, nesterov: Of SGD; SCAFFOLD and FedNova need them.

        Raises:
            ConfigError: They are needed and missing.
        """
        if self._rule is None:
            return
        if self._rule.only_sgd and not learning_rate > 0:
            raise _refused(f"{self._rule.only_sgd}; give count_step the learning rate of its step")
        self._rule.count(learning_rate, momentum, nesterov)

    def _before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Arguments | None:
        """
        The hook before a step.

        Args:
            args: The optimizer, and perhaps a closure.

        Raises:
            stopping.NotWanted: The round has ended.
        """
        stopping.check()
        rule = self._rule
        if rule is None or rule.is_in_step:
            return None
        held = self._of_model(optimizer)
        if not held or is_stepped_here(optimizer):
            return None
        if rule.has_terms or rule.only_sgd:
            self._check(optimizer, held, rule)
            self._open = optimizer
        self._count(optimizer, rule)
        if not rule.has_terms:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            rule.add_terms(held)
            return None
        searches = isinstance(optimizer, torch.optim.LBFGS)
        return (args[0],), {**kwargs, "closure": _with_terms(closure, rule, held, searches)}

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if optimizer is self._open:
            self._open = None

    def _of_model(self, optimizer: Optimizer) -> list[nn.Parameter]:
        """The model's parameters that an optimizer holds."""
        counts = [len(group["params"]) for group in optimizer.param_groups]
        known = self._held.get(optimizer)
        if known is None or known[0] != counts:
            every = [one for group in optimizer.param_groups for one in group["params"]]
            known = counts, [one for one in every if one in self._parameters]
            self._held[optimizer] = known
            self._check_whole(optimizer, known[1])
            if self._rule is not None and not is_stepped_here(optimizer):
                self._rule.seen.update(known[1])
        return known[1]

    def _check_whole(self, optimizer: Optimizer, held: list[nn.Parameter]) -> None:
        """Raises ConfigError for an optimizer of parts of parameters; looked at once, as it stays so."""
        rule = self._rule
        if rule is None or not held or not (rule.has_terms or rule.only_sgd):
            return
        name, package = type(optimizer).__name__, type(optimizer).__module__.partition(".")[0]
        if package == "deepspeed" or any(type(one).__name__ in _SHARDED for one in held):
            raise _refused(
                f"{name} holds parts of parameters (DeepSpeed, FSDP); train on one device"
            )

    def _check(self, optimizer: Optimizer, held: list[nn.Parameter], rule: LocalRule) -> None:
        """Raises ConfigError for a step to whose gradients nothing can be added."""
        name = type(optimizer).__name__
        if self._open is not None and self._open is not optimizer:
            outer = type(self._open).__name__
            raise _refused(f"{name} steps within a step of {outer}, so terms would be added twice")
        if getattr(optimizer, "grad_scale", None) is not None or (
            getattr(optimizer, "found_inf", None) is not None
        ):
            raise _refused(
                f"{name} unscales gradients in its kernel, where nothing can be added; make it with fused=False"
            )
        if rule.has_terms and any(one.grad is not None and one.grad.is_sparse for one in held):
            raise _refused(f"{name} has sparse gradients; build the embedding with sparse=False")
        if rule.only_sgd:
            self._check_sgd(optimizer, rule)

    def _check_sgd(self, optimizer: Optimizer, rule: LocalRule) -> None:
        groups, why = optimizer.param_groups, rule.only_sgd
        if type(optimizer) is not torch.optim.SGD:
            raise _refused(f"{why} (the loop steps with {type(optimizer).__name__})")
        others = [one for one, (_, held) in self._held.items() if held and one is not optimizer]
        if others or rule.is_used:
            raise _refused(f"{why}, by one optimizer, and this loop has several")
        for key in ("lr", "momentum", "nesterov"):
            if any(group[key] != groups[0][key] for group in groups):
                raise _refused(f"{why}, and its groups of parameters differ in {key}")
        for key in ("dampening", "maximize"):
            if any(group[key] for group in groups):
                raise _refused(f"{why}, without {key}")

    def _count(self, optimizer: Optimizer, rule: LocalRule) -> None:
        if not rule.only_sgd:
            rule.steps += 1
            return
        group = optimizer.param_groups[0]
        rule.count(float(group["lr"]), float(group["momentum"]), bool(group["nesterov"]))


def _with_terms(
    closure: Callable[[], Any], rule: LocalRule, held: list[nn.Parameter], searches: bool
) -> Callable[[], Any]:
    """A closure that adds the terms to the gradients it has computed, and to the loss by which steps are searched."""

    def computed() -> Any:
        loss = closure()
        rule.add_terms(held)
        # Lightning's closure may return None, and what it returns is logged.
        return loss + rule.penalty(held) if searches and isinstance(loss, Tensor) else loss

    return computed


def _refused(reason: str) -> ConfigError:
    return ConfigError("aggregation.strategy", reason, public=True)
