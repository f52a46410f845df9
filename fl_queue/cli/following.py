"""A run that a command starts, and follows until it has ended."""

from __future__ import annotations

from contextlib import ExitStack

from fl_queue.cli.options import Deployment
from fl_queue.cli.output import warn
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import runs
from fl_queue.experiments import launching
from fl_queue.reporting import progress, rich_console
from fl_queue.store import RunState, Store


def completed(
    started: ExitStack, deployment: Deployment, name: str, config: RunConfig, what: str
) -> tuple[Store, RunState]:
    """
    Start a run, or go on with it, and wait for its end; at once, if it has ended.

    Args:
        started: Ends what the run needs of this process.
        what: What ``fl-queue result`` shows of it, after an interruption.

    Raises:
        RunStateError: It failed, or has another config.
        StoreUnavailable: Redis is not reachable.
    """
    console = rich_console.console(stderr=True)
    begun = launching.launch(
        started, deployment.site(), name, config, None, stays=True, console=console
    )
    try:
        progress.follow(begun.store, begun.run, console, since=begun.since)
    except KeyboardInterrupt:
        warn(f"Run {name} goes on; see its {what} with `fl-queue result {name}`.")
        raise
    state = runs.find_run(begun.store, begun.run)
    runs.raise_unless_completed(state)
    return begun.store, state
