"""Records are read as their dataclass declares them; errors name the place and quote no data."""

from __future__ import annotations

import ast
import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from fl_queue.common import schema
from fl_queue.common.schema import Finite, Invalid, Length, PlainData, Range
from tests.support import checkout

SECRET = "a patient's name"


class Colour(StrEnum):
    red = "red"
    blue = "blue"


@dataclass(frozen=True)
class Inner:
    count: Annotated[int, Range(0, 9)]
    name: Annotated[str, Length(5, printable=True)] = ""


@dataclass(frozen=True)
class Outer:
    inner: Inner
    colour: Colour = Colour.red
    kind: Literal["a", "b"] = "a"
    number: float | None = None
    either: int | str = 0
    seconds: Annotated[float, Finite(0.0)] = 0.0
    pairs: tuple[int, ...] = ()
    rows: list[Inner] = field(default_factory=list)
    weights: Mapping[str, int] = field(default_factory=dict)
    free: Annotated[Mapping[str, Any], PlainData(5, 4, 2)] = field(default_factory=dict)


@pytest.mark.parametrize("hint", [str | int, int | str])
def test_a_union_is_read_the_same_in_whichever_order_it_was_first_declared(hint: Any) -> None:
    with pytest.raises(Invalid, match="is a float, not text"):
        schema.check(hint, 1.5)


@pytest.mark.parametrize("hint", [float | int, int | float])
def test_a_whole_number_of_a_union_stays_one(hint: Any) -> None:
    assert type(schema.check(hint, 3)) is int


def test_a_record_is_read_with_the_records_in_it() -> None:
    raw = {
        "inner": {"count": 1},
        "colour": "blue",
        "number": 2,
        "either": "x",
        "pairs": [1, 2],
        "rows": [{"count": 3, "name": "x"}],
        "weights": {"a": 1},
        "free": {"a": [1, None]},
    }

    found = schema.parse(Outer, raw)

    assert found == Outer(
        Inner(1), Colour.blue, "a", 2, "x", 0.0, (1, 2), [Inner(3, "x")], {"a": 1}, {"a": [1, None]}
    )
    assert type(found.colour) is Colour


@pytest.mark.parametrize(
    ("changes", "place", "reason"),
    [
        ({"inner": {}}, "inner.count", "is missing"),
        ({"inner": SECRET}, "inner", "is a str, not a map"),
        ({"inner": {"count": True}}, "inner.count", "is a bool, not an integer"),
        ({"inner": {"count": 10}}, "inner.count", "is not 0 to 9"),
        ({"inner": {"count": 1, "name": SECRET}}, "inner.name", "has 16 characters, more than 5"),
        ({"inner": {"count": 1, "name": "\x1b"}}, "inner.name", "holds characters that cannot"),
        ({"other": SECRET}, "other", "is unknown"),
        ({"colour": SECRET}, "colour", "is not one of red, blue"),
        ({"kind": SECRET}, "kind", "is not one of a, b"),
        ({"number": SECRET}, "number", "is a str, not a number"),
        ({"number": 2**64}, "number", "is not an integer of 64 bits"),
        ({"either": 1.5}, "either", "is a float, not text"),
        ({"either": None}, "either", "is a NoneType, not text"),
        ({"seconds": math.inf}, "seconds", "is not a finite floating-point number, 0 or more"),
        ({"seconds": 1}, "seconds", "is not a finite floating-point number"),
        ({"pairs": [1, 2**64]}, "pairs[1]", "not an integer of 64 bits"),
        ({"rows": [{"count": 1}, {"count": -1}]}, "rows[1].count", "is not 0 to 9"),
        ({"weights": {"a": 1, "b": SECRET}}, "weights.b", "is a str"),
        ({"weights": {"\ud800": 1}}, r"weights.'\ud800'", "has half a character"),
        ({"free": {"a": [[1]]}}, "free", "is nested deeper than 2 levels"),
        ({"free": {"a": [1] * 5}}, "free", "holds more than 5 values"),
        ({"free": {"a": math.nan}}, "free", "holds a number that is not finite"),
        ({"free": {"a": 2**64}}, "free", "takes more than 64 bits"),
        ({"free": {"a": SECRET}}, "free", "has 16 characters, more than 4"),
    ],
)
def test_the_first_wrong_value_is_named_and_not_quoted(
    changes: dict[str, Any], place: str, reason: str
) -> None:
    with pytest.raises(Invalid) as caught:
        schema.parse(Outer, {"inner": {"count": 1}} | changes)

    assert caught.value.place == place
    assert caught.value.reason.startswith(reason) or reason in caught.value.reason
    assert SECRET not in str(caught.value)


def test_fields_with_a_default_may_be_made_necessary() -> None:
    with pytest.raises(Invalid, match="kind: is missing"):
        schema.parse(Outer, {"inner": {"count": 1, "name": ""}, "colour": "red"}, frozenset())


def test_a_type_that_json_does_not_have_is_an_error_of_the_programmer() -> None:
    with pytest.raises(TypeError, match="a record with a field of"):
        schema.check(bytes, b"")


# Records of the product


_READS = ("schema.parse", "safe_json.record", "safe_json.decode")


def _classes_read(path: Path) -> Iterator[tuple[str, str]]:
    """Module and class of each record that a file reads by schema."""
    text = path.read_text()
    # Every process of the suite does this when it collects: most files are not parsed, and none twice.
    if not any(name in text for name in _READS):
        return
    module = ".".join(path.relative_to(checkout.ROOT).with_suffix("").parts)
    for name in _names_read(ast.parse(text), ""):
        yield module.removesuffix(".__init__"), name


def _names_read(node: ast.AST, owner: str) -> Iterator[str]:
    """Classes that are read below a node. Args: ``owner``: the class around it."""
    if isinstance(node, ast.ClassDef):
        owner = node.name
    if isinstance(node, ast.Call) and ast.unparse(node.func) in _READS:
        name = ast.unparse(node.args[0])
        yield owner if name == "cls" else name
    for inner in ast.iter_child_nodes(node):
        yield from _names_read(inner, owner)


_RECORDS = sorted(
    {
        found
        for folder in ("fl_queue", "workers")
        for path in (checkout.ROOT / folder).rglob("*.py")
        if path.name not in ("schema.py", "safe_json.py")
        for found in _classes_read(path)
    }
)


def test_the_records_of_the_product_are_found() -> None:
    assert {name for _, name in _RECORDS} >= {
        "AwaitedUpdate", "BaselineModel", "DataWait", "Document", "Enrolment", "Header", "Manifest",
        "Receipt", "Refusals", "RoundRecord", "SiteReport", "JobTicket",
    }  # fmt: skip


@pytest.mark.parametrize(("module", "name"), _RECORDS)
def test_each_field_of_a_record_of_the_product_has_a_reader(module: str, name: str) -> None:
    owner = getattr(importlib.import_module(module), name)
    # A base class without fields reads the classes that are derived from it.
    kinds = [owner] if is_dataclass(owner) else owner.__subclasses__()
    assert kinds
    for kind in kinds:
        with pytest.raises(Invalid, match="is a NoneType, not a map"):
            schema.parse(kind, None)
