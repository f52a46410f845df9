"""
One run that is measured, what came of it, and the folder where that is kept.

A result is a JSON file named by everything that decides it, so a job that is described in another way
is another job: it is measured, and the old file is of no further use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.reproduce.crossing import rounds_to
from fl_queue.common.files import write_atomically


@dataclass(frozen=True)
class Job:
    """
    A run to measure.

    Args:
        name: Letters, digits and dashes.
        settings: Config fields, over those of the shipped config the job begins with.
        rounds: It ends after so many.
        target: Or before, once the test set's accuracy is that high.
    """

    name: str
    settings: Mapping[str, Any]
    rounds: int
    target: float | None = None

    @property
    def key(self) -> str:
        """Its name with a digest of all else: the name of the run and of the result."""
        text = json.dumps([dict(self.settings), self.rounds, self.target], sort_keys=True)
        return f"{self.name}-{sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Measured:
    """
    What came of a job.

    Args:
        accuracy: Version -> accuracy on the test set.
        validation: Version -> accuracy on what the clients hold out, merged.
        seconds: Version -> length of the rounds up to it; what lay between two sittings is left out.
        load: Median load average of the machine meanwhile; None: not known.
    """

    accuracy: Mapping[int, float]
    validation: Mapping[int, float]
    seconds: Mapping[int, float]
    load: float | None = None

    def rounds_to(self, target: float) -> float | None:
        """As ``crossing.rounds_to``, of the test set."""
        return rounds_to(self.accuracy, target)

    @property
    def last(self) -> int:
        """The newest version that was tested."""
        return max(self.accuracy)


class Results:
    """
    What has been measured, in a folder.

    Args:
        folder: Made when something is put there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, job: Job) -> Measured | None:
        """What came of a job; None when it has not been measured to the end."""
        try:
            found = json.loads(self._file(job).read_text())["measured"]
        except (OSError, ValueError, KeyError):
            return None
        curves = {name: _by_version(found[name]) for name in ("accuracy", "validation", "seconds")}
        return Measured(**curves, load=found.get("load"))

    def put(self, job: Job, measured: Measured) -> None:
        """Keep what came of a job."""
        text = json.dumps({"job": asdict(job), "measured": asdict(measured)}, indent=1)
        with write_atomically(self._file(job)) as file:
            file.write(text.encode())

    def _file(self, job: Job) -> Path:
        return self._folder / f"{job.key}.json"


def _by_version(curve: Mapping[str, float]) -> dict[int, float]:
    return {int(version): value for version, value in curve.items()}
