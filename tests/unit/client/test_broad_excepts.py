"""No broad except of the client's side swallows RQ's timeout."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fl_queue

FOLDER = Path(fl_queue.__file__).parent
BROAD = [
    (path, node)
    for package in ("client", "models", "tasks", "training")
    for path in sorted((FOLDER / package).glob("*.py"))
    if path.name != "torch_file.py"  # A child process, in which no timeout of RQ's is raised.
    # Every process of the suite does this when it collects: most files are not parsed.
    if re.search(r"except(:| (Base)?Exception\b)", path.read_text())
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Try)
    and any(
        handler.type is None or ast.unparse(handler.type) in ("Exception", "BaseException")
        for handler in node.handlers
    )
]


@pytest.mark.parametrize(("path", "node"), BROAD, ids=lambda value: getattr(value, "stem", ""))
def test_a_broad_except_lets_the_timeout_through_first(path: Path, node: ast.Try) -> None:
    first = node.handlers[0]

    assert first.type is not None
    assert "TimedOut" in ast.unparse(first.type)
    assert ast.unparse(first.body[0]) == "raise"


def test_there_are_such_excepts() -> None:
    assert {path.stem for path, _ in BROAD} >= {"resident", "round_job", "scoring_job"}
