"""Samples that are more than (tensor, tensor), and models that take more than one argument."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import Dataset, TensorDataset

from fl_queue import metrics
from fl_queue.client import local_update
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import DataError
from fl_queue.experiments import trial
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task
from fl_queue.training import sgd

DRAWN = torch.Generator().manual_seed(1)
WORDS = torch.randint(0, 9, (20, 4), generator=DRAWN)
CLASSES = torch.randint(0, 3, (20,), generator=DRAWN)


class Model(nn.Module):
    """Class scores of words that a mask selects; takes its inputs by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 3)

    def forward(self, words: Tensor, mask: Tensor | None = None) -> Tensor:
        found = self.table(words)
        return (found if mask is None else found * mask[..., None]).sum(1)


class Whole(Model):
    """The same; its one argument is the map or the pair."""

    def forward(self, both: Any) -> Tensor:  # type: ignore[override]
        words, mask = (both["words"], both["mask"]) if isinstance(both, dict) else both
        return super().forward(words, mask)


class Samples(Dataset[Any]):
    """Samples made by a function of their index."""

    def __init__(self, sample: Any, count: int = 20) -> None:
        self.sample, self.count = sample, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.sample(index)


MASK = torch.ones(4)
FORMS: dict[str, Any] = {
    "a map": lambda i: ({"words": WORDS[i], "mask": MASK}, CLASSES[i]),
    "several": lambda i: (WORDS[i], MASK, CLASSES[i]),
    "a pair": lambda i: ((WORDS[i], MASK), int(CLASSES[i])),
}


def trained(model: type[nn.Module], dataset: Any, **how: Any) -> tuple[dict[str, Tensor], Any]:
    """A model after two epochs, and its evaluation."""
    torch.manual_seed(3)
    made, loss = model(), functional.cross_entropy
    sgd.local_sgd(made, dataset, loss, seed=2, epochs=2, batch_size=8, learning_rate=0.1, **how)
    how = {key: value for key, value in how.items() if key != "loader_workers"}
    return made.state_dict(), sgd.evaluate(made, dataset, loss, **how)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("model", [Model, Whole])
@pytest.mark.parametrize("form", FORMS)
def test_samples_of_each_form_train_to_the_same_bits(form: str, model: type[nn.Module]) -> None:
    plain = trained(Model, TensorDataset(WORDS, CLASSES))
    state, sums = trained(model, Samples(FORMS[form]))
    assert same(state, plain[0])
    assert sums == plain[1]


def test_tensors_of_several_inputs_are_read_as_samples_are() -> None:
    plain = trained(Model, TensorDataset(WORDS, CLASSES))
    state, _ = trained(Model, TensorDataset(WORDS, torch.ones(20, 4), CLASSES))
    assert same(state, plain[0])


def shortened(index: int) -> tuple[Tensor, Tensor]:
    return WORDS[index][: 1 + index % 4], CLASSES[index]


def padded(samples: list[tuple[Tensor, Tensor]]) -> Any:
    """Words with a mask, by name."""
    words = nn.utils.rnn.pad_sequence([words for words, _ in samples], batch_first=True)
    lengths = torch.tensor([len(words) for words, _ in samples])
    mask = (torch.arange(words.shape[1]) < lengths[:, None]).float()
    return {"words": words, "mask": mask}, torch.stack([target for _, target in samples])


def test_samples_of_unequal_lengths_are_batched_by_the_tasks_collate() -> None:
    whole = [
        torch.cat([words, words.new_zeros(4 - len(words))])
        for words, _ in map(shortened, range(20))
    ]
    masks = torch.stack([(torch.arange(4) <= i % 4).float() for i in range(20)])
    plain = trained(Model, TensorDataset(torch.stack(whole), masks, CLASSES))
    for workers in (0, 2):
        found = trained(Model, Samples(shortened), collate=padded, loader_workers=workers)
        assert same(found[0], plain[0])
        assert found[1] == plain[1]


def test_what_has_a_method_of_its_own_to_move_is_moved_by_it() -> None:
    class Packed(nn.GRU):
        def forward(self, packed: Any) -> Tensor:  # type: ignore[override]
            return super().forward(packed)[1][0]

    def pack(samples: list[Any]) -> Any:
        words = [functional.one_hot(words, 9).float() for words, _ in samples]
        return pack_sequence(words, enforce_sorted=False), torch.stack([t for _, t in samples])

    _, sums = trained(lambda: Packed(9, 3), Samples(shortened), collate=pack)  # type: ignore[arg-type]
    assert sums["num_examples"] == 20


def test_a_sample_that_is_no_pair_is_refused_with_the_fix() -> None:
    for sample in (lambda i: {"words": WORDS[i]}, lambda i: WORDS[i]):
        with pytest.raises(DataError, match=r"\(input, target\).*collate"):
            trained(Model, Samples(sample))


def test_targets_by_name_count_by_samples() -> None:
    def loss(output: Tensor, target: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(output, target["class"])

    found = sgd.evaluate(Model(), Samples(lambda i: (WORDS[i], {"class": CLASSES[i]})), loss)
    assert found["num_examples"] == 20
    assert "loss_sum" in found


def test_a_function_may_give_a_collate(monkeypatch: pytest.MonkeyPatch) -> None:
    own = types.ModuleType("sentences")
    own.task = lambda: {"model": Model(), "train": Samples(shortened), "collate": padded}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentences", own)
    found = RunConfig.from_dict({"run": {"task": "sentences:task"}, "train": {"batch_size": 4}})
    task = load_task("sentences:task", found, ["sentences:task"])
    manifest, base = local_update.initial_model(task, 0)
    context = ClientContext.of(found, client="a", run="r", round_number=1)
    made = local_update.train_update(
        task, manifest, {k: v.copy() for k, v in base.items()}, context
    )
    assert {"accuracy", "loss"} <= metrics.finish(made.metrics).keys()
    assert made.num_examples == 18


def test_a_task_is_tried_with_data_that_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def train() -> TensorDataset:
        read.append(1)
        return TensorDataset(WORDS, CLASSES)

    own = types.ModuleType("counted")
    own.task = lambda: {"model": Model(), "train": train}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "counted", own)
    monkeypatch.setattr(own.task, "__module__", "counted")
    trial.run_trial(RunConfig.from_dict({"run": {"task": "counted:task"}}))
    assert len(read) == 1
