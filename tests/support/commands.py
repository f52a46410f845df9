"""The ``fl-queue`` command line in this process, for tests that are not about its process."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from fl_queue import cli


@dataclass(frozen=True)
class CommandResult:
    """What a finished command leaves; the fields of ``subprocess.CompletedProcess``."""

    returncode: int
    stdout: str
    stderr: str


def fl_queue(
    *arguments: str,
    environment: Mapping[str, str],
    folder: Path | None = None,
    typed: str = "",
) -> CommandResult:
    """
    Run a command to its end: parsing, errors and exit code are those of the console script.

    A process of its own would import everything again, which takes longer than most commands.

    Args:
        environment: All of it.
        folder: The working directory; default: that of the tests.
        typed: Standard input.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        _environment(environment),
        _arguments(arguments, typed),
        _log_handlers(),
        chdir(folder or Path.cwd()),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            cli.main()
            status: str | int | None = 0
        except SystemExit as exc:
            status = exc.code
    assert isinstance(status, int), status
    return CommandResult(status, out.getvalue(), err.getvalue())


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _arguments(arguments: tuple[str, ...], typed: str) -> Iterator[None]:
    before = sys.argv, sys.stdin
    sys.argv, sys.stdin = ["fl-queue", *arguments], io.StringIO(typed)
    try:
        yield
    finally:
        sys.argv, sys.stdin = before


@contextmanager
def _log_handlers() -> Iterator[None]:
    """Undo the command's set-up of logging, which writes to its own standard error."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
