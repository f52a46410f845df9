"""
Files of a site's data folder: the one place that decides whether a path is among them.

A config names files (``task.file``, the class folders of ``task.classes``), and a config comes from
elsewhere. So what it names is below the folder of ``--data``: as it is written, and after symbolic links.
No torch and no Redis here.
"""

from __future__ import annotations

import os
from pathlib import Path

from fl_queue.errors import ConfigError, DataError

#: What is wrong with a link; without its name, which may be a patient's.
LEAVES = (
    "a link leads out of the data folder; put what it names there, or start the worker with --data and "
    "a folder that holds both"
)


def problem(name: str) -> str:
    """Why a config may not name a file or folder so; empty: it may."""
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or ".." in parts or parts[0] in ("", "."):
        return (
            "is not the name of something in the data folder; give it relative to that folder, such as "
            "train.csv, without .. in it"
        )
    return ""


def inside(folder: str | Path, name: str, field: str, part: str = "") -> Path:
    """
    The path of what a config names in a site's data folder.

    Args:
        folder: ``--data``. It may be a link itself: the site has chosen it.
        name: The config's value, relative to ``folder``.
        field: Of the config, for messages.
        part: The folder in it that the task looks in, such as ``train``.

    Raises:
        ConfigError: It is absolute, or has ``..`` in it.
        DataError: A link leads out of the folder.
    """
    # A config that was changed in Redis may hold anything there.
    wrong = problem(name) if isinstance(name, str) else "is no text"
    if wrong:
        raise ConfigError(field, wrong, public=True)
    return checked(folder, Path(folder) / part / name, f"{field}: ")


def checked(folder: str | Path, path: Path, field: str = "") -> Path:
    """
    A path below a site's data folder, as it is.

    Raises:
        DataError: It is elsewhere once its links are followed.
    """
    if leaves(folder, path):
        raise DataError(str(path), f"{field}{LEAVES}", public=True)
    return path


def named(folder: str | Path, *names: str) -> list[Path]:
    """The paths of what a config names in a site's data folder; those are left out that ``inside`` refuses."""
    paths = [Path(folder) / name for name in names if not problem(name)]
    return [path for path in paths if not leaves(folder, path)]


def leaves(folder: str | Path, path: str | Path) -> bool:
    """Whether a path below a folder is elsewhere once its links are followed."""
    home, found = os.path.realpath(folder), os.path.realpath(path)
    return os.path.commonpath([home, found]) != home


def files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of a folder and of those below it, sorted; and the links to folders, which are not entered."""
    files, links = [], []
    for place, folders, names in os.walk(folder, followlinks=False):
        files += [Path(place) / name for name in names]
        links += [path for name in folders if (path := Path(place) / name).is_symlink()]
    return sorted(files), sorted(links)
