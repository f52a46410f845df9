"""
Base class of strategies: the additions of clients, the sum, and the next version from it.

A strategy states that in class attributes and three methods; everything around it (blocks, buffers, the
exact sum, state on disk) is done once, here and in ``aggregation/merge.py``. After the sum everything is
``+ - * / sqrt`` in float64, elementwise, in a fixed order, so that machines agree on every bit. No
Redis and no torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from fl_queue.common.options import Option, unknown_key
from fl_queue.errors import ConfigError
from fl_queue.protocol.arrays import FINEST, Float64s, Int64s
from fl_queue.protocol.manifest import Manifest, TensorSpec, extra_name
from fl_queue.protocol.tensor_layout import Tensor, matching
from fl_queue.strategies import renamed_members
from fl_queue.strategies.local_training import (
    ClientContribution as ClientContribution,
)
from fl_queue.strategies.local_training import (
    ClientTrainingState as ClientTrainingState,
)
from fl_queue.strategies.local_training import Correction as Correction
from fl_queue.strategies.local_training import State as State

#: Elements computed at a time: bounds the float64 intermediates to 1 MiB, whatever the model.
BLOCK = 65536

Arrays = Mapping[str, Tensor]


@dataclass(frozen=True)
class Range:
    """
    Kind of sum of a quantity.

    Args:
        limit: Largest magnitude of one client's value; beyond it the update is rejected.
        finest: Most fractional bits of the fixed point; fewer where the sum would not fit.
    """

    limit: float
    finest: int = FINEST


class LimitSettings(Protocol):
    """The fields of ``[aggregation]`` that limit what an update may hold."""

    @property
    def limit(self) -> float:
        """Largest change of a parameter."""

    @property
    def buffer_limit(self) -> float:
        """Largest change of a float buffer."""


class Merged(Protocol):
    """The updates of a round as one: an ``ExactSum``, or what a rule made of all of them."""

    manifest: Manifest
    count: int

    @property
    def left_out(self) -> Sequence[str]:
        """Clients whose updates a rule has not let in; of a sum: none."""

    def mean_block(self, name: str, start: int, stop: int) -> Float64s:
        """Elements ``start`` to ``stop`` (C order, flat) of a float tensor's mean."""

    def scalar_mean(self, name: str) -> float:
        """The mean of a scalar that clients sent."""

    def maximum(self, name: str) -> Int64s:
        """Merged value of an integer buffer, in its shape."""

    def release(self, name: str) -> None:
        """A tensor has been used: what it takes may be freed."""


@dataclass(frozen=True)
class RoundInfo:
    """
    Facts of a round besides its sum.

    Args:
        version: Of the model that is made, from 1.
        accepted: Updates in the sum: ``|S|``.
        population: Clients there are: ``N``.
        base_population: Clients there were when the base version's state was made; 0: not recorded, taken for
            as many as now.
        begins_anew: Whether a client has lost its state: that of the server, and so of all clients, is zero
            before and after this round.
    """

    version: int = 1
    accepted: int = 1
    population: int = 1
    base_population: int = 0
    begins_anew: bool = False

    def over_population(self, mean: Float64s) -> Float64s:
        """
        A state that is a mean over all clients, of as many as there are now: a client that has joined adds 0.

        Without new clients no bit changes.
        """
        return mean * ((self.base_population or self.population) / self.population)


class Block:
    """
    Some elements of one parameter, all that a server's step sees at a time.

    Args:
        x: Their values in the base version, float64; may be overwritten.
        state: Name -> the strategy's own values beside them, float64; to be replaced by the new ones.
        facts: Of the round.
    """

    def __init__(
        self,
        x: Float64s,
        state: dict[str, Float64s],
        facts: RoundInfo,
        total: Merged,
        name: str,
        start: int,
    ) -> None:
        self.x, self.state, self.facts = x, state, facts
        self._total, self._name, self._start = total, name, start

    def mean(self, extra: str = "") -> Float64s:
        """The weighted mean of the clients' differences, or of what they sent as that extra tensor."""
        name = extra_name(extra, self._name) if extra else self._name
        return self._total.mean_block(name, self._start, self._start + self.x.size)

    def scalar(self, name: str) -> float:
        """The weighted mean of a scalar that clients sent, rounded once."""
        return self._total.scalar_mean(name)


class Updates(Protocol):
    """The accepted updates of a round, as rules see them that need all: rows in the order of the clients' ids."""

    @property
    def manifest(self) -> Manifest:
        """The tensors of every update."""

    @property
    def count(self) -> int:
        """Number of updates."""

    @property
    def clients(self) -> list[str]:
        """Client of each row, sorted."""

    @property
    def weights(self) -> Float64s:
        """Weight of each row."""

    def parameters(self) -> Iterator[TensorSpec]:
        """The parameters of every update."""

    def spec(self, name: str) -> TensorSpec:
        """Of a tensor."""

    def block(self, name: str, start: int, stop: int, rows: Sequence[int] | None = None) -> Tensor:
        """Elements ``start`` to ``stop`` (flat, C order) of a tensor, (rows, elements) float32. Args: ``rows``: these alone."""


class Strategy:
    """
    FedAvg; a subclass overrides the steps in which it differs.

    An own strategy (``module:Class``) derives from this and runs in the aggregator only: it may have
    ``OPTIONS``, ``server_state`` and a ``step``; members that concern clients are for the built-in ones.

    Args:
        options: The config's ``[strategy]``, checked by ``options_of``.

    Example:
        A server that goes only a part of the mean's way:

        >>> from fl_queue.strategies import Option, Strategy
        >>> class Damped(Strategy):
        ...     OPTIONS = {"part": Option("float", 0.5, "part of the mean to add, above 0", above=0)}
        ...
        ...     def step(self, block):
        ...         block.x += self.number("part") * block.mean()
        ...         return block.x
        >>> Damped({"part": 0.25}).number("part")
        0.25
    """

    #: What ``[strategy]`` may hold.
    OPTIONS: ClassVar[Mapping[str, Option]] = {}
    #: Which ``aggregation.weighting`` its equations allow.
    WEIGHTINGS: ClassVar[tuple[str, ...]] = ("examples", "capped", "uniform")
    #: Tensors like the parameters that belong to a version; zero at version 0.
    server_state: ClassVar[tuple[str, ...]] = ()
    #: Those of them that clients need.
    fetched: ClassVar[tuple[str, ...]] = ()
    #: Tensors like the parameters that clients send besides their differences.
    extras: ClassVar[tuple[str, ...]] = ()
    #: Numbers that clients send besides: name -> largest magnitude.
    scalars: ClassVar[Mapping[str, float]] = {}
    #: Tensors like the parameters that a client keeps from one accepted round to the next.
    client_state: ClassVar[tuple[str, ...]] = ()
    #: Whether it merges all updates block by block (``merged``); otherwise their exact sum.
    needs_all: ClassVar[bool] = False
    #: How many updates it takes, in symbols, for messages.
    NEEDS: ClassVar[str] = ""
    #: Whether a client trains a model of its own besides, held near the round's by ``proximal_strength``, and keeps it.
    personal: ClassVar[bool] = False
    #: Whether updates must arrive as they were made: what clients keep has to agree with it.
    needs_exact_updates: ClassVar[bool] = False
    #: Whether updates may be scaled down to a norm (``aggregation.clip_norm``) and the equations still hold.
    may_clip: ClassVar[bool] = True
    #: Whether clients send their changes times a ``factor`` of their own: the base version and an update are no model.
    has_factors: ClassVar[bool] = False
    #: Whether a round's clients divide their factors by a power of two, see ``exponent``.
    has_exponent: ClassVar[bool] = False
    #: Whether clients evaluate the base version on their training data.
    needs_base_loss: ClassVar[bool] = False
    #: Whether it makes sense of updates that were made from older versions (asynchronous rounds).
    supports_async: ClassVar[bool] = False
    #: Whether a client's steps must be seen one by one, as its term is added to each gradient, or they are counted.
    needs_local_sgd: ClassVar[bool] = False
    #: Whether its equations need ``gradient_sum``, which only steps of SGD have.
    needs_gradient_sum: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        renamed_members.adopt(cls)

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = self.options_of(options or {})

    @classmethod
    def options_of(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """
        Its options, complete and checked.

        Raises:
            ConfigError: ``strategy.<name>`` is unknown, or its value cannot be used.
        """
        for key in given:
            if key not in cls.OPTIONS:
                known = [f"strategy.{name}" for name in cls.OPTIONS]
                if not known:
                    raise ConfigError(f"strategy.{key}", "this strategy has no options; remove it")
                raise unknown_key(f"strategy.{key}", known)
        return {
            key: option.parse(f"strategy.{key}", given[key]) if key in given else option.default
            for key, option in cls.OPTIONS.items()
        }

    def number(self, name: str) -> float:
        """An option that is a number."""
        return float(self.options[name])

    def ranges(self, aggregation: LimitSettings) -> dict[str, Range]:
        """Quantity (a kind of tensor, or an extra) -> how it is summed."""
        return {
            "parameter": Range(aggregation.limit),
            "float_buffer": Range(aggregation.buffer_limit),
        }

    # On the clients

    def training_refusals(self, optimizer: str) -> Mapping[str, str]:
        """
        Fields of ``[train]`` that must stay at their defaults, as the equations do not hold otherwise.

        Args:
            optimizer: Name of another optimizer than sgd, for the texts.

        Returns:
            ``optimizer``, ``schedule``, ``warmup``, ``optimizer_state`` or ``ema`` -> the reason and the fix.
        """
        return {}

    def correction(self, known: ClientTrainingState) -> Correction:
        """Term that a client adds to its gradients."""
        return Correction()

    def answer(self, known: ClientTrainingState) -> ClientContribution:
        """Tensors that a client sends and keeps after training."""
        return ClientContribution()

    def proximal_strength(self) -> float:
        """Weight that holds a client's own model near the round's: ``lambda`` of ``lambda/2 ||v - w||^2``."""
        return 0.0

    # On the server

    def min_updates(self) -> int:
        """The smallest number of updates it can merge: a quorum must not be below it."""
        return 1

    def merged(self, updates: Updates) -> Merged:
        """
        Aggregate in place of the mean, where it ``needs_all`` updates.

        Raises:
            ValueError: They are too few.
        """
        raise NotImplementedError(f"{type(self).__name__} merges by exact sums")

    def step(self, block: Block) -> Float64s:
        """
        The new values of some elements of a parameter; the mean is added unless overridden.

        Elementwise, in float64: what elements come together in a block must make no difference.
        """
        block.x += block.mean()
        return block.x

    def next_exponent(self, total: Merged, exponent: int) -> int:
        """The exponent of the round after this one. Args: ``exponent``: of this one."""
        return 0

    def next_model(
        self,
        manifest: Manifest,
        base: Arrays,
        total: Merged,
        state: State | None = None,
        sinks: Mapping[str, Callable[[Tensor], object]] | None = None,
        facts: RoundInfo | None = None,
    ) -> Iterator[Tensor]:
        """
        The next model's body, in blocks: a large model is never in memory for it.

        Float buffers get their plain mean, and variances among them (names that end in ``_var``, as
        BatchNorm's ``running_var``) are floored at 0: rounding may bring one just below, and its
        square root would be NaN. Integer buffers: the maximum over the updates. Tensors that are not
        in the sum are private to the clients, or frozen: they stay as they are.

        Args:
            manifest: The run's model.
            base: The model the updates were trained from; not modified.
            total: Sum of the accepted updates, one at least; a tensor's total is released once it
                has been used.
            state: The strategy's state that belongs to ``base``; what is missing is zero.
            sinks: Takes the new state, name by name, in blocks in the order of the parameters.
            facts: Of the round; by default those of its sum.

        Yields:
            Arrays of the tensors' elements in the manifest's order, each of at most one tensor:
            float32, or int64 for integer buffers.

        Raises:
            MessageError: A tensor of ``base`` or ``state`` is not the manifest's.
            ValueError: Nothing was added to ``total``.
        """
        facts = facts or RoundInfo(accepted=total.count)
        shared = {spec.name for spec in total.manifest.tensors}
        for spec in manifest.tensors:
            old = np.ascontiguousarray(matching(spec, base)).reshape(-1)
            if spec.name not in shared:
                yield old
            elif spec.kind == "integer_buffer":
                yield total.maximum(spec.name)
            elif spec.kind == "float_buffer":
                for start in range(0, spec.size, BLOCK):
                    yield _buffer(spec, old[start : start + BLOCK], start, total)
            else:
                yield from self._parameter(spec, old, total, state or {}, sinks or {}, facts)
            for name in (spec.name, *(extra_name(extra, spec.name) for extra in self.extras)):
                total.release(name)

    def _parameter(
        self,
        spec: TensorSpec,
        old: Tensor,
        total: Merged,
        state: State,
        sinks: Mapping[str, Callable[[Tensor], object]],
        facts: RoundInfo,
    ) -> Iterator[Tensor]:
        beside = {
            name: np.ascontiguousarray(matching(spec, state[name])).reshape(-1)
            for name in self.server_state
            if state.get(name) and not facts.begins_anew
        }
        for start in range(0, spec.size, BLOCK):
            part = slice(start, start + BLOCK)
            x = old[part].astype(np.float64)
            values = {
                name: beside[name][part].astype(np.float64) if name in beside else np.zeros_like(x)
                for name in self.server_state
            }
            block = Block(x, values, facts, total, spec.name, start)
            new = self.step(block).astype(np.float32)
            for name, sink in sinks.items():
                kept = np.zeros_like(x) if facts.begins_anew else block.state[name]
                sink(kept.astype(np.float32))
            yield new


def _buffer(spec: TensorSpec, old: Tensor, start: int, total: Merged) -> Tensor:
    block = old.astype(np.float64)
    block += total.mean_block(spec.name, start, start + old.size)
    if spec.name.endswith("_var"):
        # Not np.maximum: which zero it makes of -0.0 depends on the instruction set.
        block[block <= 0.0] = 0.0
    return block.astype(np.float32)
