"""
The ``fl-queue`` command. Library code raises; here an error becomes one line and an exit code.

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import importlib
import logging
import sys

import click

from fl_queue import __version__
from fl_queue.errors import FLQueueError

EXIT_UNEXPECTED = 1
EXIT_INTERRUPTED = 130
#: Command -> the module that has it.
MODULES = {
    "demo": "running",
    "start-round": "running",
    "redis": "running",
    "worker": "working",
    "resume": "operating",
    "cancel": "operating",
    "redrive": "operating",
    "delete": "operating",
    "verify": "operating",
    "status": "reading",
    "watch": "reading",
    "history": "reading",
    "clients": "reading",
    "events": "reading",
    "plot": "reading",
    "export": "reading",
    "inspect": "reading",
    "config": "reading",
    "doctor": "reading",
    "backup": "backups",
    "restore": "backups",
}


class _Lazy(click.Group):
    """A command's module is imported when the command is asked for: a restarted worker is in a hurry."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in MODULES:
            return None
        module = importlib.import_module(f"fl_queue.cli.{MODULES[cmd_name]}")
        commands: tuple[click.Command, ...] = module.COMMANDS
        return next(command for command in commands if command.name == cmd_name)


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
