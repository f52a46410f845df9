"""The page of the Python API is rendered from the code, and has every public name."""

from __future__ import annotations

import importlib

import pytest

from scripts import python_reference
from tests.support.checkout import ROOT

PAGE = ROOT / "docs/reference/python.md"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text() == python_reference.render(), "run `make docs`"


@pytest.mark.parametrize("name", python_reference.MODULES)
def test_every_public_name_has_a_heading(name: str) -> None:
    text = PAGE.read_text()
    part = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
    names = [public for public, _ in python_reference.public(importlib.import_module(name))]

    assert len(names) >= 4
    assert [public for public in names if f"\n### {public}\n" not in part] == []


def test_a_docstring_becomes_markdown() -> None:
    found = python_reference.markdown(
        """
        Take ``x``, <all> of *it*.

        As in::

            import this

        Args:
            x: A number,
                of any size.
            **rest: The others.

        Returns:
            Its square.
        """
    )

    assert found == (
        "Take `x`, &lt;all> of \\*it\\*.\n\nAs in:\n\n```python\nimport this\n```\n\n**Args**\n\n"
        "- `x`: A number, of any size.\n- `**rest`: The others.\n\n**Returns**\n\nIts square.\n"
    )


def test_a_long_signature_has_a_line_for_each_argument() -> None:
    text = PAGE.read_text()

    assert "#### Run.start\n\n```python\nRun.start(\n    source: str | Path,\n    *,\n" in text
    assert "\n    quiet: bool = False,\n) -> Run\n```\n" in text
