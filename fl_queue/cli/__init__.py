"""
The ``fl-queue`` command. Library code raises; here an error becomes one line and an exit code.

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import logging
import sys

import click

from fl_queue import __version__
from fl_queue.cli import backups, operating, reading, running
from fl_queue.errors import FLQueueError

EXIT_UNEXPECTED = 1
EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fl-queue")
def cli() -> None:
    """
    Federated learning as a message-queue pipeline over Redis.

    Start with `fl-queue demo`. A federation needs a Redis, `fl-queue worker aggregator`, one
    `fl-queue worker client --client ID` for each data owner, and `fl-queue start-round CONFIG`.

    Exit codes: 0 ok, 1 unexpected, 2 usage or config, 3 bad blob or data, 4 round abandoned or
    run failed, 5 Redis unreachable, 130 interrupted.
    """


for command in (*running.COMMANDS, *operating.COMMANDS, *reading.COMMANDS, *backups.COMMANDS):
    cli.add_command(command)


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
