"""
The command ``acl``: rules for an operator who keeps Redis' users in a file, or sets them by hand.
"""

from __future__ import annotations

import click

from fl_queue.cli.options import json_option, say, write_json
from fl_queue.store import acl

#: Stands for the password: none is ever an argument, and none is made here.
PLACEHOLDER = "#SHA256-OF-PASSWORD"


@click.command("acl")
@click.argument("clients", nargs=-1, metavar="[CLIENT]...")
@click.option(
    "--server-version",
    type=click.Choice(["6.2", "7.0"]),
    default="7.0",
    show_default=True,
    help="7.0 or newer: a client is one user. 6.2: it is three, as there are no selectors.",
)
@click.option(
    "--server",
    type=click.Choice(["both", "control", "data"]),
    default="both",
    show_default=True,
    help="What the server is used for.",
)
@click.option(
    "--format",
    "style",
    type=click.Choice(["users.acl", "setuser"]),
    default="users.acl",
    show_default=True,
    help="Lines of an aclfile, or ACL SETUSER commands for redis-cli.",
)
@json_option
def acl_command(
    clients: tuple[str, ...], server_version: str, server: acl.Server, style: str, as_json: bool
) -> None:
    """
    Print the Redis users of CLIENTs, or of the operator's side, and their rules.

    In place of #SHA256-OF-PASSWORD put # and what `printf %s PASSWORD | sha256sum` says.
    `fl-queue enroll` sets the users of a client and makes their passwords by itself.
    """
    major, minor = (int(part) for part in server_version.split("."))
    version = major, minor
    if clients:
        users = [user for who in clients for user in acl.users("client", who, version, server)]
    else:
        roles = [role for role in acl.ROLES if role != "client"]
        users = [user for role in roles for user in acl.users(role, "", version, server)]
    if as_json:
        write_json(
            [
                {"name": user.name, "purpose": user.purpose, "rules": list(user.rules)}
                for user in users
            ]
        )
        return
    for user in users:
        if style == "users.acl":
            say(user.line(PLACEHOLDER))
        else:
            # redis-cli takes quotes around a selector, which has blanks.
            quoted = [f'"{word}"' if " " in word else word for word in user.setuser(PLACEHOLDER)]
            say(" ".join(("ACL SETUSER", *quoted)))
