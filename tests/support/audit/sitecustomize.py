"""
On the path of a process (``PYTHONPATH``), it notes in the folder ``FLQ_AUDIT`` what no process may do for a job.

Unpickling, shells, other programs, and whatever has to do with ``flq_owned``, the module that hostile
jobs name: its import, or text with that name that is compiled or run. One file a process, a JSON line
each: what, of what, and from where.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

MARK = "flq_owned"
_ALWAYS = (
    "pickle.find_class",
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
)
#: Seen for ours alone: Python itself compiles and runs texts, for example for named tuples.
_MARKED = ("import", "compile", "exec")
_busy = False


def _note(event: str, args: tuple[Any, ...]) -> None:
    global _busy
    if _busy or event not in _ALWAYS + _MARKED:
        return
    _busy = True
    try:
        text = _text(args)
        if event in _ALWAYS or MARK in text:
            _write(event, text)
    finally:
        _busy = False


def _text(args: tuple[Any, ...]) -> str:
    words = []
    for arg in args[:2]:
        if hasattr(arg, "co_names"):
            words += [arg.co_filename, *map(str, arg.co_names), *map(repr, arg.co_consts)]
        else:
            words.append(arg.decode(errors="replace") if isinstance(arg, bytes) else str(arg))
    return " ".join(words)


def _write(event: str, text: str) -> None:
    frame: FrameType | None = sys._getframe(1)
    where: list[str] = []
    while frame is not None and len(where) < 40:
        where.append(frame.f_code.co_filename)
        frame = frame.f_back
    line = {"event": event, "text": text[:500], "argv": sys.orig_argv[:6], "where": where}
    path = Path(os.environ["FLQ_AUDIT"]) / f"{os.getpid()}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


if "FLQ_AUDIT" in os.environ:
    Path(os.environ["FLQ_AUDIT"]).mkdir(exist_ok=True)
    _write("began", "")
    sys.addaudithook(_note)
