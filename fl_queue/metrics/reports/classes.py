"""The report of several classes: the confusion matrix, and how sure the model is of what it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

from fl_queue.metrics.reports import calibration
from fl_queue.metrics.reports.words import TWENTIETHS, Words, off_grid

#: Classes up to which there is a report: a header is bounded.
MAX_CLASSES = 40
#: Words beside the matrix and its flags.
_BESIDE = 3 * TWENTIETHS + 5
NAMES = ("accuracy", "balanced_accuracy", "brier", "f1", "log_loss", "mean_probability", "rows")


def words(classes: int) -> Words:
    """Order of the words of so many classes; each row of the matrix is of one true class."""
    return Words(
        confusion=(classes, classes),
        withheld=(classes, classes),
        total=(1,),
        counted=(1,),
        hits=(1,),
        rows=(TWENTIETHS,),
        events=(TWENTIETHS,),
        probability=(TWENTIETHS,),
        squares=(1,),
        losses=(1,),
    )


def classes_of(size: int) -> int:
    """Number of classes of a report of so many words; 0: it is none."""
    found = isqrt(max(0, size - _BESIDE) // 2)
    return found if 2 * found * found + _BESIDE == size and 3 <= found <= MAX_CLASSES else 0


def size_problem(size: int) -> str:
    """Why a report has not that many words; empty: it may."""
    return (
        ""
        if classes_of(size)
        else f"a list of whole numbers of a report of 3 to {MAX_CLASSES} classes"
    )


class ClassesReport:
    """
    The figures of a report.

    Args:
        numbers: Its words: one site's, or the sum of several.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._parts = words(classes_of(len(numbers))).parts(numbers)

    @property
    def confusion(self) -> list[list[int]]:
        """Rows by true and predicted class, without what sites withhold."""
        return [[*row] for row in self._parts["confusion"]]

    @property
    def withheld(self) -> list[list[int]]:
        """How many sites withhold each of these counts."""
        return [[*row] for row in self._parts["withheld"]]

    @property
    def hits(self) -> tuple[int, int]:
        """Rows that are predicted as they are, and of how many rows that is known."""
        return self._parts["hits"][0], self._parts["counted"][0]

    @property
    def groups(self) -> list[calibration.Group]:
        """Rows by twentieths of the predicted class's probability; ``events`` are those predicted as they are."""
        parts = self._parts
        return calibration.groups(parts["rows"], parts["events"], parts["probability"])

    @property
    def rows(self) -> int:
        """All rows."""
        return int(self._parts["total"][0])

    @property
    def brier(self) -> float:
        """Mean over the rows of the sum over classes of (p - y)**2, between 0 and 2."""
        return float(off_grid(self._parts["squares"][0])) / self.rows

    @property
    def log_loss(self) -> float:
        """Mean of -log of the true class's probability, 36 at most."""
        return float(off_grid(self._parts["losses"][0])) / self.rows


def values(numbers: Sequence[int]) -> dict[str, float]:
    """Single numbers of a report; those of the matrix where no count of it is withheld."""
    report = ClassesReport(numbers)
    if not report.rows:
        return {}
    found = {
        "rows": float(report.rows),
        "brier": report.brier,
        "log_loss": report.log_loss,
    }
    hits, counted = report.hits
    if counted:
        found["accuracy"] = hits / counted
    if groups := report.groups:
        probability = sum(group.probability * group.rows for group in groups)
        found["mean_probability"] = probability / sum(group.rows for group in groups)
    if not any(map(any, report.withheld)):
        found |= _of_matrix(report.confusion)
    return found


def _of_matrix(matrix: Sequence[Sequence[int]]) -> dict[str, float]:
    """Means over the classes that occur: of the recalls, and of the F1 scores."""
    there = [sum(row) for row in matrix]
    predicted = [sum(column) for column in zip(*matrix, strict=True)]
    both = [(matrix[at][at], there[at], there[at] + predicted[at]) for at in range(len(matrix))]
    recalls = [hits / rows for hits, rows, _ in both if rows]
    scores = [2 * hits / either for hits, _, either in both if either]
    return {
        "balanced_accuracy": sum(recalls) / len(recalls),
        "f1": sum(scores) / len(scores),
    }
