"""
The command that serves: ``web``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from fl_queue.cli.common import Where, connection_options, say, signing_option
from fl_queue.errors import ConfigError
from fl_queue.extras import how_to_install


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
    "--configs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of TOML files that can be launched, besides the shipped ones.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Name that browsers may call this server by; may be repeated.",
)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the token. Default: FLQ_WEB_TOKEN; on loopback none is needed.",
)
@signing_option
@connection_options
def web(
    where: Where,
    host: str,
    port: int,
    configs: Path | None,
    hosts: tuple[str, ...],
    token_file: Path | None,
) -> None:
    """
    Serve the page that shows and steers runs, and the JSON API.

    Needs the extra web. It holds no state, and stays through outages of Redis. Bound to anything
    but loopback it asks for a token, which it prints unless you set one.
    """
    try:
        from fl_queue.web.connection import Connection
        from fl_queue.web.launch import Configs
        from fl_queue.web.serve import serve
    except ModuleNotFoundError as exc:
        reason = f"needs {exc.name}; {how_to_install('web')}"
        raise ConfigError("web", reason) from exc

    def tell(line: str) -> None:
        say(line)
        sys.stdout.flush()

    serve(
        Connection(where.open_control, where.state_dir),
        host,
        port,
        Configs(configs),
        _token(token_file),
        hosts,
        tell,
    )


def _token(file: Path | None) -> str:
    """The token that was set, if any."""
    if file is None:
        return os.environ.get("FLQ_WEB_TOKEN", "").strip()
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("--token-file", f"{file} cannot be read: {exc}") from exc
    if not token:
        raise ConfigError("--token-file", f"{file} is empty; write the token into it")
    return token
