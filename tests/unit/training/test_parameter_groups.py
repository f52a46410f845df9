"""Groups of parameters: without weight decay, and those of a task."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from fl_queue.errors import ConfigError
from fl_queue.training.parameter_groups import by_decay, checked


class RootNorm(nn.Module):
    """A normalisation that torch does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(nn.Linear(3, 1).weight.detach())


def built() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), RootNorm(), nn.Linear(4, 2))
    model[3].bias.requires_grad_(False)
    return model


def names(model: nn.Module, group: dict[str, Any]) -> list[str]:
    by_parameter = {one: name for name, one in model.named_parameters()}
    return [by_parameter[one] for one in group["params"]]


@pytest.mark.parametrize(
    ("patterns", "without"),
    [
        (["@norm"], ["1.weight", "1.bias", "2.gain"]),
        (["@bias"], ["0.bias", "1.bias"]),
        (["3.*", "@norm"], ["1.weight", "1.bias", "2.gain", "3.weight"]),
    ],
)
def test_parameters_without_decay_are_found_by_layer_name_and_pattern(
    patterns: list[str], without: list[str]
) -> None:
    model = built()
    decayed, plain = by_decay(model, patterns)

    assert names(model, plain) == without
    assert plain["weight_decay"] == 0.0
    assert names(model, decayed) == [
        name
        for name in ("0.weight", "0.bias", "1.weight", "1.bias", "2.gain", "3.weight")
        if name not in without
    ]


def test_without_patterns_there_is_one_group_and_a_pattern_for_nothing_is_refused() -> None:
    model = built()

    assert [list(group) for group in by_decay(model, [])] == [["params"]]
    with pytest.raises(ConfigError, match=r"'0.wieght' matches no parameter.*0\.weight") as caught:
        by_decay(model, ["0.wieght"])
    assert caught.value.field == "train.no_decay"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (lambda model: "all", "returned no list of tables"),
        (lambda model: [{"params": model[0].parameters()}], "leaves out 1.weight"),
        (
            lambda model: [{"params": model.parameters()}, {"params": [model[0].bias]}],
            "lists 0.bias twice",
        ),
        (lambda model: [{"params": built().parameters()}], "a parameter that is not the model's"),
        (
            lambda model: [{"params": model.parameters(), "beta": 1}],
            "a group with beta, and the optimizer has betas, lr",
        ),
    ],
)
def test_groups_of_a_task_that_cannot_be_used_are_named(given: Any, text: str) -> None:
    model = built()

    with pytest.raises(ConfigError, match=text) as caught:
        checked(model, given(model), ["lr", "betas"])
    assert caught.value.public.startswith("param_groups() ")


def test_frozen_parameters_are_left_out_of_a_tasks_groups() -> None:
    model = built()
    found = checked(
        model,
        [{"params": model[3].parameters(), "lr": 1.0}, {"params": model[:3].parameters()}],
        ["lr"],
    )

    assert names(model, found[0]) == ["3.weight"]
    assert found[0]["lr"] == 1.0
