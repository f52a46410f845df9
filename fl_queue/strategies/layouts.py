"""Tensors that a strategy adds to a model's: in updates, in the server's state, in what clients keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fl_queue.errors import MessageError
from fl_queue.protocol.manifest import Manifest, TensorSpec, extra_name
from fl_queue.protocol.records import LOST
from fl_queue.strategies.base import Strategy

#: Names of what clients keep besides a strategy's own state.
OPTIMIZER, PERSONAL, PRIVATE, RESIDUAL = "optimizer", "personal", "private", "residual"
#: Of an optimizer's state: a number of each parameter. Names that begin with ``~`` are two numbers of all.
_COUNT, _OF_ALL = "step", "~"


def update_manifest(strategy: Strategy, manifest: Manifest) -> Manifest:
    """The tensors of an update: those of the model that are shared and trained, and the strategy's extras."""
    shared = manifest.shared()
    extras = [
        replace(spec, name=extra_name(extra, spec.name), kind="extra")
        for extra in strategy.extras
        for spec in shared.tensors
        if spec.kind == "parameter"
    ]
    return Manifest(tuple(sorted((*shared.tensors, *extras), key=lambda spec: spec.name)))


def state_manifest(manifest: Manifest) -> Manifest:
    """The tensors of each server state: the parameters that are shared, float32."""
    return Manifest(tuple(spec for spec in manifest.shared().tensors if spec.kind == "parameter"))


def client_layouts(
    strategy: Strategy,
    manifest: Manifest,
    error_feedback: bool = False,
    optimizer: Sequence[str] = (),
) -> dict[str, Manifest]:
    """
    Tensors that a client keeps from one accepted round to the next: name -> its tensors.

    The strategy's own, ``PERSONAL`` (a whole model, without what is frozen), ``PRIVATE`` (the private
    tensors), ``RESIDUAL`` and ``OPTIMIZER``.

    Args:
        error_feedback: The config's ``update.error_feedback``.
        optimizer: State of the optimizer that is kept, by the names of torch.
    """
    layouts = dict.fromkeys(strategy.client_state, state_manifest(manifest))
    if strategy.personal:
        frozen = set(manifest.frozen)
        layouts[PERSONAL] = Manifest(tuple(s for s in manifest.tensors if s.name not in frozen))
    if manifest.private:
        private = set(manifest.private)
        layouts[PRIVATE] = Manifest(tuple(s for s in manifest.tensors if s.name in private))
    if error_feedback:
        layouts[RESIDUAL] = state_manifest(manifest)
    if optimizer:
        layouts[OPTIMIZER] = _optimizer_layout(manifest, optimizer)
    return layouts


def _optimizer_layout(manifest: Manifest, names: Sequence[str]) -> Manifest:
    """``<name>/<parameter>`` of each parameter that is trained at a client, private ones among them."""
    frozen = set(manifest.frozen)
    trained = [s for s in manifest.tensors if s.kind == "parameter" and s.name not in frozen]
    specs: list[TensorSpec] = []
    for name in names:
        if name.startswith(_OF_ALL):
            specs.append(TensorSpec(name, (2,), "parameter"))
            continue
        specs += [
            replace(spec, name=f"{name}/{spec.name}", shape=() if name == _COUNT else spec.shape)
            for spec in trained
        ]
    return Manifest(tuple(sorted(specs, key=lambda spec: spec.name)))


def check_scalars(strategy: Strategy, scalars: Mapping[str, float]) -> None:
    """
    Refuse an update that has other numbers than the strategy wants.

    Raises:
        MessageError: Names the scalar.
    """
    may_have = {LOST} if strategy.client_state else set()
    if scalars.keys() - may_have != strategy.scalars.keys():
        raise MessageError(
            f"scalars {sorted(scalars)}, the run's strategy wants {sorted(strategy.scalars)}"
        )
    if scalars.get(LOST, 1.0) != 1.0:
        raise MessageError(f"scalar {LOST!r} is {scalars[LOST]!r}, not 1")
    for name, limit in strategy.scalars.items():
        if not abs(scalars[name]) <= limit:
            raise MessageError(f"scalar {name!r} is {scalars[name]!r}, outside ±{limit:g}")
