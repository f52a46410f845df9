"""Tests stand where the modules stand: each module has a test file of its name, or a line that names the file that covers it."""

from __future__ import annotations

import ast
import re
from configparser import ConfigParser
from functools import cache
from pathlib import Path

from setuptools import find_packages

from tests.support import order
from tests.support.checkout import ROOT

UNIT = ROOT / "tests/unit"
LIST = UNIT / "covered_elsewhere.txt"
PACKAGE = ROOT / "fl_queue"


def modules() -> list[str]:
    """Every module of ``fl_queue`` that is no ``__init__``, as ``package/module``."""
    return sorted(
        str(path.relative_to(PACKAGE).with_suffix(""))
        for path in PACKAGE.rglob("*.py")
        if path.stem not in ("__init__", "__main__")
    )


def has_own_tests(module: str) -> bool:
    """Whether ``tests/unit`` has a file of the module's name, with or without a suffix."""
    folder, name = (UNIT / module).parent, Path(module).name
    return (folder / f"test_{name}.py").is_file() or any(folder.glob(f"test_{name}_*.py"))


def covered_elsewhere() -> dict[str, str]:
    """Module -> the test file that covers it, below ``tests``."""
    lines = [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split() for line in lines)


@cache
def words_of(module: str) -> frozenset[str]:
    """A module's name, and what it defines for others."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    defined = (ast.FunctionDef, ast.ClassDef)
    names = {node.name for node in tree.body if isinstance(node, defined)}
    return frozenset({Path(module).name} | {name for name in names if not name.startswith("_")})


@cache
def importers() -> dict[str, set[str]]:
    """Name of a module, without its package -> the names of those that import it."""
    found: dict[str, set[str]] = {}
    for module in modules():
        text = (PACKAGE / f"{module}.py").read_text()
        for line in re.findall(r"^ *(?:from|import) fl_queue[^(\n]*(?:\([^)]*\))?", text, re.M):
            for word in re.findall(r"\w+", line):
                found.setdefault(word, set()).add(Path(module).name)
    return found


def mentions(text: str, module: str) -> bool:
    """Whether a test has a name of the module, or that of a module which imports it."""
    own = Path(module).name
    words = words_of(module) | importers().get(own, set())
    plain = text.replace("-", "_")
    return any(
        re.search(rf"(?<![A-Za-z0-9]){re.escape(word.strip('_'))}(?![A-Za-z0-9])", plain)
        for word in words
    )


def test_every_module_has_a_test_file_of_its_name_or_a_line_that_names_one() -> None:
    listed = covered_elsewhere()
    missing = [m for m in modules() if m not in listed and not has_own_tests(m)]

    assert missing == [], f"write tests/unit/PACKAGE/test_MODULE.py, or add a line to {LIST}"


def test_the_list_names_modules_without_a_file_of_their_own_and_is_sorted() -> None:
    listed = list(covered_elsewhere())

    assert sorted(set(listed) - set(modules())) == []
    assert [module for module in listed if has_own_tests(module)] == []
    assert listed == sorted(listed)


def test_the_files_of_the_list_mention_what_they_cover() -> None:
    wrong = [
        f"{module} {name}"
        for module, name in covered_elsewhere().items()
        if not (path := ROOT / "tests" / name).is_file() or not mentions(path.read_text(), module)
    ]

    assert wrong == []


def declared() -> ConfigParser:
    """``setup.cfg``, parsed."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_a_wheel_has_every_package() -> None:
    listed = set(declared()["options"]["packages"].split())

    # The presets are the folder config/ of the checkout.
    found = find_packages(str(ROOT), include=["fl_queue*", "workers*"])
    assert listed - {"fl_queue.presets"} == set(found)


def test_a_wheel_has_every_data_file() -> None:
    data = declared()["options.package_data"]
    patterns = {
        folder_of(package): [part.strip() for part in text.split(",")]
        for package, text in data.items()
    }
    inside = {
        path for folder, parts in patterns.items() for part in parts for path in folder.glob(part)
    }
    wanted = {
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".py" and path.parent.name != "__pycache__"
    } | {*(ROOT / "config").glob("*.toml"), *(ROOT / "config/grafana").glob("*.json")}

    assert wanted - inside == set()


def folder_of(package: str) -> Path:
    """The folder of a package in the checkout."""
    if package == "fl_queue.presets":
        return ROOT / "config"
    return ROOT / package.replace(".", "/")


def test_the_files_that_the_suite_begins_with_are_there() -> None:
    named = [*order.LONGEST, *order.FOLDERS]
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []
