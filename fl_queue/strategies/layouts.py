"""Tensors that a strategy adds to a model's: in updates, in the server's state, in what clients keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fl_queue.errors import MessageError
from fl_queue.protocol.manifest import Manifest, extra_name
from fl_queue.protocol.records import LOST
from fl_queue.strategies.base import Strategy

#: Names of what clients keep besides a strategy's own state.
PERSONAL, PRIVATE, RESIDUAL = "personal", "private", "residual"


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
    strategy: Strategy, manifest: Manifest, error_feedback: bool = False
) -> dict[str, Manifest]:
    """
    Tensors that a client keeps from one accepted round to the next: name -> its tensors.

    The strategy's own, ``PERSONAL`` (a whole model, without what is frozen), ``PRIVATE`` (the private
    tensors) and ``RESIDUAL``.

    Args:
        error_feedback: The config's ``update.error_feedback``.
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
    return layouts


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
