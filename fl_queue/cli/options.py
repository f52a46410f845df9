"""Options and arguments that several commands share."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from fl_queue.cli.output import warn
from fl_queue.client.site import WorkerSettings
from fl_queue.common import state_folder
from fl_queue.common.redis_url import has_password
from fl_queue.common.spelling import nearest
from fl_queue.errors import ConfigError, DataError
from fl_queue.protocol import operator_key as operatorkey
from fl_queue.store.embedded import server_pair
from fl_queue.store.timeouts import INTERACTIVE, Timeouts

if TYPE_CHECKING:
    from fl_queue.config.run_config import RunConfig
    from fl_queue.store import Store

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Deployment:
    """
    The servers and files that a command works with.

    Args:
        url: Control server; empty: the private one of the state folder.
        blob_url: Data server; empty: the control server.
        state_dir: Folder of this machine's state.
        operator_key: File of the operator's key, if an option names one.
    """

    url: str
    blob_url: str
    state_dir: Path
    operator_key: Path | None = None

    @classmethod
    def of(cls, url: str, blob_url: str, state_dir: Path | None) -> Deployment:
        """Make one from options. Raises ConfigError if other users can write to the state folder."""
        return cls(url, blob_url, state_folder.check(_state_folder(state_dir)))

    def open(self, timeouts: Timeouts = INTERACTIVE) -> Store:
        """Connect to both Redis roles, and check them. Raises StoreUnavailable."""
        from fl_queue.store import Store

        return Store.open(
            self.url,
            self.blob_url,
            self.state_dir,
            timeouts=timeouts,
            operator_key=self.operator_key,
        )

    def open_control(self) -> Store:
        """Connect, and check the control server alone, for commands that need no models."""
        from fl_queue.store import Store

        return Store.open(
            self.url,
            self.blob_url,
            self.state_dir,
            timeouts=INTERACTIVE,
            needs_data=False,
            operator_key=self.operator_key,
        )

    def site(self) -> WorkerSettings:
        """Settings of a worker on this machine."""
        key = str(self.operator_key) if self.operator_key else ""
        return WorkerSettings(self.url, self.blob_url, self.state_dir, operator_key=key)

    def with_config(self, config: RunConfig) -> Deployment:
        """
        Take the servers from the command line, else from the config.

        The config has the variables of the environment in it already.
        """
        context = click.get_current_context()

        def chosen(option: str, given: str, configured: str) -> str:
            on_command_line = context.get_parameter_source(option) is ParameterSource.COMMANDLINE
            return given if on_command_line else configured

        return replace(
            self,
            url=chosen("redis_url", self.url, config.redis.url),
            blob_url=chosen("blob_url", self.blob_url, config.redis.blob_url),
        )


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
    """Add ``--state-dir`` to a command that needs no Redis; it gets the folder as ``state_dir``."""

    @_state_dir_option
    @functools.wraps(command)
    def wrapped(*args: Any, state_dir: Path | None, **kwargs: Any) -> Any:
        # Files that root writes here get the owner of the folder, whose worker reads them.
        with state_folder.visited(_state_folder(state_dir)) as folder:
            return command(*args, state_dir=folder, **kwargs)

    return wrapped  # type: ignore[return-value]


def connection_options(command: Command) -> Command:
    """Add ``--redis-url``, ``--blob-url`` and ``--state-dir``; the command gets them as ``deployment``."""

    @click.option(
        "-r",
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
        deployment = Deployment.of(redis_url, blob_url, state_dir)
        return command(*args, deployment=deployment, **kwargs)

    return wrapped  # type: ignore[return-value]


def _warn_of_passwords() -> None:
    context = click.get_current_context()
    for option in ("redis_url", "blob_url"):
        on_command_line = context.get_parameter_source(option) is ParameterSource.COMMANDLINE
        if on_command_line and has_password(context.params.get(option, "")):
            warn(
                f"Warning: every user of this machine can read the password in --{option.replace('_', '-')}; "
                "name the URL in FLQ_REDIS_URL and FLQ_REDIS_BLOB_URL instead."
            )


def signing_option(command: Command) -> Command:
    """Add ``--operator-key`` below the connection options; ``deployment`` gets the path."""

    @click.option(
        "--operator-key",
        envvar=operatorkey.VARIABLE,
        type=click.Path(dir_okay=False, path_type=Path),
        default=None,
        help=f"The operator's secret key. Default: {operatorkey.FILE} in the state folder.",
    )
    @functools.wraps(command)
    def wrapped(
        *args: Any, deployment: Deployment, operator_key: Path | None, **kwargs: Any
    ) -> Any:
        named = operator_key.absolute() if operator_key is not None else None
        return command(*args, deployment=replace(deployment, operator_key=named), **kwargs)

    return wrapped  # type: ignore[return-value]


def collect(name: str, kind: type, *options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """
    Add options whose values the command gets as one object.

    Args:
        name: Argument of the command.
        kind: A dataclass whose fields are the parameters of the options.
        options: Decorators of click, in the order of the help.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            values = {field.name: kwargs.pop(field.name) for field in fields(kind)}
            return command(*args, **{name: kind(**values)}, **kwargs)

        decorated: Any = wrapped
        for option in reversed(options):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


def set_option(
    text: str = "Override a field of the config; may be repeated.",
) -> Callable[[Command], Command]:
    """Add ``--set``; the command gets it as ``overrides``. Args: ``text``: its help."""
    return click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=text)


def strategy_option(command: Command) -> Command:
    """Add ``--strategy-allow``; the command gets it as ``strategy_allow``."""
    return click.option(
        "--strategy-allow",
        multiple=True,
        metavar="MODULE:CLASS",
        callback=_checked_strategies,
        help="Allow this strategy of your own to be imported (MODULE:* for all that the module defines); "
        "may be repeated.",
    )(command)


def _checked_strategies(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...]:
    check_imports("--strategy-allow", given)
    return given


def file_option(*names: str, help: str, hidden: bool = False) -> Callable[[Command], Command]:
    """Add an option that names a file. Args: ``hidden``: from ``--help``."""
    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option(*names, type=kind, default=None, help=help, hidden=hidden)


def output_option(
    explained: str, *, required: bool = True, is_folder: bool = False, default: Path | None = None
) -> Callable[[Command], Command]:
    """
    Add ``-o``, the file or folder to write; the command gets it as ``output``.

    Args:
        explained: Its help.
    """
    return click.option(
        "-o",
        "--output",
        required=required,
        default=default,
        show_default=default is not None,
        type=click.Path(dir_okay=is_folder, file_okay=not is_folder, path_type=Path),
        help=explained,
    )


def json_option(command: Command) -> Command:
    """Add ``--json``; the command gets it as ``as_json``."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print JSON; errors are JSON too, on standard error.",
    )(command)


def yes_option(command: Command) -> Command:
    """Add ``--yes``; the command gets it as ``yes``."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(command)


def follow_option(text: str) -> Callable[[Command], Command]:
    """Add ``--follow``; the command gets it as ``follow``. Args: ``text``: its help."""
    return click.option("-f", "--follow", is_flag=True, help=text)


def baseline_option(command: Command) -> Command:
    """Add ``--baseline``; the command gets the files as ``baseline``."""
    return click.option(
        "--baseline",
        multiple=True,
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="File of `fl-queue baseline -o`; may be repeated.",
    )(command)


#: Options of every command that trains, in this process or in a worker.
device_option = click.option(
    "--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."
)
threads_option = click.option(
    "--threads",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="CPU threads for training and evaluation.",
)


def device_options(command: Command) -> Command:
    """Add ``--device`` and ``--threads``."""
    return device_option(threads_option(command))


def data_folder(given: str) -> str:
    """
    Make the folder of ``--data`` absolute; empty if none is given.

    Raises:
        DataError: It is no folder.
    """
    if given and not Path(given).is_dir():
        raise DataError(given, "is not a folder; give --data the folder of this site's data")
    return str(Path(given).absolute()) if given else ""


def check_imports(option: str, given: tuple[str, ...]) -> None:
    """Raise ConfigError unless all values of an option are MODULE:NAME."""
    for name in given:
        if ":" not in name:
            raise ConfigError(option, f"{name!r} is not MODULE:NAME")


def check_tasks(option: str, given: tuple[str, ...]) -> None:
    """Raise ConfigError unless all values of an option are built-in tasks or MODULE:NAME."""
    if not given:
        return
    from fl_queue.config.task_catalog import MNIST, TASKS

    known = (MNIST, *TASKS)
    for name in given:
        if ":" not in name and name not in known:
            raise ConfigError(
                option,
                f"{name!r} is not MODULE:NAME, nor a built-in task: {', '.join(known)}"
                f"{nearest(name, known)}",
            )


def interrupt_on_sigterm() -> None:
    """Handle SIGTERM as Ctrl-C, so that the processes started by this command are stopped."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
