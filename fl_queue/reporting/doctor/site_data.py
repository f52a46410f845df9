"""Data folder of a site."""

from __future__ import annotations

from pathlib import Path

from fl_queue.common import data_folder
from fl_queue.reporting.doctor.finding import Finding


def examine_folder(data: Path) -> Finding:
    """Report whether a folder is readable, not empty, and has no links that leave it."""
    if not data.is_dir():
        return Finding(
            "FAIL", f"data folder {data} is not a folder", "give the folder of this site's data"
        )
    try:
        entries = list(data.iterdir())
    except OSError as exc:
        return Finding(
            "FAIL",
            f"data folder {data} cannot be read ({exc.strerror})",
            "give the worker's user the right to read it",
        )
    if not entries:
        return Finding("FAIL", f"data folder {data} is empty", "put the data there")
    if out := sum(data_folder.leaves(data, entry) for entry in entries):
        return Finding(
            "WARN",
            f"data folder {data}: {out} of {len(entries)} entries are links that lead out of it, and are not read",
            "put there what they name, or give --data a folder that holds both",
        )
    return Finding("OK", f"data folder {data}: {len(entries)} entries")
