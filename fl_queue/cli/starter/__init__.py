"""
A small task of one's own that runs at once: code, config, test and README, from the templates beside
this file.

What is written depends on fl-queue alone, and is meant to be changed.
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
        name: Of the task: letters, digits and dashes, a letter first.
        folder: Where; it is made, whole or not at all.

    Returns:
        The files.

    Raises:
        ConfigError: The name cannot be one of a task.
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
    The module of a task of that name: ``my-task`` -> ``my_task``.

    Raises:
        ConfigError: It cannot be a module, or would hide one that there is.
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
