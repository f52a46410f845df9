"""
Updates that leave a site only after its approval: ``fl-queue worker client --approve``.

Beside such an answer in the outbox, ``<client>_<run>_<round>.update``, lie

    .waiting     JSON: the job that left it there and has ended, and since when
    .decision    JSON: the token of the answer it is about, whether it may leave, and why not

A job that finds no decision ends: it holds no worker, and nothing on Redis. Its worker writes to
the control server what waits, and that it is decided; then the healer issues the next attempt, which finds
the answer and the decision, and pushes. Write access to Redis can ask for updates, and decides nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_queue.client import outbox
from fl_queue.client.site import WorkerSettings
from fl_queue.common import files
from fl_queue.common.safe_json import dumps, printable
from fl_queue.common.spelling import nearest
from fl_queue.errors import ConfigError
from fl_queue.protocol.header import Header
from fl_queue.protocol.records import AwaitedUpdate

#: What is made of a site's data; a failure is not, and version 0 is not.
_OF_DATA = ("update", "evaluation", "sums")
DECLINED = "declined by its site"
MAX_REASON_LENGTH = 200


@dataclass(frozen=True)
class Decision:
    """Decision of a site operator. Args: ``reason``: why the update stays, shown to the operator."""

    approved: bool
    reason: str = ""


@dataclass(frozen=True)
class PendingUpdate:
    """
    An answer that waits.

    Args:
        name: What it is called in commands: ``<client>_<run id>_<round>``.
        path: Its file in the outbox.
        since: Unix time, seconds.
        header, body: The answer itself, the body still on disk.
    """

    name: str
    path: Path
    since: float
    header: Header
    body: memoryview


def needed(header: Header) -> bool:
    """Whether an answer needs a decision."""
    return header.kind in _OF_DATA


# The worker's side


def decision(path: Path, header: Header) -> Decision | None:
    """The decision on an answer; None: there is none yet. A decision on another answer is removed."""
    file = path.with_suffix(outbox.DECISION)
    raw = _read(file)
    if raw.get("token") != header.token:
        file.unlink(missing_ok=True)
        return None
    return Decision(raw.get("approved") is True, str(raw.get("reason", "")))


def mark_pending(path: Path, job: str) -> None:
    """
    Note that an answer waits, left by a job that is about to end.

    Raises:
        LocalStorageError: The file cannot be written.
    """
    file = path.with_suffix(outbox.WAITING)
    since = _since(_read(file)) or time.time()
    files.write_private(file, dumps({"job": job, "since": since}).encode())


def pending_as_json(site: WorkerSettings) -> str:
    """The updates that wait at a site, as its worker reports them: JSON by run; empty when there are none."""
    found: dict[str, AwaitedUpdate] = {}
    for file in site.outbox.glob(f"{site.client}_*{outbox.WAITING}"):
        path, raw, name = outbox.answer_beside(file), _read(file), outbox.named(file)
        if name is None:
            continue
        # An answer that is gone has to be made again, and without the option it may leave.
        decided = bool(_read(path.with_suffix(outbox.DECISION))) or not path.exists()
        note = AwaitedUpdate(
            name.number,
            str(raw.get("job", "")),
            _since(raw),
            decided or not site.approve,
        )
        if name.run not in found or found[name.run].round < note.round:
            found[name.run] = note
    return dumps({run: note.to_dict() for run, note in found.items()}) if found else ""


# The side of the site operator


def waiting(state_dir: Path) -> list[PendingUpdate]:
    """The answers in a state folder that still need a decision, by name."""
    return list(_waiting(WorkerSettings(state_dir=state_dir).outbox))


def _waiting(folder: Path) -> Iterator[PendingUpdate]:
    for file in sorted(folder.glob(f"*{outbox.WAITING}")):
        path = outbox.answer_beside(file)
        kept = outbox.read(path) if outbox.named(path) else None
        if kept is None or _read(path.with_suffix(outbox.DECISION)).get("token") == kept[0].token:
            continue
        yield PendingUpdate(path.stem, path, _since(_read(file)), *kept)


def find(state_dir: Path, names: tuple[str, ...]) -> list[PendingUpdate]:
    """
    Those of the answers that were named.

    Raises:
        ConfigError: There is none of that name.
    """
    there = {item.name: item for item in waiting(state_dir)}
    for name in names:
        if name not in there:
            raise ConfigError(
                "UPDATE",
                f"{name} does not wait in {state_dir}: it is decided, or its round has ended; "
                f"`fl-queue approve` lists those that do{nearest(name, there)}",
            )
    return [there[name] for name in names]


def decide(item: PendingUpdate, approved: bool, reason: str = "") -> None:
    """
    Record whether an answer may leave.

    Raises:
        LocalStorageError: The file cannot be written.
    """
    why = printable(reason)[:MAX_REASON_LENGTH]
    shown = "" if approved else DECLINED + (f": {why}" if why else "")
    file = item.path.with_suffix(outbox.DECISION)
    files.write_private(
        file, dumps({"token": item.header.token, "approved": approved, "reason": shown}).encode()
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return raw if type(raw) is dict else {}


def _since(raw: dict[str, Any]) -> float:
    since = raw.get("since")
    return since if type(since) is float else 0.0
