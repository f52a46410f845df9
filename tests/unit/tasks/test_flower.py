"""A Flower client's name: who lets its code in, and what happens without the flwr package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fl_queue.config.run_config import RunConfig
from fl_queue.config.task_catalog import flower_client, own_code
from fl_queue.errors import ConfigError
from fl_queue.tasks.loading import load_task

MARK = "was_imported"


@pytest.fixture
def roses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module ``roses``; the file appears when it is imported."""
    mark = tmp_path / MARK
    (tmp_path / "roses.py").write_text(f"open({str(mark)!r}, 'w').close()\nclient = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "roses", raising=False)
    return mark


def config_of(**options: object) -> RunConfig:
    return RunConfig.from_dict({"run": {"task": "flower:roses:client"}, "task": options})


@pytest.mark.parametrize(
    ("allow", "options"),
    [
        ((), {}),
        (("roses:other", "flower:roses:other", "flower:*", "*:*", "flower:roses"), {}),
        (("roses:client",), {"flower_model": "gardens:Rose"}),
        (("roses:client",), {"flower_model": "roses:Rose"}),
    ],
)
def test_code_that_is_not_allowed_is_not_imported(
    roses: Path, allow: tuple[str, ...], options: dict[str, object]
) -> None:
    config = config_of(**options)

    with pytest.raises(ConfigError, match=r"may not load .*--task-allow"):
        load_task(config.run.task, config, allow)

    assert not roses.exists()


@pytest.mark.parametrize("allowed", ["roses:client", "roses:*", "flower:roses:client"])
def test_without_the_package_the_extra_is_named(
    roses: Path, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    for module in ("flwr", "flwr.app"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "fl_queue.tasks.flower", raising=False)
    monkeypatch.delitem(sys.modules, "fl_queue.tasks.flower_adapter", raising=False)
    config = config_of()

    with pytest.raises(ConfigError, match=r'pip install "\S+\[flower\]"') as caught:
        load_task(config.run.task, config, [allowed])

    assert caught.value.field == "run.task"
    assert not roses.exists()


def test_which_code_a_task_is() -> None:
    assert flower_client("flower:roses:client") == "roses:client"
    assert own_code("flower:roses:client", {"flower_model": "roses:Rose"}) == ("roses:client", "roses:Rose")  # fmt: skip
    assert own_code("flower:roses:client", {"model": "roses:Rose"}) == ("roses:client",)
    # A module of that name is one like any other.
    assert (flower_client("flower:Rose"), own_code("flower:Rose", {})) == ("", ("flower:Rose",))
    assert own_code("mnist-2nn", {}) == ()
