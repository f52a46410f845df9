"""Groups of commands: suggestions for mistyped names, and the lazy group behind ``fl-queue``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import click

from fl_queue.common import collector, telemetry
from fl_queue.common.spelling import nearest


class Group(click.Group):
    """A group that suggests the nearest command for a mistyped one, with every supported click."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or fail with the nearest name."""
        known = self.list_commands(ctx)
        name = args[0]
        # click reports unknown options itself.
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"No such command {name!r}{nearest(name, known)}")
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """
    A group that imports a command's module when the command is used, and not for ``--help``.

    The worker processes that are restarted after a crash pass through here, and imports are most of their
    start-up time.

    Args:
        sections: Heading in the help -> command -> ``module:function`` below ``fl_queue.cli``.
    """

    def __init__(
        self, *args: object, sections: Mapping[str, Mapping[str, str]], **kwargs: object
    ) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.sections = sections
        self.targets = {name: target for part in sections.values() for name, target in part.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of the help."""
        return list(self.targets)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of that name."""
        if cmd_name not in self.targets:
            return None
        module, _, name = self.targets[cmd_name].partition(":")
        with collector.paused(), telemetry.left_out():
            imported = importlib.import_module(f"fl_queue.cli.{module}")
        return cast(click.Command, getattr(imported, name))

    def summary(self, command: str) -> str:
        """First line of a command's help, read from its source file instead of an import."""
        module, _, name = self.targets[command].partition(":")
        source = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
        found = re.search(
            rf'^def {name}\(.*?"""\s*(.+?)(?:"""|\n)', source, re.DOTALL | re.MULTILINE
        )
        return found[1] if found else ""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under their headings."""
        width = max(map(len, self.targets))
        for heading, commands in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), self.summary(name)) for name in commands])
