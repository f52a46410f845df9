"""Frozen parameters: their manifest entries, and that none of them is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from fl_queue.aggregation.exact_sum import ExactSum
from fl_queue.aggregation.scales import Scale
from fl_queue.client.local_update import ClientStrategy, TrainingResult, initial_model, train_update
from fl_queue.client.version_zero import version_zero
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, MessageError, ModelMismatch
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.strategies import get_strategy
from fl_queue.strategies.layouts import client_layouts, state_manifest, update_manifest
from fl_queue.tasks.base import ClientData, OnEpoch, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.training.model_tensors import manifest_of, views_of
from tests.support import exact_sums
from tests.support.checkout import ROOT

FROZEN = ("0.bias", "0.weight")


class Tuned(Task):
    """A frozen layer under one that is trained."""

    frozen = (0,)

    def build_model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 3))
        for layer in self.frozen:
            model[layer].requires_grad_(False)
        return model

    def client_data(self, context: ClientContext) -> ClientData:
        rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
        data = TensorDataset(rows, rows.argmax(dim=1) % 3)
        return ClientData(TensorDataset(*data[:30]), TensorDataset(*data[30:]))


class AllFrozen(Tuned):
    frozen = (0, 1)


class Unfrozen(Tuned):
    frozen = ()


class Disobedient(Tuned):
    """Its training unfreezes what it has built frozen."""

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> Mapping[str, Any]:
        model.requires_grad_(True)
        return super().train(model, data, context, on_epoch)


def task_of(kind: type[Tuned] = Tuned, strategy: str = "fedavg", **sections: Any) -> Tuned:
    weighting = get_strategy(strategy).WEIGHTINGS[0]
    rule = {"strategy": strategy, "weighting": weighting}
    raw = {"run": {"task": "x:y", "seed": 1}, "aggregation": rule, **sections}
    return kind(RunConfig.from_dict(raw))


def trained(task: Task, model: tuple[Manifest, Any] | None = None) -> TrainingResult:
    manifest, base = model or initial_model(task, 1)
    context = ClientContext.of(task.config, client="a", run="demo", round_number=1)
    strategy = get_strategy(task.config.aggregation.strategy)
    return train_update(task, manifest, base, context, plan=ClientStrategy(strategy))


def test_a_manifest_names_what_is_frozen_and_survives_json() -> None:
    manifest = initial_model(task_of(), 1)[0]
    assert manifest.base is not None
    assert (manifest.frozen, manifest.base.names) == ((), frozenset(FROZEN))
    assert Manifest.from_json(manifest.to_json()) == manifest
    plain = initial_model(task_of(Unfrozen), 1)[0]
    assert not {"frozen", "base"} & json.loads(plain.to_json()).keys()
    with pytest.raises(MessageError, match="frozen tensor is not there"):
        replace(plain, frozen=("2.weight",))
    with pytest.raises(MessageError, match="base part is in the body, too"):
        replace(plain, base=manifest.base)
    with pytest.raises(MessageError, match="or no parameter"):
        Manifest((TensorSpec("steps", (), "integer_buffer"),), frozen=("steps",))


def test_a_tied_tensor_is_frozen_only_if_all_its_names_are() -> None:
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    model[0].weight.requires_grad_(False)
    assert manifest_of(model).frozen == ("0.weight",)
    model[1].weight.data = model[0].weight.data
    found = manifest_of(model)
    assert (found.aliases, found.frozen) == ({"1.weight": "0.weight"}, ())


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "feddyn", "ditto", "median"])
def test_nothing_of_a_frozen_tensor_is_sent_kept_or_summed(strategy: str) -> None:
    made = trained(task_of(strategy=strategy))
    manifest = made.manifest
    sent = {spec.name.rpartition("/")[2] for spec in made.sent.tensors}
    assert sent == {"1.bias", "1.weight"}
    extras = len(get_strategy(strategy).extras)
    assert sum(block.nbytes for _, _, block in made.pieces()) == (1 + extras) * 4 * (3 + 3 * 64)
    assert {s.name for s in state_manifest(manifest).tensors} == {"1.bias", "1.weight"}
    for layout in client_layouts(get_strategy(strategy), manifest, error_feedback=True).values():
        assert not {s.name for s in layout.tensors} & set(FROZEN)


def whole_of(task: Tuned) -> tuple[Manifest, Any]:
    """Version 0 as runs of older releases have it: with the frozen tensors in its body."""
    made = version_zero(task, 1)
    whole = manifest_of(made.model)
    return whole, views_of(made.model, whole)


def test_the_next_model_has_the_frozen_bits_of_version_0() -> None:
    """In a run that began before there were base parts."""
    task = task_of()
    manifest, base = whole_of(task)
    assert (manifest.frozen, manifest.base) == (FROZEN, None)
    made = trained(task, (manifest, base))
    sent = update_manifest(get_strategy("fedavg"), manifest)
    total = ExactSum(sent, {"parameter": Scale(40, 64.0)}, 30)
    exact_sums.add(total, dict(made.tensors), made.num_examples)
    pieces = get_strategy("fedavg").next_model(manifest, base, total)
    body = np.concatenate([piece.reshape(-1) for piece in pieces])
    old = np.concatenate([base[spec.name].reshape(-1) for spec in manifest.tensors])
    frozen = sum(spec.size for spec in manifest.tensors if spec.name in FROZEN)
    assert body[:frozen].tobytes() == old[:frozen].tobytes()
    assert (body[frozen:] != old[frozen:]).mean() > 0.9


def test_a_run_of_an_older_release_trains_the_same_bits() -> None:
    task = task_of()
    new, old = dict(trained(task).tensors), dict(trained(task, whole_of(task)).tensors)
    assert new.keys() == old.keys() == {"1.bias", "1.weight"}
    assert all(new[name].tobytes() == old[name].tobytes() for name in new)
    with pytest.raises(ModelMismatch, match=r"0\.bias is frozen .* its training changed it"):
        trained(task_of(Disobedient), whole_of(task_of(Disobedient)))


def test_the_trained_layer_has_the_bits_it_has_when_the_frozen_one_is_sent_too() -> None:
    """What is not sent was zero: nothing else about the training is another."""
    task = task_of()
    base = whole_of(task)[1]
    made = dict(trained(task).tensors)

    class Plain(Tuned):
        """The same, with the frozen layer as buffers."""

        def build_model(self) -> nn.Module:
            model = super().build_model()
            for name, tensor in list(model[0].named_parameters()):
                delattr(model[0], name)
                model[0].register_buffer(name, tensor.detach())
            return model

    plain = task_of(Plain)
    whole = dict(trained(plain, (initial_model(plain, 1)[0], base)).tensors)
    assert made.keys() == {"1.bias", "1.weight"}
    assert not np.any(whole["0.weight"])
    assert all(made[name].tobytes() == whole[name].tobytes() for name in made)


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="every parameter of its model is frozen"):
        initial_model(task_of(AllFrozen), 1)
    with pytest.raises(ConfigError, match="every parameter that is trained"):
        initial_model(task_of(model={"private": ["1.*"]}), 1)


def test_a_site_that_trains_other_parameters_is_refused_with_their_names() -> None:
    model = initial_model(task_of(), 1)
    with pytest.raises(ModelMismatch, match=r"parameter 0\.bias is frozen .* not in both"):
        trained(task_of(Unfrozen), model)


def test_training_that_changes_what_is_frozen_is_an_error_not_a_loss() -> None:
    with pytest.raises(ModelMismatch, match=r"0\.bias is frozen .* its training changed it"):
        trained(task_of(Disobedient))


def test_top_k_counts_only_what_is_trained() -> None:
    sent = trained(task_of()).sent
    assert codec.encoded_nbytes("topk:0.1", sent) == 8 * (1 + 20)


def test_the_documents_adapter_is_the_examples() -> None:

    shown = (ROOT / "docs/guides/your-own-task.md").read_text().split("```python\nclass LowRank")[1]
    assert "class LowRank" + shown.split("```")[0] in (ROOT / "examples/lora.py").read_text()
