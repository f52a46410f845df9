"""A function as a task: what it may return, what it is called with, and what is refused."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset

from fl_queue.client.local_update import Arrays, initial_model, train_update
from fl_queue.config.loading import load
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.protocol.manifest import Manifest
from fl_queue.tasks.base import Task, code_digest
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task
from fl_queue.training import sgd
from tests.support.documented_task import beans_tables, documented

HEADER = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ROWS = TensorDataset(torch.arange(24.0).reshape(12, 2), torch.arange(12) % 3)
calls = []
"""


def module_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> str:
    """Name of a module with that source."""
    name = f"plain_{abs(hash((source, str(tmp_path))))}"
    (tmp_path / f"{name}.py").write_text(HEADER + textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def config_of(task: str, options: dict[str, object] | None = None, **data: object) -> RunConfig:
    train = {"epochs": 20, "batch_size": 5, "learning_rate": 0.3}
    return RunConfig.from_dict(
        {"run": {"task": task}, "train": train, "data": data, "task": options or {}}
    )


def context_of(config: RunConfig, share: int = 0, shares: int = 2) -> ClientContext:
    return ClientContext.of(
        config, client="a", run="demo", round_number=1, share=share, shares=shares
    )


def begun(own: Task) -> tuple[Manifest, Arrays]:
    manifest, arrays = initial_model(own, 0)
    return manifest, {name: array.copy() for name, array in arrays.items()}


@pytest.mark.parametrize("changed", ["", "# beans.py, its function"])
def test_the_documented_function_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    beans_tables(tmp_path)
    source = documented("# beans.py\nfrom pathlib import Path\n\nimport")
    name = module_of(tmp_path, monkeypatch, source + (documented(changed) if changed else ""))
    config = config_of(f"{name}:beans", {"hidden": 16})

    own = load_task(f"{name}:beans", config, [f"{name}:beans"], str(tmp_path))
    manifest, arrays = begun(own)
    seen: list[float] = []
    trained = train_update(
        own,
        manifest,
        arrays,
        context_of(config),
        lambda *reported: seen.append(reported[2]["accuracy"]),
    )
    test = own.test_data(str(tmp_path))

    assert {spec.shape for spec in manifest.tensors} == {(16, 7), (16,), (3, 16), (3,)}
    assert (trained.num_examples, trained.metrics["num_examples"]) == (135, 15)
    assert seen[-1] > 0.7
    assert test is not None
    assert sgd.size_of(test) == 60
    assert len(code_digest(own)) == 64


def test_a_round_reads_the_data_once_and_version_0_has_the_runs_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module_of(
        tmp_path,
        monkeypatch,
        """
        def once():
            calls.append(1)
            return nn.Linear(2, 3), ROWS
        """,
    )
    config = config_of(f"{name}:once")
    first = begun(load_task(f"{name}:once", config, [f"{name}:*"]))
    calls = sys.modules[name].__dict__["calls"]
    calls.clear()

    own = load_task(f"{name}:once", config, [f"{name}:*"])
    own.client_data(context_of(config))
    again = begun(own)
    assert len(calls) == 2  # Its model was not drawn from the run's seed: made again.
    calls.clear()
    train_update(own, *again, context_of(config))

    assert len(calls) == 1
    assert all((first[1][name] == array).all() for name, array in again[1].items())
    assert own.test_data("") is None


def test_a_loss_and_classes_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module_of(
        tmp_path,
        monkeypatch,
        """
        def regression(offset=0.0):
            rows = torch.arange(12.0).reshape(12, 1)
            return {
                "model": nn.Linear(1, 1),
                "train": [(x, x) for x in rows],
                "loss": lambda output, target: ((output - target - offset) ** 2).mean(),
                "labels": lambda: [0] * 6 + [1] * 6,
            }
        """,
    )
    config = config_of(f"{name}:regression", partition="shards", shards_per_client=1)
    own = load_task(f"{name}:regression", config, [f"{name}:*"])

    data = own.client_data(context_of(config))
    target = torch.zeros(2, 1)

    assert isinstance(data.train, Subset)
    assert {int(x) // 6 for x, _ in data.train} in ({0}, {1})
    assert float(own.loss(target + 2, target)) == 4.0


@pytest.mark.parametrize(
    ("rows", "classes"),
    [("ROWS", 3), ("[(x, int(y)) for x, y in ROWS]", 3), ("torch.utils.data.Subset(ROWS, [0, 3, 1])", 2)],
)  # fmt: skip
def test_classes_are_found_where_the_partition_asks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str, classes: int
) -> None:
    name = module_of(tmp_path, monkeypatch, f"def made(): return nn.Linear(2, 3), {rows}")
    config = config_of(f"{name}:made", partition="label_count", labels_per_client=1)
    own = load_task(f"{name}:made", config, [f"{name}:*"])

    parts = [own.client_data(context_of(config, share, classes)) for share in range(classes)]

    kinds = [{int(y) for part in (data.train, data.validation) for _, y in part} for data in parts]
    assert sorted(map(list, kinds)) == [[kind] for kind in range(classes)]


@pytest.mark.parametrize(
    ("source", "options", "field", "words"),
    [
        ("def made(hidden=1): return 3", {"hiden": 2}, "task.hiden", "did you mean task.hidden"),
        ("def made(hidden): return 3", {}, "task.hidden", "is missing"),
        ("def made(data_dir): return 3", {"data_dir": "/"}, "task.data_dir", "--data"),
        ("def made(): return 3", {}, "run.task", "returned a int; return"),
        ("def made(): return (nn.Linear(2, 3),)", {}, "run.task", "returned a tuple"),
        ("def made(): return {'model': 1}", {}, "run.task", "mapping with model and train"),
        ("def made(): return 1, ROWS", {}, "run.task", "gives a int as model"),
        ("def made(): return nn.Linear(2, 3), DataLoader(ROWS)", {}, "run.task", "DataLoader"),
        ("def made(): return {'model': nn.Linear(2, 3), 'train': ROWS, 'tets': ROWS}", {}, "", "test"),
        ("made = nn.Linear(2, 3)", {}, "run.task", "is a model; name a function"),
        ("class made(nn.Linear): pass", {}, "run.task", "is a model; name a function"),
        ("def other(): pass", {}, "run.task", "no function of that name"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    options: dict[str, object],
    field: str,
    words: str,
) -> None:
    name = module_of(tmp_path, monkeypatch, source)
    config = config_of(f"{name}:made", options)

    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        load_task(f"{name}:made", config, [f"{name}:*"]).client_data(context_of(config))

    assert caught.value.field.startswith(field)


@pytest.mark.parametrize(
    ("data", "fix"),
    [
        ({"partition": "shards"}, "set data.partition to iid or site"),
        ({"partition": "iid", "train_per_class": [1, 2]}, "set data.train_per_class to []"),
        ({"partition": "site", "validation_per_class": [1, 2]}, "set data.validation_per_class to []"),
        (
            {"partition": "label_count", "labels_per_client": 1, "train_per_class": [1, 2]},
            "set data.partition to iid or site and data.train_per_class to []",
        ),
    ],
)  # fmt: skip
def test_samples_without_classes_are_split_after_the_change_that_the_error_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, object], fix: str
) -> None:
    source = "def made(): return nn.Linear(2, 1), TensorDataset(torch.rand(9, 2), torch.rand(9))"
    name = module_of(tmp_path, monkeypatch, source)
    config = config_of(f"{name}:made", **data)
    own = load_task(f"{name}:made", config, [f"{name}:*"])

    with pytest.raises(ConfigError, match=re.escape(f"return `labels` (N,), or {fix}") + "$"):
        own.client_data(context_of(config))


@pytest.mark.parametrize(
    "data", [{"partition": "shards"}, {"train_per_class": [1, 2]}], ids=["partition", "per class"]
)
def test_a_split_by_class_needs_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, object]
) -> None:
    source = "def made(): return nn.Linear(2, 1), TensorDataset(torch.rand(9, 2), torch.rand(9))"
    name = module_of(tmp_path, monkeypatch, source)
    config = config_of(f"{name}:made", **data)
    own = load_task(f"{name}:made", config, [f"{name}:*"])

    with pytest.raises(ConfigError, match="labels") as caught:
        own.client_data(context_of(config))
    assert caught.value.field == "data.partition"


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("task.rate=nan", "task.rate"),
        ("task.since=2026-01-01", "task.since"),
        ("task.deep=[1, {x = inf}]", "task.deep.1.x"),
    ],
)
def test_options_of_ones_own_that_do_not_travel_are_named(setting: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("demo", ("run.task=mine:made", setting))

    assert caught.value.field == field
