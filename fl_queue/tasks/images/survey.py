"""Each image file opened once: whether it can be used, and what its pixels lost."""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_queue.errors import DataError
from fl_queue.tasks.images.decoding import read
from fl_queue.tasks.images.settings import ImageSettings, UnusableImage

UNREADABLE, REFUSED, REDUCED, CLIPPED = "unreadable", "refused", "reduced", "clipped"
KINDS = (UNREADABLE, REFUSED, REDUCED, CLIPPED)
#: Seconds of a look before round 1; files after them are met by the training.
LOOK_S = 240.0
#: First samples of which at least one must have two values.
_FIRST = 8
_log = logging.getLogger(__name__)

Item = tuple[Path, int]


@dataclass(frozen=True)
class Verdict:
    """
    Finding about one file.

    Args:
        problem: Why it cannot be used; None: it can.
        is_reduced: Whether 16 bits of colour are read as 8.
        is_clipped: Whether pixels lay outside ``task.range``.
        is_constant: Whether all its pixels have the same colour.
    """

    problem: UnusableImage | None = None
    is_reduced: bool = False
    is_clipped: bool = False
    is_constant: bool = False

    @property
    def kinds(self) -> list[str]:
        """What it counts as."""
        if self.problem is not None:
            return [self.problem.kind]
        return [REDUCED] * self.is_reduced + [CLIPPED] * self.is_clipped


def look(path: Path, settings: ImageSettings) -> Verdict:
    """Decode a file, once in a process as long as it is not written again."""
    try:
        facts = path.stat()
    except OSError as exc:
        return Verdict(
            UnusableImage(
                "unreadable", f"cannot be read: {exc.strerror}", "an image cannot be read"
            )
        )
    return _look(path, facts.st_size, facts.st_mtime_ns, settings)


@functools.lru_cache(maxsize=1 << 17)
def _look(path: Path, size: int, changed: int, settings: ImageSettings) -> Verdict:
    try:
        picture = read(path, settings)
    except UnusableImage as exc:
        problem = exc
    else:
        return Verdict(None, picture.is_reduced, picture.clipped > 0, picture.is_constant)
    # A new one, made after the handler: the causes of the other hold the file's content in their frames.
    return Verdict(UnusableImage(problem.kind, problem.reason, problem.public))


def usable(items: Iterable[Item], settings: ImageSettings) -> tuple[list[Item], Counter[str]]:
    """The items whose files can be used, and counts of what the others and the reduced are; names are logged."""
    kept, counts = [], Counter[str]()
    for item in items:
        verdict = look(item[0], settings)
        counts.update(verdict.kinds)
        if verdict.problem is None:
            kept.append(item)
        else:
            _log.warning("%s: left out: %s", item[0], verdict.problem.reason)
    return kept, counts


def check(items: Sequence[Item], settings: ImageSettings) -> Counter[str]:
    """
    Look at every file, for ``LOOK_S`` seconds at most.

    Returns:
        How many are reduced or clipped.

    Raises:
        DataError: One cannot be used; the log names each. Or the first samples have no content.
    """
    first = [look(path, settings) for path, _ in items[:_FIRST]]
    if first and all(verdict.problem is None and verdict.is_constant for verdict in first):
        raise DataError(
            str(items[0][0]),
            "and the samples after it have one value in all their pixels; look at task.bits, task.range and task.window",
            public="its first samples have one value in all their pixels; look at task.bits, task.range and task.window",
        )
    counts, bad = Counter[str](), list[tuple[Path, UnusableImage]]()
    started = time.monotonic()
    for number, (path, _) in enumerate(items):
        if time.monotonic() - started > LOOK_S:
            _log.warning("looked at %d of %d images in %g s", number, len(items), LOOK_S)
            break
        verdict = look(path, settings)
        counts.update(verdict.kinds)
        if verdict.problem is not None:
            bad.append((path, verdict.problem))
            _log.warning("%s: %s", path, verdict.problem.reason)
    if bad:
        raise _unusable(bad, counts)
    return counts


def _unusable(bad: Sequence[tuple[Path, UnusableImage]], counts: Counter[str]) -> DataError:
    path, problem = bad[0]
    if len(bad) == 1:
        return problem.of_file(str(path))
    parts = [f"{counts[kind]} {kind}" for kind in (UNREADABLE, REFUSED) if counts[kind]]
    many = f"{len(bad)} images cannot be used ({', '.join(parts)})"
    fix = 'repair or remove them, or set task.unreadable = "skip"'
    return DataError(
        str(path),
        f"{problem.reason}; {many}: {fix}",
        public=f"{many}; the first: {problem.public}; {fix}",
    )
