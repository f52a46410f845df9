"""
Check that functions are short, and that "Whether ..." describes only functions that return a bool.

``python -m scripts.check_functions PATH ...`` prints each violation and exits with status 1. Ruff counts
statements and complexity, not lines, and cannot compare a docstring with an annotation.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

#: Lines of a function, with its docstring.
MAX_LINES = 50


def problems(path: Path) -> Iterator[str]:
    """
    Violations in one file.

    Yields:
        ``file:line: name ...``, one for each function.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > MAX_LINES:
            yield f"{path}:{node.lineno}: {node.name} has {lines} lines, above {MAX_LINES}"
        returns = ast.unparse(node.returns) if node.returns else ""
        if (ast.get_docstring(node) or "").startswith("Whether") and "bool" not in returns:
            yield f'{path}:{node.lineno}: {node.name} begins "Whether", and returns {returns}'


def main(arguments: list[str]) -> int:
    """Print the problems below the given paths; return the exit status."""
    files = [
        file
        for argument in arguments
        for file in (
            sorted(Path(argument).rglob("*.py")) if Path(argument).is_dir() else [Path(argument)]
        )
    ]
    found = [line for file in files for line in problems(file)]
    print("\n".join(found) or f"{len(files)} files: no function above {MAX_LINES} lines")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
