"""``fl-queue redis``."""

from __future__ import annotations

import sys
import time
from urllib.parse import urlsplit

import click

from fl_queue.cli.options import Deployment, connection_options, interrupt_on_sigterm
from fl_queue.cli.output import print_line
from fl_queue.errors import ServerStartError
from fl_queue.store.embedded import redis_server, server_pair


@click.command("redis")
@click.option("--tcp", is_flag=True, help="Listen on free loopback ports too, behind a password.")
@connection_options
def redis_command(deployment: Deployment, tcp: bool) -> None:
    """
    Run private Redis servers in the foreground.

    Other fl-queue commands of this user find them in the state folder. The redis-cli command for each
    of them is printed. Ctrl-C stops them.
    """
    interrupt_on_sigterm()
    with server_pair.start(deployment.state_dir, tcp=tcp) as servers:
        print_line(f"control: {servers.url}")
        print_line(f"         {redis_cli_command(servers.url)}")
        print_line(f"data:    {servers.blob_url}")
        print_line(f"         {redis_cli_command(servers.blob_url)}")
        print_line("Other fl-queue commands of this user find them. Ctrl-C stops them.")
        sys.stdout.flush()
        while True:
            time.sleep(1.0)
            for role, url in (("control", servers.url), ("data", servers.blob_url)):
                # Ask again with a longer timeout: a busy server is not dead.
                if not (redis_server.answers(url) or redis_server.answers(url, timeout_s=10.0)):
                    log = deployment.state_dir / role / "redis.log"
                    reason = f"the private {role} server ended; see {log}"
                    raise ServerStartError(str(deployment.state_dir), reason)


def redis_cli_command(url: str) -> str:
    """Compose the redis-cli command for a server."""
    if url.startswith("unix://"):
        return f"redis-cli -s {url.removeprefix('unix://').split('?')[0]}"
    parts = urlsplit(url)
    # Not `-u`: every user of the machine may read the arguments of a process.
    return f"REDISCLI_AUTH={parts.password or ''} redis-cli -h {parts.hostname} -p {parts.port}"
