"""
What the commands share: the connection options, and one way to write results.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from fl_queue.client.site import WorkerSettings
from fl_queue.common import escaping, state_folder
from fl_queue.common.redis_url import has_password
from fl_queue.common.spelling import nearest
from fl_queue.config.task_catalog import MNIST, TASKS
from fl_queue.errors import ConfigError, DataError
from fl_queue.protocol import operator_key as operatorkey
from fl_queue.store import PEOPLE, Store, Timeouts
from fl_queue.store.embedded import server_pair

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Where:
    """Where Redis, this machine's state and, if it was named, the operator's key are, as the options said."""

    url: str
    blob_url: str
    state_dir: Path
    operator_key: Path | None = None

    @classmethod
    def of(cls, url: str, blob_url: str, state_dir: Path | None) -> Where:
        """As the options are; None: the default folder. Raises ConfigError: others can write there."""
        return cls(url, blob_url, state_folder.check(_state_folder(state_dir)))

    def open(self, timeouts: Timeouts = PEOPLE) -> Store:
        """Both Redis roles, checked. Raises StoreUnavailable."""
        return Store.open(
            self.url,
            self.blob_url,
            self.state_dir,
            timeouts=timeouts,
            operator_key=self.operator_key,
        )

    def open_control(self) -> Store:
        """The same, for what the control server alone can answer; only that one is checked."""
        return Store.open(
            self.url,
            self.blob_url,
            self.state_dir,
            timeouts=PEOPLE,
            needs_data=False,
            operator_key=self.operator_key,
        )

    def site(self) -> WorkerSettings:
        """For a process of this machine."""
        key = str(self.operator_key) if self.operator_key else ""
        return WorkerSettings(self.url, self.blob_url, self.state_dir, operator_key=key)


def _state_folder(given: Path | None) -> Path:
    return (given or server_pair.default_state_dir()).absolute()


_state_dir_option = click.option(
    "--state-dir",
    envvar="FLQ_STATE_DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder of this machine's state. Default: ~/.local/state/fl-queue.",
)


def state_option(command: Command) -> Command:
    """Add ``--state-dir``; the command, which needs no Redis, gets the folder as ``state_dir``."""

    @_state_dir_option
    @functools.wraps(command)
    def wrapped(*args: Any, state_dir: Path | None, **kwargs: Any) -> Any:
        # Root at a site: what it writes is that of the folder's owner, whose worker reads it.
        with state_folder.visited(_state_folder(state_dir)) as folder:
            return command(*args, state_dir=folder, **kwargs)

    return wrapped  # type: ignore[return-value]


def connection_options(command: Command) -> Command:
    """Add ``--redis-url``, ``--blob-url`` and ``--state-dir``; the command gets them as ``where``."""

    @click.option(
        "--redis-url",
        envvar="FLQ_REDIS_URL",
        default="",
        help="Control server. Default: the private servers of the state folder.",
    )
    @click.option(
        "--blob-url",
        envvar="FLQ_REDIS_BLOB_URL",
        default="",
        help="Data server. Default: the control server.",
    )
    @_state_dir_option
    @functools.wraps(command)
    def wrapped(
        *args: Any, redis_url: str, blob_url: str, state_dir: Path | None, **kwargs: Any
    ) -> Any:
        _warn_of_passwords()
        where = Where.of(redis_url, blob_url, state_dir)
        return command(*args, where=where, **kwargs)

    return wrapped  # type: ignore[return-value]


def signing_option(command: Command) -> Command:
    """Add ``--operator-key`` to a command that has, above it, the connection options; ``where`` has the path."""

    @click.option(
        "--operator-key",
        envvar=operatorkey.VARIABLE,
        type=click.Path(dir_okay=False, path_type=Path),
        default=None,
        help=f"The operator's secret key. Default: {operatorkey.FILE} in the state folder.",
    )
    @functools.wraps(command)
    def wrapped(*args: Any, where: Where, operator_key: Path | None, **kwargs: Any) -> Any:
        named = operator_key.absolute() if operator_key is not None else None
        return command(*args, where=replace(where, operator_key=named), **kwargs)

    return wrapped  # type: ignore[return-value]


def set_option(
    text: str = "Override a field; may be repeated.",
) -> Callable[[Command], Command]:
    """Add ``--set``; the command gets it as ``overrides``. Args: ``text``: its help."""
    return click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=text)


def data_folder(given: str) -> str:
    """
    What ``--data`` names, absolute; empty when it was not given.

    Raises:
        DataError: It is no folder.
    """
    if given and not Path(given).is_dir():
        raise DataError(given, "is not a folder; give --data the folder of this site's data")
    return str(Path(given).absolute()) if given else ""


def check_imports(option: str, given: tuple[str, ...]) -> None:
    """Raises ConfigError if an option does not name things in modules."""
    for name in given:
        if ":" not in name:
            raise ConfigError(option, f"{name!r} is not MODULE:NAME")


def check_tasks(option: str, given: tuple[str, ...]) -> None:
    """Raises ConfigError if an option does not name tasks: built-in ones, or things in modules."""
    known = (MNIST, *TASKS)
    for name in given:
        if ":" not in name and name not in known:
            raise ConfigError(
                option,
                f"{name!r} is not MODULE:NAME, nor a built-in task: {', '.join(known)}"
                f"{nearest(name, known)}",
            )


def _checked_strategies(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...]:
    check_imports("--strategy-allow", given)
    return given


def strategy_option(command: Command) -> Command:
    """Add ``--strategy-allow``; the command gets it as ``strategy_allow``."""
    return click.option(
        "--strategy-allow",
        multiple=True,
        metavar="MODULE:CLASS",
        callback=_checked_strategies,
        help="An own strategy that may be loaded here; may be repeated.",
    )(command)


def _warn_of_passwords() -> None:
    context = click.get_current_context()
    for option in ("redis_url", "blob_url"):
        on_command_line = context.get_parameter_source(option) is ParameterSource.COMMANDLINE
        if on_command_line and has_password(context.params.get(option, "")):
            say(
                f"Warning: every user of this machine can read the password in --{option.replace('_', '-')}; "
                "name the URL in FLQ_REDIS_URL and FLQ_REDIS_BLOB_URL instead.",
                err=True,
            )


def output_option(explained: str, *, required: bool = True) -> Callable[[Command], Command]:
    """Add ``-o``, a file to write; the command gets it as ``output``. Args: ``explained``: its help."""
    return click.option(
        "-o",
        "--output",
        required=required,
        type=click.Path(dir_okay=False, path_type=Path),
        help=explained,
    )


def device_options(command: Command) -> Command:
    """Add ``--device`` and ``--threads``, for a command that trains in this process."""
    threads = click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
    device = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
    return device(threads(command))


def baseline_option(command: Command) -> Command:
    """Add ``--baseline``; the command gets the files as ``baseline``."""
    return click.option(
        "--baseline",
        multiple=True,
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Written by `fl-queue baseline -o`; may be repeated.",
    )(command)


def json_option(command: Command) -> Command:
    """Add ``--json``; the command gets it as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Write one JSON document.")(command)


def say(line: str, err: bool = False) -> None:
    """
    One line on standard output, or with ``err`` on standard error.

    Commands write by this, ``write`` and ``write_json`` alone, as names and reasons come from Redis:
    what a terminal would obey is written out.
    """
    click.echo(escaping.line(line), err=err)


def complain(line: str) -> None:
    """One line on standard error."""
    say(line, err=True)


def write(text: str) -> None:
    """A document of several lines on standard output, as it is but for what a terminal would obey."""
    click.echo(escaping.block(text), nl=False)


def write_json(value: Any) -> None:
    """One JSON document on standard output."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=str)
    click.echo(escaping.json_text(text))
