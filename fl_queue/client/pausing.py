"""
A site's pauses: a file in its state folder, or the clock. Nothing here needs Redis, or believes it.

    <state dir>/sites/<client>/paused    JSON: since when, and why

The folder is there once a worker of that client has used the state folder. While a client is paused
its worker answers no job, and reports that on the control server: no round selects it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from fl_queue.client import quiet_hours
from fl_queue.client.site import WorkerSettings
from fl_queue.common import files
from fl_queue.common.paths import below
from fl_queue.common.safe_json import dumps, printable
from fl_queue.common.spelling import nearest
from fl_queue.errors import ConfigError, LocalStorageError

_FILE = "paused"
#: Every reason begins with it.
_PAUSED = "paused by its site"
MAX_REASON_LENGTH = 200


def register_client(site: WorkerSettings) -> None:
    """A client's worker uses this state folder from now on."""
    files.folder(_folder(site.state_dir, site.client))


def clients(state_dir: Path) -> list[str]:
    """The clients whose workers have used a state folder, sorted."""
    return sorted(path.name for path in state_dir.glob("sites/*") if path.is_dir())


def select_clients(state_dir: Path, named: tuple[str, ...]) -> list[str]:
    """
    The clients that a command at the site is about: those named, else all of the state folder.

    Raises:
        ConfigError: No worker of such a client has used the folder.
    """
    known = clients(state_dir)
    for client in named:
        if client not in known:
            have = f"those of {', '.join(known)} have" if known else "nor has any other"
            raise ConfigError(
                "CLIENT",
                f"no worker of {client} has used {state_dir}, {have}; "
                f"name its --state-dir{nearest(client, known)}",
            )
    if not known:
        raise ConfigError(
            "--state-dir", f"no client's worker has used {state_dir}; name that of the worker"
        )
    return sorted(named) or known


def pause(state_dir: Path, client: str, reason: str, now: datetime) -> bool:
    """
    Pause a client until it is unpaused; returns whether it was not paused before.

    Raises:
        LocalStorageError: The file cannot be written.
    """
    path = _folder(state_dir, client) / _FILE
    if path.exists():
        return False
    since = now.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = {"since": since, "reason": printable(reason)[:MAX_REASON_LENGTH]}
    files.write_private(path, dumps(text).encode())
    return True


def unpause(state_dir: Path, client: str) -> bool:
    """
    Let a client take part again; whether it was paused.

    Raises:
        LocalStorageError: The file cannot be removed.
    """
    path = _folder(state_dir, client) / _FILE
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise LocalStorageError(str(path), f"cannot be removed ({exc.strerror})") from exc
    return True


def why_paused(site: WorkerSettings, now: datetime | None = None) -> str:
    """
    Why a client takes no work now, in words that stay the same while it does; empty when it does.

    Args:
        now: The site's own time. Default: that of this machine.
    """
    if not site.client:
        return ""
    why = _file_reason(_folder(site.state_dir, site.client) / _FILE)
    if why or not site.quiet_hours:
        return why
    now = now or datetime.now().astimezone()
    span = quiet_hours.quiet(site.quiet_hours, now)
    return f"{_PAUSED}: quiet hours {span} ({now.tzname() or 'local time'})" if span else ""


def _file_reason(path: Path) -> str:
    try:
        raw = json.loads(path.read_bytes())
        since, reason = str(raw["since"]), str(raw["reason"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return _PAUSED  # Also with unreadable content: a site operator has put the file there.
    return f"{_PAUSED} since {since}" + (f": {reason}" if reason else "")


def _folder(state_dir: Path, client: str) -> Path:
    return below(state_dir / "sites", client)
