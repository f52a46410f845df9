"""
Write a small task of the user's own: code, config, test and README, from the templates in this folder.

The result runs as it is, and is meant to be changed.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import shutil
from pathlib import Path
from string import Template

from fl_queue.errors import ConfigError, DataError

_TEMPLATES = Path(__file__).parent
#: Template -> name of the file it becomes.
FILES = {
    "task.py.txt": "{module}.py",
    "config.toml.txt": "{name}.toml",
    "test.py.txt": "test_{module}.py",
    "README.md.txt": "README.md",
}


def write(name: str, folder: Path) -> list[Path]:
    """
    Write a task into a folder that does not exist yet.

    Args:
        name: Name of the task: letters, digits and dashes, a letter first.
        folder: Folder to create, completely or not at all.

    Returns:
        The files.

    Raises:
        ConfigError: The name is not allowed.
        DataError: The folder exists, or cannot be written.
    """
    module = module_of(name)
    if folder.exists():
        raise DataError(str(folder), "exists, and nothing is overwritten; choose another name")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    words = {"name": name, "module": module}
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for template, file in FILES.items():
            text = Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(words)
            (unfinished / file.format(**words)).write_text(text, encoding="utf-8")
        unfinished.rename(folder)
    except OSError as exc:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise DataError(str(folder), f"cannot be written: {exc.strerror or exc}") from exc
    return [folder / file.format(**words) for file in FILES.values()]


def module_of(name: str) -> str:
    """
    Make the name of a task's module: ``my-task`` -> ``my_task``.

    Raises:
        ConfigError: It is not a valid module name, or would hide an installed module.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,40}", name):
        raise ConfigError(
            "NAME", f"{name!r} is no name of a task; use letters, digits and dashes, a letter first"
        )
    module = name.lower().replace("-", "_")
    if keyword.iskeyword(module):
        raise ConfigError("NAME", f"{name!r} is a word of Python; choose another name")
    if importlib.util.find_spec(module) is not None:
        raise ConfigError("NAME", f"there is a Python module {module} already; choose another name")
    return module
