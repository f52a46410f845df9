"""TOML text is read back by the standard library's parser as the same values."""

from __future__ import annotations

import math
import tomllib
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_queue.common import toml_text

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    _TEXTS,
    st.dates(date(1000, 1, 1)),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(_TEXTS, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(_VALUES)
def test_a_value_is_one_line_and_is_read_back(value: Any) -> None:
    text = toml_text.value_text(value)

    assert "\n" not in text
    assert tomllib.loads(f"v = {text}") == {"v": value}


@given(st.dictionaries(_TEXTS, _VALUES, max_size=4))
def test_a_document_is_read_back(tables: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text.dumps(tables)) == tables


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (1e-05, "1e-05"),
        (0.1, "0.1"),
        (math.inf, "inf"),
        ("a\x7f", '"a\\u007f"'),
        ('é "', '"é \\""'),
        ((1, [0.5, "a"]), '[1, [0.5, "a"]]'),
        ({"a b": 1, "c": {"d": []}}, '{ "a b" = 1, c = { d = [] } }'),
        ({}, "{}"),
    ],
)
def test_the_text_of_a_value(value: object, text: str) -> None:
    assert toml_text.value_text(value) == text


def test_lines_of_a_certificate_stay_lines() -> None:
    pem = "-----BEGIN-----\nabc\n-----END-----\n"

    text = toml_text.dumps({"tls": {"ca": pem}}, multiline=True)

    assert text == f'[tls]\nca = """\n{pem}"""\n'
    assert tomllib.loads(text)["tls"]["ca"] == pem


def test_none_has_no_text() -> None:
    with pytest.raises(TypeError):
        toml_text.value_text({"a": [None]})
