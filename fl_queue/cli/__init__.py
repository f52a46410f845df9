"""
The ``fl-queue`` command. Library code raises; here an error becomes one line and an exit code.

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import cast

import click

from fl_queue import __version__
from fl_queue.errors import FLQueueError

EXIT_UNEXPECTED = 1
EXIT_INTERRUPTED = 130
#: Command -> module and name of the object.
COMMANDS = {
    "demo": "running:demo",
    "start-round": "running:start_round",
    "redis": "running:redis_command",
    "worker": "working:worker",
    "resume": "operating:resume",
    "cancel": "operating:cancel",
    "redrive": "operating:redrive",
    "delete": "operating:delete",
    "verify": "operating:verify_command",
    "status": "reading:status",
    "watch": "reading:watch",
    "history": "reading:history",
    "clients": "reading:clients",
    "events": "reading:events",
    "plot": "reading:plot",
    "export": "reading:export",
    "inspect": "reading:inspect",
    "config": "reading:config_group",
    "doctor": "reading:doctor_command",
    "backup": "backups:backup",
    "restore": "backups:restore",
}


class _Lazy(click.Group):
    """A command's module is imported when the command is asked for: a restarted worker is in a hurry."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        return cast(click.Command, getattr(importlib.import_module(f"fl_queue.cli.{module}"), name))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fl-queue")
def cli() -> None:
    """
    Federated learning as a message-queue pipeline over Redis.

    Start with `fl-queue demo`. A federation needs a Redis, `fl-queue worker aggregator`, one
    `fl-queue worker client --client ID` for each data owner, and `fl-queue start-round CONFIG`.

    Exit codes: 0 ok, 1 unexpected, 2 usage or config, 3 bad blob or data, 4 round abandoned or
    run failed, 5 Redis unreachable, 130 interrupted.
    """


def main() -> None:
    """Run the command line; the console script ``fl-queue``."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(_run())


def _run() -> int:
    try:
        cli(standalone_mode=False)
    except FLQueueError as exc:
        click.echo(f"Error: {exc}", err=True)
        return exc.exit_code
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has enough; nothing more can be written, not even at exit.
        sys.stdout = None
    return 0
