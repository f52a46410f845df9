"""An update of one image gives the image back; under masks it gives nothing, and the sum a mixture."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from benchmarks.cases import inversion


def test_what_each_way_gives_back(tmp_path: Path) -> None:
    lines = inversion.report(tmp_path / "images.png").splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    image = {name: float(found) for name, found, _ in rows}
    update = {name: float(found) for name, _, found in rows}

    assert (image["one update in clear"], update["one update in clear"]) == (1.0, 1.0)
    assert update["the same update, masked"] < 0.01
    assert image["the same update, masked"] < 0.1
    assert 0.5 < image["the sum of four updates"] < 0.9
    assert Image.open(tmp_path / "images.png").size == (720, 180)
