"""The files of a class folder: images, and every other file with the reason why it is none."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fl_queue.common import data_folder
from fl_queue.tasks.images.decoding import SUFFIXES, suffix_of

HIDDEN = "hidden"
BROKEN_LINK = "broken link"
LINK_OUT = "link out of the data folder"
FOLDER_OUT = "link to a folder out of the data folder"
OTHER_SUFFIX = "other suffix"


@dataclass
class Listing:
    """
    Files below a folder.

    Args:
        images: With the suffix of an image, sorted; links inside the data folder are followed.
        broken, out: Links with such a suffix that lead nowhere, and out of the data folder.
        unused: Other files by kind: a suffix, or why they are not read. For the site alone.
    """

    images: list[Path] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)
    out: list[Path] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)

    @property
    def is_empty(self) -> bool:
        """Whether there are files and no image among them."""
        visible = self.unused.total() - self.unused[HIDDEN]
        return bool(visible or self.broken or self.out) and not self.images

    def without_links(self) -> Counter[str]:
        """Unused files by kind, links that cannot be followed among them."""
        return self.unused + Counter({BROKEN_LINK: len(self.broken), LINK_OUT: len(self.out)})


def below(data_dir: str, folder: Path) -> Listing:
    """The files of a folder and of those below it. Args: ``data_dir``: no link is followed out of it."""
    found = Listing()
    for path in _walk(data_dir, folder, found.unused):
        if not is_visible(path):
            found.unused[HIDDEN] += 1
        elif not path.is_symlink():
            _sort_in(path, found.images, found)
        elif data_folder.leaves(data_dir, path):
            _sort_in(path, found.out, found)
        elif not path.exists():
            _sort_in(path, found.broken, found)
        else:
            _sort_in(path, found.images, found)
    found.images.sort()
    return found


def kind_of(path: Path) -> str:
    """The suffix of a file that is no image, as its kind."""
    return path.suffix.lower() or "files without a suffix"


def is_visible(path: Path) -> bool:
    """Whether a file or folder is no hidden one, as desktops and notebooks make (``._image.jpg``)."""
    return not path.name.startswith(".")


def fixed(unused: Counter[str], others_known: Sequence[str] = ()) -> Counter[str]:
    """The same counts without suffixes, which may be a site's own words. Args: ``others_known``: words to keep."""
    known = (HIDDEN, BROKEN_LINK, LINK_OUT, FOLDER_OUT, *others_known)
    counts = Counter({kind: unused[kind] for kind in known if unused[kind]})
    others = sum(number for kind, number in unused.items() if kind not in known)
    return counts + Counter({OTHER_SUFFIX: others})


def _sort_in(path: Path, images: list[Path], found: Listing) -> None:
    if suffix_of(path) in SUFFIXES:
        images.append(path)
    elif path.is_symlink() and not path.exists():
        found.unused[BROKEN_LINK] += 1
    else:
        found.unused[kind_of(path)] += 1


def _walk(data_dir: str, folder: Path, unused: Counter[str]) -> Iterator[Path]:
    """Files of a folder and of those below it; each real folder once, whatever the links to it."""
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        real = os.path.realpath(place)
        # A site without images of a class has no such folder.
        if real in seen or not place.is_dir():
            continue
        seen.add(real)
        for path in sorted(place.iterdir()):
            if not path.is_dir():
                yield path
            elif not is_visible(path):
                unused[HIDDEN] += 1
            elif path.is_symlink() and data_folder.leaves(data_dir, path):
                unused[FOLDER_OUT] += 1
            else:
                waiting.append(path)
