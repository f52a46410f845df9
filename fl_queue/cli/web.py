"""``fl-queue web``."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from fl_queue.cli.options import (
    Deployment,
    collect,
    connection_options,
    file_option,
    signing_option,
)
from fl_queue.cli.output import print_line, warn
from fl_queue.common.extras import how_to_install
from fl_queue.errors import ConfigError

_TOKEN_VARIABLE = "FLQ_WEB_TOKEN"


@dataclass(frozen=True)
class _Listen:
    """Address of the page."""

    host: str
    port: int
    uds: Path | None
    uds_mode: str


@dataclass(frozen=True)
class _Access:
    """Which browsers are let in."""

    hosts: tuple[str, ...]
    token_file: Path | None
    read_token_file: Path | None
    no_token: bool


@click.command("web")
@collect(
    "listen",
    _Listen,
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind."),
    click.option(
        "--port",
        default=5000,
        show_default=True,
        type=click.IntRange(0, 65535),
        help="Port to bind; 0: a free one.",
    ),
    click.option(
        "--uds",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="PATH",
        help="Unix socket to bind, for a proxy on this machine.",
    ),
    click.option(
        "--uds-mode",
        type=click.Choice(["0600", "0660"]),
        default="0600",
        show_default=True,
        help="Who may connect to --uds: this user, or also its group.",
    ),
)
@click.option(
    "--configs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of TOML files that can be started, in addition to the shipped ones.",
)
@collect(
    "access",
    _Access,
    click.option(
        "--allow-host",
        "hosts",
        multiple=True,
        metavar="NAME",
        help="Host name that browsers use for this server, such as that of a proxy; may be repeated.",
    ),
    file_option(
        "--token-file",
        help=f"File with the token, readable by you alone. Default: {_TOKEN_VARIABLE}, else a new one is printed.",
    ),
    file_option(
        "--read-token-file",
        help="File with a second token, which can neither change runs nor download models.",
    ),
    click.option(
        "--no-token",
        is_flag=True,
        help="Let every user of this machine in. On loopback or --uds alone, and without --allow-host.",
    ),
)
@connection_options
@signing_option
def web(deployment: Deployment, listen: _Listen, configs: Path | None, access: _Access) -> None:
    """
    Serve the web page and the JSON API.

    Needs the extra web. It has no state of its own, and stays up during outages of Redis. Open the link
    that is printed; each browser is asked for the token once. The second link is read-only.
    """
    try:
        from fl_queue.web.access import Access
        from fl_queue.web.connection import Connection
        from fl_queue.web.launch import Configs
        from fl_queue.web.server import ServerSettings, serve
    except ModuleNotFoundError as exc:
        reason = f"needs {exc.name}; {how_to_install('web')}"
        raise ConfigError("web", reason) from exc

    settings = ServerSettings(listen.host, listen.port, listen.uds, int(listen.uds_mode, 8))
    token, read_token, printed = _tokens(access)
    _check_exposure(access, settings.is_private, listen.host)

    # uvicorn repeats the signal to itself after its shutdown; the socket file must be removed before.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    def print_now(line: str) -> None:
        print_line(line)
        sys.stdout.flush()

    serve(
        Connection(deployment.open_control, deployment.state_dir),
        settings,
        Configs(configs),
        Access(token, frozenset(access.hosts), read_token),
        printed,
        print_now,
    )


def _check_exposure(access: _Access, is_private: bool, host: str) -> None:
    """Refuse an open page on a network; warn of plain HTTP. Raises ConfigError."""
    if access.no_token and access.hosts:
        reason = "cannot be used with --allow-host: a proxy lets other machines in"
        raise ConfigError("--no-token", reason)
    if access.no_token and not is_private:
        reason = f"cannot be used with --host {host}: other machines reach it; leave it out"
        raise ConfigError("--no-token", reason)
    if not is_private:
        warn(
            "Note: this is plain HTTP, so the token can be read on the network; docs/reference/web.md shows "
            "a proxy with TLS."
        )


def _tokens(access: _Access) -> tuple[str, str, list[str]]:
    """
    Read or make the tokens.

    Returns:
        The token, the read-only token, and the new ones among them, which are printed.

    Raises:
        ConfigError: A token cannot be used, or options contradict each other.
    """
    from fl_queue.web import tokens

    given = os.environ.get(_TOKEN_VARIABLE, "").strip()
    if access.no_token:
        for option, is_given in (
            ("--token-file", access.token_file),
            ("--read-token-file", access.read_token_file),
            (_TOKEN_VARIABLE, given),
        ):
            if is_given:
                raise ConfigError("--no-token", f"cannot be used with {option}")
        return "", "", []
    read_token = ""
    if access.read_token_file:
        read_token = tokens.read("--read-token-file", access.read_token_file)
    if access.token_file is None and not given:
        made = [tokens.made(), *([] if read_token else [tokens.made()])]
        return made[0], read_token or made[1], made
    if access.token_file:
        token = tokens.read("--token-file", access.token_file)
    else:
        token = tokens.checked(_TOKEN_VARIABLE, given)
    if token == read_token:
        raise ConfigError("--read-token-file", "has the same token as --token-file")
    return token, read_token, []
