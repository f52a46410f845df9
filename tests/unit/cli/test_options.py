"""Options of the same name are the same on every command, and every command that prints data takes ``--json``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import click
import pytest

from fl_queue.cli import COMMANDS, SECTIONS, cli

#: Commands that serve until they are stopped, or whose output is a script for a shell.
WITHOUT_JSON = {
    "completion",
    "prometheus",
    "redis",
    "web",
    "worker aggregator",
    "worker client",
    "worker evaluator",
    "worker pool",
}
#: The short form of an option, wherever the long one is.
SHORT = {
    "--output": "-o",
    "--redis-url": "-r",
    "--follow": "-f",
    "--yes": "-y",
}


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", command.commands[sub]) for sub in command.commands)
        else:
            yield name, command


def options(command: click.Command) -> list[click.Option]:
    return [found for found in command.params if isinstance(found, click.Option)]


def test_every_command_that_prints_data_takes_json() -> None:
    without = {
        name
        for name, command in commands()
        if not any("--json" in option.opts for option in options(command))
    }

    assert without == WITHOUT_JSON


@pytest.mark.parametrize("long", SHORT)
def test_short_options_are_the_same_everywhere(long: str) -> None:
    found = {
        name: [opt for opt in option.opts if opt != long]
        for name, command in commands()
        for option in options(command)
        if long in option.opts
    }

    assert len(found) > 1
    assert {name: shorts for name, shorts in found.items() if shorts != [SHORT[long]]} == {}


def test_no_short_option_means_two_things() -> None:
    meanings = defaultdict(set)
    for _, command in commands():
        for option in options(command):
            for short in option.opts:
                if not short.startswith("--"):
                    meanings[short].add(next(opt for opt in option.opts if opt.startswith("--")))

    assert {short: longs for short, longs in meanings.items() if len(longs) > 1} == {}


def test_every_option_has_help() -> None:
    silent = {
        f"{name} {option.opts[-1]}"
        for name, command in commands()
        for option in options(command)
        if not option.help
    }

    assert silent == set()


def test_help_shows_every_command_under_one_of_seven_headings() -> None:
    text = cli.get_help(click.Context(cli, info_name="fl-queue"))
    names = [name for part in SECTIONS.values() for name in part]

    assert [heading for heading in SECTIONS if f"\n{heading}:\n" not in text] == []
    assert len(SECTIONS) == 7
    assert sorted(names) == sorted(set(names))
    assert [name for name in names if f"\n  {name} " not in text] == []
