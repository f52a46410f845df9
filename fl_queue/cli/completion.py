"""
Shell completion: ``fl-queue completion``, and the arguments that complete names of runs and configs.

Completion prints no errors: without a Redis there are no names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import Parameter
from click.shell_completion import CompletionItem, get_completion_class

from fl_queue.cli.options import Deployment
from fl_queue.errors import FLQueueError

SHELLS = ("bash", "zsh")
_PROGRAM, _VARIABLE = "fl-queue", "_FL_QUEUE_COMPLETE"


@click.command("completion")
@click.argument("shell", metavar="SHELL", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """
    Print the script for TAB completion in your shell.

    SHELL is bash or zsh. Commands, options, names of runs, and configs are completed.

    For bash: `fl-queue completion bash > ~/.local/share/bash-completion/completions/fl-queue`; for
    zsh: `fl-queue completion zsh > FOLDER/_fl-queue`, with a FOLDER of your fpath.
    """
    found = get_completion_class(shell)
    assert found is not None
    root = click.get_current_context().find_root().command
    click.echo(found(root, {}, _PROGRAM, _VARIABLE).source())


def run_argument(name: str = "run", **options: Any) -> Callable[[Any], Any]:
    """Add an argument that completes names of runs. Args: ``options``: of ``click.argument``."""
    return click.argument(name, shell_complete=_runs, **options)


def config_argument(**options: Any) -> Callable[[Any], Any]:
    """Add an argument that completes shipped configs and TOML files. Args: ``options``: of ``click.argument``."""
    return click.argument("config", shell_complete=_configs, **options)


def _runs(context: click.Context, parameter: Parameter, begun: str) -> list[CompletionItem]:
    given = context.params
    names: list[str] = []
    with contextlib.suppress(FLQueueError):
        store = Deployment.of(
            given.get("redis_url") or "", given.get("blob_url") or "", given.get("state_dir")
        ).open_control()
        names = sorted(store.control.runs.names())
        store.close()
    return _beginning_with(begun, names)


def _configs(context: click.Context, parameter: Parameter, begun: str) -> list[CompletionItem]:
    from fl_queue.config import loading

    folder = Path(begun).parent
    with contextlib.suppress(OSError):
        files = sorted(str(path) for path in folder.glob("*.toml"))
        if found := _beginning_with(begun, [*loading.preset_names(), *files]):
            return found
    return [CompletionItem(begun, type="file")]  # The shell completes folders.


def _beginning_with(begun: str, names: list[str]) -> list[CompletionItem]:
    # A client can write other names to Redis; control characters must not reach the terminal.
    return [CompletionItem(name) for name in names if name.startswith(begun) and name.isprintable()]
