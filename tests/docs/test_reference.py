"""The documents are true: rendered files are fresh, every command, key and error is there."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys

import click
import pytest

from fl_queue import errors
from fl_queue.cli import COMMANDS, cli
from fl_queue.cli.groups import LazyGroup
from fl_queue.config import loading, rendering
from fl_queue.store import key_table
from scripts import commands_reference
from tests.support.checkout import ROOT


def test_rendered_files_are_fresh() -> None:
    assert (ROOT / "config/default.toml").read_text() == rendering.render_defaults()
    assert (ROOT / "docs/reference/config.md").read_text() == rendering.render_reference()
    commands = (ROOT / "docs/reference/cli.md").read_text()
    assert commands_reference.render() in commands
    assert commands == commands_reference.replaced(commands)


@pytest.mark.parametrize("name", loading.preset_names())
def test_every_shipped_config_is_accepted(name: str) -> None:
    assert loading.load(name, environ={}).run.rounds >= 1


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs/reference/cli.md").read_text()

    assert [name for name in COMMANDS if f"fl-queue {name}" not in text] == []


def error_classes() -> list[type[errors.FLQueueError]]:
    """The public classes of ``fl_queue.errors``."""
    return [
        value
        for name, value in vars(errors).items()
        if inspect.isclass(value)
        and issubclass(value, errors.FLQueueError)
        and not name.startswith("_")
    ]


def test_every_error_has_its_exit_code_documented() -> None:
    text = (ROOT / "docs/reference/cli.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", text.partition("## Exit codes")[2], re.MULTILINE)
    documented = {
        (name, int(code)) for code, names in rows for name in re.findall(r"`([A-Z]\w+)`", names)
    }

    assert documented == {(kind.__name__, kind.exit_code) for kind in error_classes()}


def test_every_error_has_one_plain_sentence() -> None:
    for kind in error_classes():
        first = (kind.__doc__ or "").strip().partition("\n")[0]
        assert first.partition(". Args")[0].rstrip(".").count(". ") == 0, kind.__name__
        assert first.endswith("."), kind.__name__


def test_every_error_stands_in_the_tree() -> None:
    """But ``WrongType``, which is an error of redis-py, too: the tree does not import redis-py."""
    elsewhere = {
        f"{path.relative_to(ROOT)}:{node.name}"
        for folder in ("fl_queue", "workers")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
        and path != ROOT / "fl_queue/errors.py"
        and {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        & {kind.__name__ for kind in error_classes()}
    }

    assert elsewhere == {"fl_queue/store/wrong_types.py:WrongType"}


def test_every_key_is_in_the_schema() -> None:
    text = (ROOT / "docs/reference/redis.md").read_text()
    keys = [key.pattern for key in key_table.KEYS]

    assert len(keys) > 15
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_the_table_of_packages_has_a_row_for_each() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text.split("## Packages")[1].split("## Where do I add")[0]
    firsts = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    rows = [name for first in firsts for name in re.findall("`([^`]+)/`", first)]
    there = [init.parent.name for init in (ROOT / "fl_queue").glob("*/__init__.py")]
    assert sorted(rows) == sorted([*there, "workers"])


def test_files_that_the_architecture_names_exist() -> None:
    """By their path from the root, from fl_queue, or in the table of packages from the row's package."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| `(\w+)/`.*\| (.*) \|$", text, re.MULTILINE)
    inside = {
        f"{folder}/{name}" for folder, names in rows for name in re.findall(r"`([^`]+\.py)`", names)
    }
    others = text.split("## Packages")[0] + text.split("## Where do I add")[1]
    named = inside | set(re.findall(r"`([a-z_/]+\.(?:py|lua))`", others))
    missing = [
        name
        for name in named
        if not ((ROOT / name).exists() or (ROOT / "fl_queue" / name).exists())
    ]

    assert len(named) > 40
    assert missing == []


def test_every_module_has_a_docstring() -> None:
    files = [*(ROOT / "fl_queue").rglob("*.py"), *(ROOT / "workers").glob("*.py")]
    silent = [path for path in files if not ast.get_docstring(ast.parse(path.read_text()))]

    assert len(files) > 180
    assert silent == []


def test_what_begins_with_whether_answers() -> None:
    """A function that raises begins with Refuse ... or Raise ...: it returns no bool."""
    files = [*(ROOT / "fl_queue").rglob("*.py"), *(ROOT / "workers").glob("*.py")]
    functions = [
        (path.name, node)
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and (ast.get_docstring(node) or "").startswith("Whether")
    ]

    assert len(functions) > 50
    assert [
        (name, node.name)
        for name, node in functions
        if ast.unparse(node.returns or ast.Constant(None)) == "None"
    ] == []


@pytest.mark.parametrize(
    "package",
    [
        "common",
        "protocol",
        "metrics",
        "strategies",
        "data",
        "aggregation",
        "config",
        "store",
        "models",
        "coordinator",
    ],
)
def test_nothing_but_clients_and_the_evaluator_imports_torch(package: str) -> None:
    """All modules of a package, and all that they import in turn."""
    code = (
        "import importlib, pkgutil, sys\n"
        f"top = importlib.import_module('fl_queue.{package}')\n"
        "for found in pkgutil.walk_packages(getattr(top, '__path__', []), top.__name__ + '.'):\n"
        "    importlib.import_module(found.name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fl_queue_never_imports_workers() -> None:
    found = [
        path.name
        for path in (ROOT / "fl_queue").rglob("*.py")
        if re.search(r"^\s*(import|from) workers", path.read_text(), re.MULTILINE)
    ]

    assert found == []


def test_the_lines_of_help_are_those_of_the_commands() -> None:
    assert isinstance(cli, LazyGroup)
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert cli.summary(name) == command.get_short_help_str(limit=200)
        assert 20 < len(cli.summary(name)) <= 65  # One line of a terminal of 80 columns.


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from fl_queue.cli import cli; cli(['--help'], standalone_mode=False);"
        "sys.exit(bool({'redis', 'numpy', 'rich', 'rq'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_no_command_has_a_password_in_it() -> None:
    """Every user of a machine reads the arguments of its processes, and the shell keeps what was typed."""
    with_password = re.compile(r"://[^\s/@]*:(?![$%])[^\s/@]+@|--password[ =]|(^|\s)-a \S*PASSWORD")
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    blocks = {
        page.name: re.findall(r"^```[^\n]*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        for page in pages
    }
    units = [*(ROOT / "config/systemd").glob("*"), *ROOT.glob("docker-compose*.yml")]
    blocks |= {path.name: [path.read_text()] for path in [*units, ROOT / "Dockerfile"]}
    found = [
        f"{name}: {line.strip()}"
        for name, texts in blocks.items()
        for text in texts
        for line in text.splitlines()
        if with_password.search(line) or "--url $FLQ" in line
    ]

    assert found == []
    assert sum(len(texts) for texts in blocks.values()) > 60


SECURITY = (ROOT / "docs/guides/security.md").read_text()


def test_each_promise_of_the_security_page_names_tests_that_there_are() -> None:
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    table = SECURITY.split("## Defences\n")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    named = re.findall(r"`(tests/[\w/.]*|test_\w+\.py)`", SECURITY)

    assert len(rows) > 20
    assert [
        row for row in rows if not re.search(r"`(tests/|test_\w+\.py)", row.split("|")[3])
    ] == []
    assert [name for name in named if not name.startswith("tests/") and name not in there] == []
    assert [
        name for name in named if name.startswith("tests/") and not (ROOT / name).exists()
    ] == []


def test_the_security_page_has_a_reason_to_trust_each_key() -> None:
    table = SECURITY.split("## What is read from Redis, and believed\n")[1].split("\n## ")[0]
    keys = {key.pattern for key in key_table.KEYS}
    documented = set(re.findall(r"`(flq:[^`]+)`", table))

    assert keys - documented == set()
    assert documented - keys == set()
