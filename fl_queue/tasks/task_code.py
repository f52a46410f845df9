"""
The code of a task that this process runs: the digest of its file as it was imported, and whether the file is another now.

No Redis here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from blake3 import blake3

Code = Callable[..., Any] | ModuleType


class CodeChanged(Exception):
    """A task's file was edited after this process had imported it: another process is to do the job."""


#: Module -> its import (the module's spec, which a reload replaces) and the digests of its files.
_imported: WeakKeyDictionary[ModuleType, tuple[Any, dict[str, str]]] = WeakKeyDictionary()


def imported_digest(code: Code) -> str:
    """
    BLAKE3 (hex) of the source file of a task's code, of the content that this process has imported.

    The file is read when this is first asked, which ``load_task`` does; empty when there is none (a REPL).
    """
    source = _source(code)
    module = code if isinstance(code, ModuleType) else sys.modules.get(code.__module__)
    if not source or module is None:
        return _digest(source)
    spec = getattr(module, "__spec__", None)
    known = _imported.get(module)
    if known is None or known[0] is not spec:
        known = _imported[module] = (spec, {})
    if source not in known[1]:
        known[1][source] = _digest(source)
    return known[1][source]


def check_unchanged(code: Code) -> None:
    """Raises CodeChanged if the file of a task's code has another content than this process has imported."""
    if imported_digest(code) != _digest(_source(code)):
        raise CodeChanged(f"{getattr(code, '__module__', '') or code.__name__} was edited")


def _source(code: Code) -> str:
    try:
        return inspect.getsourcefile(code) or ""
    except TypeError:
        return ""


def _digest(source: str) -> str:
    try:
        return blake3(Path(source).read_bytes()).hexdigest() if source else ""
    except OSError:
        return ""
