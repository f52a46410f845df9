"""The function task of docs/guides/your-own-task.md, and data for it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tests.support.checkout import ROOT


def documented(start: str) -> str:
    """The Python block of the guide that begins with ``start``."""
    text = (ROOT / "docs/guides/your-own-task.md").read_text()
    blocks: list[str] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return next(code for code in blocks if code.startswith(start))


def beans_tables(folder: Path) -> None:
    """Write both files of the documented beans."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 300), ("test", 60)):
        table = generator.normal(size=(count, 8))
        table[:, 7] = table[:, :3].argmax(axis=1)
        np.save(folder / f"{part}.npy", table)
