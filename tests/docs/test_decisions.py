"""The records of decisions: numbered, of one form, and listed in their index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

FOLDER = ROOT / "docs/architecture/decisions"
RECORDS = sorted(FOLDER.glob("[0-9]*.md"))


def test_numbers_have_no_gap() -> None:
    assert [int(path.name[:4]) for path in RECORDS] == list(range(1, len(RECORDS) + 1))
    assert len(RECORDS) >= 12


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_has_status_context_decision_and_consequences(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"# {int(path.name[:4])}. ")
    assert re.search(r"^Status: (accepted|superseded by \[\d+\])", text, re.MULTILINE)
    found = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert found == ["Context", "Decision", "Consequences"]


def test_the_index_has_each_record_with_its_title() -> None:
    index = (FOLDER / "README.md").read_text()
    titles = {path.name: path.read_text().splitlines()[0].split(". ", 1)[1] for path in RECORDS}
    assert [name for name, title in titles.items() if f"[{title}]({name})" not in index] == []
