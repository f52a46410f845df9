"""
Output of the commands: lines, tables and JSON on standard output, warnings and errors on standard error.

Names and reasons come from Redis, so control characters are escaped in all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click

from fl_queue.common import escaping


def print_line(line: str, err: bool = False) -> None:
    """Print one line on standard output, or with ``err`` on standard error."""
    click.echo(escaping.line(line), err=err)


def warn(line: str) -> None:
    """Print one line on standard error."""
    print_line(line, err=True)


def print_text(text: str) -> None:
    """Print a text of several lines, without an added line break."""
    click.echo(escaping.block(text), nl=False)


def print_json(value: Any) -> None:
    """Print one JSON document, indented, with sorted keys."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=str)
    click.echo(escaping.json_text(text))


def print_json_line(value: Any) -> None:
    """Print one JSON document on one line, for a command that prints a stream of them."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    click.echo(escaping.json_text(text))


def print_result(as_json: bool, record: Any, lines: Iterable[str]) -> None:
    """Print the outcome of a command: as JSON, or else as lines of text."""
    if as_json:
        print_json(record)
        return
    for line in lines:
        print_line(line)


def print_error(kind: str, message: str, code: int, *, as_json: bool) -> None:
    """
    Print why the command failed, on standard error.

    Args:
        kind: Name of the error's class.
        code: The command's exit code.
        as_json: Print ``{"error": {"code", "type", "message"}}`` instead of a line.
    """
    if as_json:
        error = {"error": {"code": code, "type": kind, "message": message}}
        click.echo(escaping.json_text(json.dumps(error, ensure_ascii=False)), err=True)
    else:
        warn(f"Error: {message}")
