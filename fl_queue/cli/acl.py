"""``fl-queue acl``, for an operator who keeps Redis' users in a file, or sets them by hand."""

from __future__ import annotations

import click

from fl_queue.cli.options import json_option
from fl_queue.cli.output import print_json, print_line
from fl_queue.store import acl

#: Stands for the password's digest: passwords are neither arguments nor printed.
PLACEHOLDER = "#SHA256-OF-PASSWORD"


@click.command("acl")
@click.argument("clients", nargs=-1, metavar="[CLIENT]...")
@click.option(
    "--server-version",
    type=click.Choice(["6.2", "7.0"]),
    default="7.0",
    show_default=True,
    help="7.0 or newer: one Redis user for each client; 6.2 (no ACL selectors): three.",
)
@click.option(
    "--server",
    type=click.Choice(["both", "control", "data"]),
    default="both",
    show_default=True,
    help="Role of the server.",
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
    Print Redis users and their rules, to set them by hand.

    Those of each CLIENT, or without CLIENT those of the operator's side. In place of
    #SHA256-OF-PASSWORD write # and the output of `printf %s PASSWORD | sha256sum`. `fl-queue enroll`
    does all this for a client by itself.
    """
    major, minor = (int(part) for part in server_version.split("."))
    version = major, minor
    if clients:
        users = [user for name in clients for user in acl.users("client", name, version, server)]
    else:
        roles = [role for role in acl.ROLES if role != "client"]
        users = [user for role in roles for user in acl.users(role, "", version, server)]
    if as_json:
        print_json(
            [
                {"name": user.name, "purpose": user.purpose, "rules": list(user.rules)}
                for user in users
            ]
        )
        return
    for user in users:
        print_line(user.line(PLACEHOLDER) if style == "users.acl" else _setuser(user))


def _setuser(user: acl.User) -> str:
    # redis-cli takes quotes around a selector, which has blanks.
    quoted = [f'"{word}"' if " " in word else word for word in user.setuser(PLACEHOLDER)]
    return " ".join(("ACL SETUSER", *quoted))
