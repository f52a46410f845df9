"""
Write a real table that a package ships as the tables of some sites, and of an evaluator.

    python write_sites.py breast-cancer data --sites 2

makes data/site-1/train.csv, data/site-2/train.csv and data/evaluator/test.csv: every fifth row is the evaluator's, and
the others are dealt to the sites in turn.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

Table = tuple[list[str], list[Sequence[Any]]]


def diabetes() -> Table:
    """442 patients; the progression of their disease after a year (scikit-learn)."""
    from sklearn.datasets import load_diabetes

    found = load_diabetes(scaled=False)
    rows = [[*row, target] for row, target in zip(found.data.tolist(), found.target, strict=True)]
    return [*found.feature_names, "progression"], rows


def breast_cancer() -> Table:
    """569 tumours; whether each is malignant (scikit-learn)."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    names = [found.target_names[target] for target in found.target]
    rows = [[*row, name] for row, name in zip(found.data.tolist(), names, strict=True)]
    return [*found.feature_names.tolist(), "diagnosis"], rows


def heart() -> Table:
    """69 patients with a new heart; how long they lived, censored or not (statsmodels)."""
    from statsmodels.datasets import heart as package

    return _of_frame(package.load_pandas().data)


def randhie() -> Table:
    """20,190 persons; how often each visited a physician in a year (statsmodels)."""
    from statsmodels.datasets import randhie as package

    return _of_frame(package.load_pandas().data)


def adult() -> Table:
    """32,561 persons of the census of 1994; whether each earned more than 50,000 (package xai)."""
    path = resources.files("xai") / "data" / "census.csv"
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    return header, list(rows)


TABLES: dict[str, Callable[[], Table]] = {
    "diabetes": diabetes,
    "breast-cancer": breast_cancer,
    "heart": heart,
    "randhie": randhie,
    "adult": adult,
}


def write(table: Table, folder: Path, sites: int) -> None:
    """Write the tables of the sites and of the evaluator."""
    header, rows = table
    ours = [row for place, row in enumerate(rows) if place % 5]
    for site in range(sites):
        _write(folder / f"site-{site + 1}" / "train.csv", header, ours[site::sites])
    _write(folder / "evaluator" / "test.csv", header, rows[::5])


def _of_frame(frame: Any) -> Table:
    return list(frame.columns), frame.to_numpy().tolist()


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Write a real table as the tables of some sites.")
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sites", type=int, default=2)
    given = parser.parse_args()
    write(TABLES[given.table](), given.folder, given.sites)


if __name__ == "__main__":
    main()
