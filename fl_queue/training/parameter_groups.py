"""
Groups of a model's parameters that are trained with options of their own, such as without weight decay.

Imports torch. No Redis here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from fl_queue.common.spelling import nearest
from fl_queue.config.optimizer_catalog import BIAS, NORM
from fl_queue.errors import ConfigError
from fl_queue.training.model_tensors import BATCH_NORM_LAYERS

Groups = list[dict[str, Any]]

#: In a group: times the round's learning rate, which changes by round.
RATE_FACTOR = "lr_factor"
_NORMS = (
    *BATCH_NORM_LAYERS,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen, each once, in the model's order."""
    return [one for one in model.parameters() if one.requires_grad]


def by_decay(model: nn.Module, patterns: Sequence[str]) -> Groups:
    """
    A model's trained parameters as one group, or as two where some have no weight decay.

    Args:
        patterns: The config's ``train.no_decay``.

    Raises:
        ConfigError: A pattern matches no parameter of the model.
    """
    plain = trained_parameters(model)
    if not patterns:
        return [{"params": plain}]
    without = _matching(model, patterns)
    decayed = [one for one in plain if one not in without]
    groups: Groups = [{"params": decayed}] if decayed else []
    return [*groups, {"params": [one for one in plain if one in without], "weight_decay": 0.0}]


def _matching(model: nn.Module, patterns: Sequence[str]) -> set[nn.Parameter]:
    named = dict(model.named_parameters(remove_duplicate=False))
    norms = {
        one
        for module in model.modules()
        if isinstance(module, _NORMS) or type(module).__name__.endswith("Norm")
        for one in module.parameters(recurse=False)
    }
    found: set[nn.Parameter] = set()
    for pattern in patterns:
        if pattern == NORM:
            hits = norms
        elif pattern == BIAS:
            hits = {one for name, one in named.items() if name.rpartition(".")[2] == "bias"}
        else:
            hits = {one for name, one in named.items() if fnmatchcase(name, pattern)}
        if not hits:
            raise ConfigError(
                "train.no_decay",
                f"{pattern!r} matches no parameter{nearest(pattern, named)}; remove it",
                public=f"{pattern!r} matches no parameter of the model; remove it",
            )
        found |= hits
    return found


def checked(model: nn.Module, given: Any, options: Iterable[str]) -> Groups:
    """
    What ``Task.param_groups`` returned: every trained parameter in one group, frozen ones left out.

    Args:
        given: Tables with ``params``, and options of the optimizer beside it.
        options: Options that a group may have; empty: any.

    Raises:
        ConfigError: It is something else; names the parameter or the option.
    """
    if not isinstance(given, Sequence) or not all(
        isinstance(group, Mapping) and "params" in group for group in given
    ):
        raise _wrong("returned no list of tables with params and options")
    names = {one: name for name, one in model.named_parameters()}
    wanted, known = set(trained_parameters(model)), {"params", RATE_FACTOR, *options}
    groups: Groups = []
    for group in given:
        one = group["params"]
        listed = [one] if isinstance(one, nn.Parameter) else list(one)
        for parameter in listed:
            if not isinstance(parameter, nn.Parameter) or parameter not in names:
                raise _wrong("lists a parameter that is not the model's")
            if parameter.requires_grad and parameter not in wanted:
                raise _wrong(f"lists {names[parameter]} twice")
            wanted.discard(parameter)
        if options and (unknown := sorted(map(str, set(group) - known))):
            near = ", ".join(sorted(known - {"params"}))
            raise _wrong(f"has a group with {unknown[0][:80]}, and the optimizer has {near}")
        groups.append({**group, "params": [one for one in listed if one.requires_grad]})
    if wanted:
        first = next(name for one, name in names.items() if one in wanted)
        raise _wrong(f"leaves out {first}; freeze what is not to be trained")
    return [group for group in groups if group["params"]]


def _wrong(what: str) -> ConfigError:
    return ConfigError("run.task", f"param_groups() {what}", public=True)
