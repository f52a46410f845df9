"""Facts that a site reports of its task and data before round 1: names and shapes, no values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from fl_queue._version import __version__
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, DataError
from fl_queue.tasks.base import ClientData, Task, code_digest
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task
from fl_queue.tasks.site_facts import facts_of
from tests.support.images import save_image

CSV = {"run": {"task": "csv"}, "data": {"partition": "site"}}


def reported(raw: dict[str, Any], folder: Path) -> dict[str, str]:
    config = RunConfig.from_dict(raw)
    task = load_task(config.run.task, config, (), str(folder))
    context = ClientContext.of(config, client="a", run="run", round_number=1, data_dir=str(folder))
    return facts_of(task, task.client_data(context))


def test_an_image_folder_reports_classes_and_channels(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        for number in range(3):
            save_image(tmp_path / "train" / name / f"{number}.png", (180, 20, 20))
    raw = {"run": {"task": "image-folder"}, "data": {"partition": "site"}}
    listed = {"image_size": 32, "classes": "cat, dog"}
    facts = reported(raw | {"task": listed}, tmp_path)
    assert facts == {
        "classes": "2: cat, dog",
        "channels": "3",
        "input": "float32 (3, 32, 32)",
        "code": f"fl_queue {__version__}",
    }
    # Folder names may be private: only words of the config leave the site.
    unlisted = reported(raw | {"task": {"image_size": 32}}, tmp_path)
    assert re.fullmatch(r"2 that the config does not name \(check \d{1,3}\)", unlisted["classes"])


def test_a_table_reports_its_columns_in_order_and_no_cell(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("age,dose,label\n41,0.5,0\n42,0.25,1\n43,0.5,1\n")
    listed = CSV | {"task": {"features": "dose,age"}}
    assert reported(listed, tmp_path)["columns"] == "2: dose, age"
    facts = reported(CSV, tmp_path)
    assert facts["columns"].startswith("2 that the config does not name (check ")
    assert facts["classes"] == "2: 0, 1"
    assert facts["input"] == "float32 (2)"
    assert "channels" not in facts
    assert not any(cell in "".join(facts.values()) for cell in ("41", "42", "0.25"))
    (tmp_path / "train.csv").write_text("dose,age,label\n0.5,41,0\n0.25,42,1\n")
    assert reported(CSV, tmp_path)["columns"] != facts["columns"]
    (tmp_path / "train.csv").unlink()
    with pytest.raises(DataError):
        reported(CSV, tmp_path)


class Named(TensorDataset):
    def __init__(self, *tensors: torch.Tensor, classes: tuple[object, ...] = ("a", "b")) -> None:
        super().__init__(*tensors)
        self.classes = classes


class Own(Task):
    data: Any = None
    described: Any = None

    def build_model(self) -> nn.Module:
        return nn.Linear(2, 2)

    def client_data(self, context: ClientContext) -> ClientData:
        return ClientData(self.data, self.data)

    def describe(self, data: ClientData) -> Any:
        return super().describe(data) if self.described is None else self.described


def own(data: Any, described: Any = None, **options: Any) -> dict[str, str]:
    config = RunConfig.from_dict({"run": {"task": "x:Own"}, "task": options})
    task = Own(config)
    task.data, task.described = data, described
    assert len(code_digest(task)) == 64
    context = ClientContext.of(config, client="a", run="run", round_number=1)
    return facts_of(task, task.client_data(context))


def test_a_custom_data_set_reports_its_classes_and_its_own_facts() -> None:
    rows = torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)
    names = ["a", "b"]
    assert own(Subset(Named(*rows), [0, 1]), classes=names)["classes"] == "2: a, b"
    described = {"units": "mm", "sensors": ["left", "right"], "none": []}
    facts = own(Named(*rows), described, unit="mm", sensors={"right": 1})
    assert facts == {
        "units": "mm",
        "sensors": facts["sensors"],
        "input": "float32 (5)",
        "code": own(Named(*rows))["code"],
    }
    assert re.fullmatch(r"2: \?, right \(check \d{1,3}\)", facts["sensors"])
    others = own(Named(*rows), described | {"sensors": ["front", "right"]}, sensors=["right"])
    assert others["sensors"] != facts["sensors"]
    assert others["units"].startswith("1 that the config does not name (check ")


def test_values_that_are_no_class_names_are_not_reported() -> None:
    rows = torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)
    assert "classes" not in own(Named(*rows, classes=(0, 1, 1, 0)))


def test_sizes_that_differ_within_a_site_may_between_sites() -> None:
    images = [(torch.zeros(3, 8, size), 0) for size in (8, 9)]
    facts = own(images)
    assert (facts["input"], facts["channels"]) == ("float32 (3, 8, ?)", "3")
    assert "channels" not in own([(torch.zeros(size, 8, 8), 0) for size in (1, 3)])
    assert "input" not in own([(torch.zeros(2), 0), (torch.zeros(2, 2), 0)])
    assert own([({"any": "thing"}, 0)])["input"] == "dict ()"


def test_a_data_set_without_readable_samples_reports_the_rest() -> None:
    class Hidden(Dataset[Any]):
        classes = ("a", "b")

        def __len__(self) -> int:
            return 1

    facts = own(Hidden(), classes="a,b")
    assert (facts["classes"], set(facts)) == ("2: a, b", {"classes", "code"})


def test_names_of_built_in_facts_are_refused() -> None:
    with pytest.raises(ConfigError, match="code"):
        own([(torch.zeros(2), 0)], {"code": "x"})
