"""
The command that serves: ``web``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click

from fl_queue.cli.options import Where, complain, connection_options, say, signing_option
from fl_queue.common.extras import how_to_install
from fl_queue.errors import ConfigError

_TOKEN_VARIABLE = "FLQ_WEB_TOKEN"
_file = click.Path(dir_okay=False, path_type=Path)


@click.command("web")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option(
    "--port",
    default=5000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to bind; 0: a free one.",
)
@click.option(
    "--uds", type=_file, metavar="PATH", help="Unix socket to bind, for a proxy on this machine."
)
@click.option(
    "--uds-mode",
    type=click.Choice(["0600", "0660"]),
    default="0600",
    show_default=True,
    help="Who may connect to --uds: this user, or its group, too.",
)
@click.option(
    "--configs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of TOML files that can be launched, besides the shipped ones.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Name that browsers may call this server by, that of a proxy, say; may be repeated.",
)
@click.option(
    "--token-file",
    type=_file,
    help=f"File with the token, which only you can read. Default: {_TOKEN_VARIABLE}; else one is made and printed.",
)
@click.option(
    "--read-token-file",
    type=_file,
    help="File with a second token, which can read, and neither change nor download models.",
)
@click.option(
    "--no-token",
    is_flag=True,
    help="Let every user of this machine in. Only on loopback or --uds, and without --allow-host.",
)
@connection_options
@signing_option
def web(
    where: Where,
    host: str,
    port: int,
    uds: Path | None,
    uds_mode: str,
    configs: Path | None,
    hosts: tuple[str, ...],
    token_file: Path | None,
    read_token_file: Path | None,
    no_token: bool,
) -> None:
    """
    Serve the page that shows and steers runs, and the JSON API.

    Needs the extra web. It holds no state, and stays through outages of Redis. Open the link that it
    prints: the token in it is asked for once in each browser. A second link is for who may only look.
    """
    try:
        from fl_queue.web.access import Access
        from fl_queue.web.connection import Connection
        from fl_queue.web.launch import Configs
        from fl_queue.web.server import ServerSettings, serve
    except ModuleNotFoundError as exc:
        reason = f"needs {exc.name}; {how_to_install('web')}"
        raise ConfigError("web", reason) from exc

    place = ServerSettings(host, port, uds, int(uds_mode, 8))
    token, read_token, printed = _tokens(token_file, read_token_file, no_token)
    if no_token and hosts:
        raise ConfigError("--no-token", "goes without --allow-host: a proxy lets others in")
    if no_token and not place.is_private:
        reason = f"goes without --host {host}: other machines reach it; leave it out"
        raise ConfigError("--no-token", reason)
    if not place.is_private:
        complain(
            "Note: this is plain HTTP, so whoever is on the network between can read the token; "
            "docs/reference/web.md shows a proxy with TLS."
        )

    # uvicorn sends itself the signal again when it has ended; a socket file must go before this does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    def tell(line: str) -> None:
        say(line)
        sys.stdout.flush()

    access = Access(token, frozenset(hosts), read_token)
    serve(
        Connection(where.open_control, where.state_dir),
        place,
        Configs(configs),
        access,
        printed,
        tell,
    )


def _tokens(
    file: Path | None, read_file: Path | None, no_token: bool
) -> tuple[str, str, list[str]]:
    """
    The token, that to read only, and those that were made here.

    Raises:
        ConfigError: A token cannot be used, or options contradict each other.
    """
    from fl_queue.web import tokens

    given = os.environ.get(_TOKEN_VARIABLE, "").strip()
    if no_token:
        for option, is_given in (
            ("--token-file", file),
            ("--read-token-file", read_file),
            (_TOKEN_VARIABLE, given),
        ):
            if is_given:
                raise ConfigError("--no-token", f"goes without {option}")
        return "", "", []
    read_token = tokens.read("--read-token-file", read_file) if read_file else ""
    if file is None and not given:
        made = [tokens.made(), *([] if read_token else [tokens.made()])]
        return made[0], read_token or made[1], made
    token = tokens.read("--token-file", file) if file else tokens.checked(_TOKEN_VARIABLE, given)
    if token == read_token:
        raise ConfigError("--read-token-file", "has the same token as --token-file")
    return token, read_token, []
