"""A group of commands that names the nearest command when one is mistyped, with any click we support."""

from __future__ import annotations

import click

from fl_queue.common.spelling import nearest


class Group(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        name = args[0]
        # click itself knows what to say of an option.
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"No such command {name!r}{nearest(name, known)}")
        return super().resolve_command(ctx, args)
