"""
The ``fl-queue`` command. Library code raises; here an error becomes one line and an exit code.

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import logging
import os
import sys

import click

from fl_queue._version import __version__
from fl_queue.cli import output
from fl_queue.cli.groups import LazyGroup
from fl_queue.common import collector, logs
from fl_queue.errors import FLQueueError, StoreUnavailable

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130
#: Heading in `fl-queue --help` -> command -> its module and function.
SECTIONS = {
    "Start here": {
        "demo": "demo:demo",
        "new": "new:new",
        "config": "config:config_group",
        "completion": "completion:completion",
    },
    "Runs": {
        "start-round": "start_round:start_round",
        "status": "status:status",
        "watch": "watch:watch",
        "history": "history:history",
        "events": "events:events",
        "evaluate": "evaluate:evaluate",
        "statistics": "statistics:statistics",
        "regression": "statistics:regression",
        "result": "statistics:result",
        "prepare": "prepare:prepare",
        "cancel": "lifecycle:cancel",
        "resume": "lifecycle:resume",
        "delete": "lifecycle:delete",
    },
    "Models": {
        "export": "export:export",
        "tag": "tag:tag",
        "plot": "plot:plot",
        "metrics": "metrics:metrics",
        "verify": "verify:verify_command",
    },
    "Sites": {
        "clients": "clients:clients",
        "keygen": "keys:keygen",
        "enroll": "enroll:enroll",
        "parties": "keys:parties",
        "revoke": "enroll:revoke",
        "approve": "approve:approve",
        "policy": "policy:policy",
        "ledger": "policy:ledger",
        "pause": "pause:pause",
        "unpause": "pause:unpause",
        "reload": "reload:reload",
    },
    "Operating": {
        "doctor": "doctor:doctor_command",
        "inspect": "inspect:inspect",
        "redrive": "lifecycle:redrive",
        "backup": "backup:backup",
        "restore": "backup:restore",
        "acl": "acl:acl_command",
    },
    "Experiments": {
        "try-task": "try_task:try_task",
        "partition": "partition:partition_command",
        "baseline": "baseline:baseline",
        "sweep": "sweep:sweep",
        "compare": "compare:compare_command",
    },
    "Processes": {
        "worker": "worker:worker",
        "redis": "redis:redis_command",
        "web": "web:web",
        "prometheus": "prometheus:prometheus",
    },
}
#: Command -> its module and function.
COMMANDS = {name: target for part in SECTIONS.values() for name, target in part.items()}


@click.group(
    cls=LazyGroup, sections=SECTIONS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="fl-queue")
@click.option(
    "--log-format",
    envvar=logs.VARIABLE,
    type=click.Choice(logs.FORMATS),
    default=logs.TEXT,
    help="Format of the log on standard error, of this command and of the processes it starts.",
)
def cli(log_format: str) -> None:
    """
    Federated learning over Redis: data owners train one model together, and their data stay with them.

    Start with `fl-queue demo`. A federation needs a Redis, `fl-queue worker aggregator`, one
    `fl-queue worker client --client ID` for each data owner, and `fl-queue start-round CONFIG`.

    Exit codes: 0 ok, 1 unexpected error or a failed check of `doctor`, 2 usage or config, 3 bad data or
    model, 4 run or round failed, or `verify` found a difference, 5 Redis not reachable, 130 interrupted. With --json an error is a JSON object on standard error.
    """
    if log_format != os.environ.get(logs.VARIABLE, logs.TEXT):
        os.environ[logs.VARIABLE] = log_format
    logs.set_up(logging.WARNING, "%(levelname)s %(name)s: %(message)s")


def main() -> None:
    """Run the command line; the console script ``fl-queue``."""
    collector.leave_at_exit()
    sys.exit(_run())


def _run() -> int:
    try:
        cli(standalone_mode=False)
    except FLQueueError as exc:
        return _fail(type(exc).__name__, str(exc), exc.exit_code)
    except click.ClickException as exc:
        if _wants_json():
            return _fail("UsageError", exc.format_message(), exc.exit_code)
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has closed the pipe; Python's flush at exit would fail again.
        sys.stdout = None
    except Exception as exc:
        from fl_queue.store.error_translation import in_words, is_redis

        if not is_redis(exc):
            raise
        # An error of a Redis server is no defect of the program: one line, no traceback.
        message = f"Redis: {' '.join(in_words(exc).split())}"
        return _fail(StoreUnavailable.__name__, message, StoreUnavailable.exit_code)
    return 0


def _wants_json() -> bool:
    # An error may come before options are parsed, so the arguments are searched.
    return "--json" in sys.argv[1:]


def _fail(kind: str, message: str, code: int) -> int:
    if logs.is_json():
        log.error("%s", message, extra={"exit_code": code})
    else:
        output.print_error(kind, message, code, as_json=_wants_json())
    return code
