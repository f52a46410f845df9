"""The documents are true: rendered files are fresh, every command, key and error is there."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fl_queue import errors
from fl_queue.cli import COMMANDS, cli
from fl_queue.config import rendering, run_config
from fl_queue.store import keyspace

ROOT = Path(__file__).parent.parent


def test_rendered_files_are_fresh() -> None:
    assert (ROOT / "config/default.toml").read_text() == rendering.render_defaults()
    assert (ROOT / "docs/config.md").read_text() == rendering.render_reference()


@pytest.mark.parametrize("name", run_config.preset_names())
def test_every_shipped_config_is_accepted(name: str) -> None:
    assert run_config.load(name, environ={}).run["rounds"] >= 1


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs/cli.md").read_text()

    assert [name for name in COMMANDS if f"fl-queue {name}" not in text] == []


def test_every_error_has_its_exit_code_documented() -> None:
    text = (ROOT / "docs/cli.md").read_text()
    classes = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    ]

    assert [name for name in classes if f"`{name}`" not in text] == []


def test_every_key_is_in_the_schema() -> None:
    text = (ROOT / "docs/redis.md").read_text()
    keys = re.findall(r"^    (flq:\S+)", keyspace.__doc__ or "", re.MULTILINE)

    assert len(keys) > 15
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_the_code_map_has_a_row_for_every_module() -> None:
    """And none of a module that is gone. A package without rows of its own modules has one row."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text.split("## Code map")[1].split("\n## ")[0]
    firsts = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    rows = [name for first in firsts for name in re.findall("`([^`]+)`", first)]
    there = [*modules("fl_queue", ""), *modules("fl_queue/store", "store/")]
    there += [*modules("workers", "workers/"), "workers/"]
    there += [f"{init.parent.name}/" for init in (ROOT / "fl_queue").glob("*/__init__.py")]
    assert sorted(rows) == sorted(there)


def modules(folder: str, prefix: str) -> list[str]:
    found = (path.stem for path in (ROOT / folder).glob("*.py"))
    return [prefix + name for name in found if not name.startswith("__")]


def test_links_in_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())

    assert [link for link in links if not (ROOT / link).exists()] == []


def test_nothing_but_clients_and_the_evaluator_imports_torch() -> None:
    allowed = {
        "alone.py",
        "api.py",
        "loader.py",
        "personal.py",
        "portable.py",
        "precision.py",
        "reproducible.py",
        "rows.py",
        "scoring.py",
        "sgd.py",
        "tasks",
        "tensors.py",
        "training.py",
    }
    found = [
        path.relative_to(ROOT / "fl_queue").parts[0]
        for path in (ROOT / "fl_queue").rglob("*.py")
        if re.search(r"^\s*(import|from) torch", path.read_text(), re.MULTILINE)
    ]

    assert set(found) <= allowed


def test_fl_queue_never_imports_workers() -> None:
    found = [
        path.name
        for path in (ROOT / "fl_queue").rglob("*.py")
        if re.search(r"^\s*(import|from) workers", path.read_text(), re.MULTILINE)
    ]

    assert found == []


def test_the_lines_of_help_are_those_of_the_commands() -> None:
    for name, (_, line) in COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.get_short_help_str(limit=200) == line


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from fl_queue.cli import cli; cli(['--help'], standalone_mode=False);"
        "sys.exit(bool({'redis', 'numpy', 'rich', 'rq'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_no_command_has_a_password_in_it() -> None:
    """Every user of a machine reads the arguments of its processes, and the shell keeps what was typed."""
    with_password = re.compile(r"://[^\s/@]*:(?![$%])[^\s/@]+@|--password[ =]|(^|\s)-a \S*PASSWORD")
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
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


SECURITY = (ROOT / "docs/security.md").read_text()


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


def test_the_security_page_says_of_each_key_why_it_is_believed() -> None:
    table = SECURITY.split("## What is read from Redis, and believed\n")[1].split("\n## ")[0]
    keys = set(re.findall(r"^    (flq:\S+)", keyspace.__doc__ or "", re.MULTILINE))
    said = set(re.findall(r"`(flq:[^`]+)`", table))

    assert keys - said == set()
    assert said - keys == set()
