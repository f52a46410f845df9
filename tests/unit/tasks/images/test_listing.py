"""Files of class folders: links followed inside the data folder, everything else counted with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_queue.tasks.images import listing
from tests.support.images import save_image


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for number in range(2):
        save_image(folder / "train" / "cat" / f"{number}.png", (180, 20, 20))
    return folder


def found(data: Path) -> listing.Listing:
    return listing.below(str(data), data / "train" / "cat")


def test_links_inside_the_data_folder_are_followed(data: Path) -> None:
    save_image(data / "pool" / "deep" / "far.png", (1, 2, 3))
    cat = data / "train" / "cat"
    (cat / "single.png").symlink_to(data / "pool" / "deep" / "far.png")
    (cat / "whole").symlink_to(data / "pool")
    (cat / "again").symlink_to(data / "pool" / "deep")
    names = [path.relative_to(cat).as_posix() for path in found(data).images]
    # The folder deep is reached twice, and read once.
    assert names == ["0.png", "1.png", "single.png", "whole/deep/far.png"] or names == [
        "0.png",
        "1.png",
        "again/far.png",
        "single.png",
    ]
    assert not found(data).unused


def test_links_in_a_circle_end(data: Path) -> None:
    cat = data / "train" / "cat"
    (cat / "round").symlink_to(cat)
    (cat / "above").symlink_to(data / "train")
    assert len(found(data).images) == 2


def test_every_file_that_is_no_image_is_counted_with_its_reason(data: Path) -> None:
    cat = data / "train" / "cat"
    outside = data.parent / "outside"
    save_image(outside / "secret.png", (1, 2, 3))
    (cat / ".hidden.png").write_bytes(b"x")
    (cat / ".cache").mkdir()
    (cat / "notes.txt").write_text("x")
    (cat / "README").write_text("x")
    (cat / "gone.png").symlink_to(data / "nothing.png")
    (cat / "gone").symlink_to(data / "nothing")
    (cat / "out.png").symlink_to(outside / "secret.png")
    (cat / "folder").symlink_to(outside)
    listed = found(data)
    assert [path.name for path in listed.images] == ["0.png", "1.png"]
    assert [path.name for path in listed.broken] == ["gone.png"]
    assert [path.name for path in listed.out] == ["out.png"]
    assert listed.without_links() == {
        "hidden": 2,
        ".txt": 1,
        "files without a suffix": 1,
        "broken link": 2,
        "link out of the data folder": 1,
        "link to a folder out of the data folder": 1,
    }
    # A suffix may be a site's own word.
    assert listing.fixed(listed.without_links()) == {
        "hidden": 2,
        "other suffix": 2,
        "broken link": 2,
        "link out of the data folder": 1,
        "link to a folder out of the data folder": 1,
    }


def test_a_folder_with_files_and_no_image_is_empty(data: Path) -> None:
    cat = data / "train" / "cat"
    assert not found(data).is_empty
    for path in cat.iterdir():
        path.unlink()
    assert not found(data).is_empty
    (cat / ".DS_Store").write_bytes(b"x")
    assert not found(data).is_empty
    (cat / "notes.txt").write_text("x")
    assert found(data).is_empty
