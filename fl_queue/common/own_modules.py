"""
Own modules come from the current folder; everything else never does.

Python puts the current folder first on the path of ``python -m``. A ``queue.py`` or a folder ``workers/``
of the user would then be imported in place of Python's and of ours, in each process that is started
there. So our processes are started without it (``-P``), and where a run or an option names an own
module, the folder is put last.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType


def python_command(*arguments: str) -> list[str]:
    """The command that runs Python here without the current folder on its path."""
    return [sys.executable, "-P", *arguments]


def import_own(name: str) -> ModuleType:
    """
    Import a module that may lie in the current folder; what is installed goes first.

    Raises:
        ImportError, SyntaxError, ValueError: As ``importlib.import_module``.
    """
    with suppress(FileNotFoundError):  # The folder was removed since.
        if (folder := str(Path.cwd())) not in sys.path:
            sys.path.append(folder)
    return importlib.import_module(name)


def defines(module: ModuleType, found: object) -> bool:
    """
    Whether a class or function is a module's own; of any other object, whether its class is.

    ``module:*`` allows that much. What a module has imported for itself (``subprocess.run``) would be called
    with arguments of a config.
    """
    return getattr(found, "__module__", None) == module.__name__
