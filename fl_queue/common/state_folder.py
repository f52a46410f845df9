"""
Private state folder: other accounts can neither read, create nor replace files in it.

Outboxes hold what was made of a site's data, ``redis.json`` has the URLs of Redis, and credentials are often
kept beside them. So a folder of another account, or one where others may write, is refused: whatever lies
there may be theirs. One that others may only read is narrowed, once.
"""

from __future__ import annotations

import logging
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_queue.common.files import PRIVATE_FOLDER, PRIVATE_UMASK
from fl_queue.errors import ConfigError

log = logging.getLogger(__name__)

_ROOT = 0


def check(folder: Path) -> Path:
    """
    See that a state folder is safe to use, and take the rights of others from it; it need not be there.

    Returns:
        The folder.

    Raises:
        ConfigError: It belongs to another account, or others may write there; the message names the fix.
    """
    _check_above(folder)
    try:
        owners = {folder.lstat().st_uid, folder.stat().st_uid}
        found = folder.stat()
    except OSError:
        return folder  # It is private when it is made; opening it reports another error.
    own = os.geteuid()
    if others := sorted(owners - {own, _ROOT}):
        raise _refused(
            folder,
            f"belongs to {_name(others[0])}, who can read and replace what is written there; run this "
            f"as {_name(others[0])} (sudo -u), or give a folder of your own",
        )
    if _others_write(found):
        raise _refused(
            folder,
            "can be written to by others of this machine, so what lies there may be theirs; give a new "
            f"folder, or look at what is in it and run chmod -R go-rwx {folder}",
        )
    if found.st_uid == own:
        _narrow(folder, found.st_mode)
    return folder


def enter(folder: Path) -> None:
    """
    Begin a process that writes nothing but its own: ``check``, and a umask for what libraries write.

    Raises:
        ConfigError: As ``check``.
    """
    check(folder)
    os.umask(PRIVATE_UMASK)


@contextmanager
def visited(folder: Path) -> Iterator[Path]:
    """
    ``check``, for a command at a site: root does there what it does as the account whose folder it is.

    So what that account has planted (a link in the place of a folder, for example) leads root nowhere where the
    account could not go by itself, and what is written is the account's.

    Raises:
        ConfigError: As ``check``.
    """
    owner = _owner(folder) if os.geteuid() == _ROOT else None
    if owner is None:
        yield check(folder)
        return
    with _acting_as(owner, folder):
        yield check(folder)


@contextmanager
def _acting_as(owner: os.stat_result, folder: Path) -> Iterator[None]:
    group, groups = os.getegid(), os.getgroups()
    try:
        # The groups first, and back last: only root may change them.
        os.setgroups([])
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
    except PermissionError as exc:  # A root of a container that may not.
        name = _name(owner.st_uid)
        raise _refused(folder, f"belongs to {name}; run this as {name} (sudo -u)") from exc
    try:
        yield
    finally:
        os.seteuid(_ROOT)
        os.setegid(group)
        os.setgroups(groups)


def _owner(folder: Path) -> os.stat_result | None:
    """Of a folder of another account than root; None where there is none, or the folder is root's."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found if found.st_uid != _ROOT else None


def may_be_exchanged(folder: Path) -> bool:
    """Whether others of this machine may put another file in the place of one in a folder, as far as it is there."""
    try:
        found = folder.stat()
    except OSError:
        return False
    # In a sticky folder, as /tmp is, each may replace its own files only.
    return _others_write(found) and not found.st_mode & stat.S_ISVTX


def _check_above(folder: Path) -> None:
    """A folder above it that is ours, where others may put another one in its place."""
    for above in folder.absolute().resolve().parents:
        try:
            found = above.stat()
        except OSError:
            continue
        is_sticky = found.st_mode & stat.S_ISVTX
        if found.st_uid == os.geteuid() and _others_write(found) and not is_sticky:
            raise _refused(
                folder,
                f"lies in {above}, where others of this machine may put another folder in its place; "
                f"run chmod go-w {above}, or give another folder",
            )


def _others_write(found: os.stat_result) -> bool:
    """Whether others may write there. An account's own group is none; root may have made it for ours."""
    groups = [os.getegid(), *(os.getgroups() if found.st_uid == _ROOT else ())]
    by_group = found.st_mode & stat.S_IWGRP and found.st_gid not in groups
    return bool(found.st_mode & stat.S_IWOTH or by_group)


def _narrow(folder: Path, mode: int) -> None:
    """Remove the rights of other accounts from the folder."""
    if mode & PRIVATE_UMASK:
        folder.chmod(PRIVATE_FOLDER)
        log.warning(
            "%s: others of this machine could look into it; from now on its owner alone can", folder
        )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _refused(folder: Path, reason: str) -> ConfigError:
    return ConfigError("--state-dir", f"{folder} {reason}")
