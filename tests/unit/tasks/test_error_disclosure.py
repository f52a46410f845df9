"""What of an error leaves a site: its class, fields of the config, numbers, and its public text; nothing else."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_queue import errors
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import (
    ConfigError,
    DataError,
    HeaderError,
    MessageError,
    ModelMismatch,
    StoreUnavailable,
    Trouble,
)
from fl_queue.protocol.header import Header, packed
from fl_queue.tasks.error_disclosure import FULL, class_name, disclosed, words_of

SECRET = "Erika Musterfrau"
OWN = f"""
from fl_queue.errors import ConfigError, DataError

def reads():
    raise ValueError("cannot convert {SECRET}")

def refuses():
    raise ConfigError("task.hidden", "is odd at {SECRET}")

def names():
    raise type("{SECRET.replace(" ", "")}", (KeyError,), {{}})("{SECRET}")
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunConfig]:
    """A run of an own task, whose code lies in a folder that only the site has."""
    (tmp_path / "told_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield RunConfig.from_dict(
        {"run": {"task": "told_own:Task"}, "task": {"hidden": 3, "names": ["a", "b, c"]}}
    )
    sys.modules.pop("told_own", None)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("reads", f"ValueError (line 5 of told_own); {FULL}"),
        ("refuses", f"ConfigError (task.hidden, line 8 of told_own); {FULL}"),
        ("names", f"KeyError (line 11 of told_own); {FULL}"),
    ],
)
def test_of_a_custom_tasks_error_class_and_line_are_disclosed(
    config: RunConfig, what: str, expected: str
) -> None:
    own = importlib.import_module("told_own")
    with pytest.raises(Exception) as caught:  # noqa: PT011
        getattr(own, what)()

    assert disclosed(caught.value, config) == expected
    assert "told_own" not in disclosed(caught.value)  # Without a config that name is not known.


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError(SECRET, f"line 3: {SECRET}"), f"DataError; {FULL}"),
        (
            DataError(SECRET, f"line 3: {SECRET}", public="line 3, column 2: not a number"),
            f"DataError: line 3, column 2: not a number; {FULL}",
        ),
        (DataError(SECRET, "is empty", public=True), f"DataError: is empty; {FULL}"),
        (ConfigError("task.classes", "is empty", public=True), "task.classes: is empty"),
        (ConfigError(SECRET, "is empty"), f"ConfigError; {FULL}"),
        (ModelMismatch(f"tensor {SECRET}"), f"ModelMismatch; {FULL}"),
        (ModelMismatch("tensor w: missing", public=True), "ModelMismatch: tensor w: missing"),
        (MessageError(SECRET), f"MessageError; {FULL}"),
        (FileNotFoundError(2, "No such file", SECRET), f"FileNotFoundError; {FULL}"),
        (
            StoreUnavailable(f"unix:///{SECRET}", f"not reachable ({SECRET})", Trouble.silent),
            f"StoreUnavailable: Redis does not answer in time; {FULL}",
        ),
    ],
)
def test_an_error_discloses_its_public_text_or_its_class(error: Exception, expected: str) -> None:
    assert disclosed(error, RunConfig.from_dict({})) == expected
    assert SECRET not in expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": 4711 * 2**64}, "takes more than 64 bits"),
        ({"a": [float("nan")]}, "holds a number that is not finite"),
        ({SECRET * 1000: 1}, "has 16000 characters, more than 4096"),
    ],
)
def test_a_header_that_cannot_be_written_names_its_field(value: object, expected: str) -> None:
    header = Header(kind="evaluation", run="demo-3f2a9c", round=1, client="a", environment=value)  # type: ignore[arg-type]
    with pytest.raises(HeaderError) as caught:
        packed(header)

    assert str(caught.value) == f"header field environment: {expected}"
    assert disclosed(caught.value) == f"HeaderError: header field environment: {expected}"


def test_every_kind_of_error_is_private_unless_declared_public() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.FLQueueError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        made = kind.__new__(kind)
        assert disclosed(made) == f"{kind.__name__}; {FULL}"


def test_a_class_made_at_run_time_is_called_as_the_first_that_a_module_defines() -> None:
    assert class_name(type(SECRET, (), {})) == "object"
    assert class_name(type("Erika", (DataError,), {})) == "DataError"
    assert class_name(DataError) == "DataError"


def test_the_words_of_a_config_are_those_of_its_task_table(config: RunConfig) -> None:
    assert {"a", "b", "c", "hidden", "3"} <= words_of(config)
    assert SECRET not in words_of(config)
