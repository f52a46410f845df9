"""Every field of the hashes of runs and rounds is parsed: one that the parser omits would keep its default."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

import pytest

from fl_queue.errors import MessageError
from fl_queue.protocol.state import RoundState, RunState, parse_round_state, parse_run_state

#: By type of the field: text that is none of the defaults.
TEXTS = {
    "str": "x",
    "int": "7",
    "float": "7.5",
    "int | None": "7",
    "float | None": "7.5",
    "tuple[str, ...]": '["x"]',
    "Purpose": "initialise",
    "Mode": "async",
    "RunPhase": "training",
    "RoundPhase": "open",
    "Panel | None": '{"clients": ["x"], "quorum": 1, "lost": []}',
    "Mapping[str, int]": '{"x": 7}',
    "Mapping[str, float]": '{"x": 7.5}',
    "Mapping[str, list[float]]": '{"x": [7.5]}',
    "Mapping[str, Mapping[str, int]]": '{"x": {"round": 7}}',
}
#: Fields that take less than their type.
NAMED = {
    "digest": "0" * 64,
    "base_digest": "0" * 64,
    "download": "0" * 64,
    "config_digest": "0" * 64,
    "inputs": "0" * 64,
    "server_state": f'{{"x": "{"0" * 64}"}}',
}


#: Those of secure rounds lie beside the others.
SECURE = {
    "stage": "unmask",
    "secure": '{"bits": 32, "degree": 2, "threshold": 2, "min_cohort": 3}',
    "parties": f'{{"x": ["{"1" * 64}", "{"2" * 128}", "key"]}}',
    "roster": "3" * 64,
    "survivors": "4" * 64,
    "confirmations": "5" * 64,
}


def filled(kind: type, key: str) -> dict[str, str]:
    """A hash with a value for every field but its key's."""
    return SECURE | {
        each.name: NAMED.get(each.name) or TEXTS.get(str(each.type), '{"x": "y"}')
        for each in fields(kind)
        if each.name not in (key, "secure")
    }


def default(each: Field[Any]) -> Any:
    return each.default_factory() if each.default_factory is not MISSING else each.default


@pytest.mark.parametrize("kind", [RunState, RoundState])
def test_every_field_is_read(kind: type) -> None:
    read: RunState | RoundState
    if kind is RunState:
        read = parse_run_state("run-1", filled(RunState, "run_id"))
    else:
        read = parse_round_state(7, filled(RoundState, "number"))

    unread = [each.name for each in fields(kind) if getattr(read, each.name) == default(each)]
    assert unread == []


def test_the_fields_of_a_secure_round_are_read_and_written() -> None:
    found = parse_round_state(7, filled(RoundState, "number")).secure

    assert found is not None
    assert [each.name for each in fields(found) if not getattr(found, each.name)] == []
    assert found.parties["x"].signer == "key"
    assert found.fields() == {name: SECURE[name] for name in ("stage", "secure", "parties")} | {
        "secure": '{"bits":32,"degree":2,"min_cohort":3,"threshold":2}',
        "parties": f'{{"x":["{"1" * 64}","{"2" * 128}","key"]}}',
    }


@pytest.mark.parametrize("field", ["stage", "secure", "parties", "roster"])
def test_other_fields_of_a_secure_round_are_refused_by_name(field: str) -> None:
    with pytest.raises(MessageError, match=field):
        parse_round_state(7, filled(RoundState, "number") | {field: "?"})
