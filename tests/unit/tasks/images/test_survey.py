"""Images that cannot be used: refused or skipped, counted, and named at the site alone."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fl_queue.client.local_update import initial_model, train_update
from fl_queue.errors import DataError
from fl_queue.tasks.base import ClientData
from fl_queue.tasks.image_folder import ImageFolderTask
from fl_queue.tasks.images import survey
from fl_queue.tasks.images.settings import ImageSettings
from fl_queue.tasks.site_facts import facts_of
from tests.support.images import image_task, save_image

made = partial(image_task, "blue,red", 4)


def checked_facts(task: ImageFolderTask, data: ClientData) -> dict[str, str]:
    return facts_of(task, data, task.check_data(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, count in (("train", 8), ("test", 4)):
        for number in range(count):
            save_image(tmp_path / part / "red" / f"{number}.png", (180, 20, 20))
            save_image(tmp_path / part / "blue" / f"{number}.png", (20, 20, 180))
    return tmp_path


def spoil(folder: Path) -> None:
    """A damaged file, one without a rule, a link out of the folder and one that leads nowhere."""
    red = folder / "train" / "red"
    whole = (red / "0.png").read_bytes()
    (red / "0.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((8, 8), 70000, np.int32)).save(red / "numbers.tif")
    save_image(folder.parent / "elsewhere" / "1.png", (1, 2, 3))
    (red / "out.png").symlink_to(folder.parent / "elsewhere" / "1.png")
    (red / "gone.png").symlink_to(red / "nothing.png")


def test_unusable_files_are_skipped_and_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(folder)
    task, context = made(folder, unreadable="skip")
    with caplog.at_level(logging.WARNING):
        data = task.client_data(context)
    assert len(data.train) + len(data.validation) == 15
    wanted = {
        "unreadable": 1,
        "refused": 1,
        "link out of the data folder": 1,
        "broken link": 1,
    }
    assert data.counts == wanted
    assert data.unused == wanted
    assert "numbers.tif" in caplog.text
    # The counts go with the facts before round 1, and with the update; names do not.
    facts = checked_facts(task, data)
    assert facts["files"] == (
        "1 broken link, 1 link out of the data folder, 1 refused, 1 unreadable"
    )
    manifest, arrays = initial_model(task, 0)
    assert train_update(task, manifest, arrays, context).files == wanted
    # The evaluator skips, too.
    (folder / "test" / "red" / "0.png").write_bytes(b"")
    tested = task.test_data(str(folder))
    assert tested is not None
    assert len(tested) == 7


def test_unusable_files_are_refused_before_round_1(folder: Path) -> None:
    spoil(folder)
    red = folder / "train" / "red"
    task, context = made(folder)
    with pytest.raises(DataError, match="link"):
        task.client_data(context)
    (red / "out.png").unlink()
    with pytest.raises(DataError, match="leads nowhere") as caught:
        task.client_data(context)
    assert "gone" not in caught.value.public
    (red / "gone.png").unlink()
    data = task.client_data(context)
    with pytest.raises(
        DataError, match=r"2 images cannot be used \(1 unreadable, 1 refused\)"
    ) as caught:
        checked_facts(task, data)
    assert ".png" not in caught.value.public
    (red / "numbers.tif").unlink()
    with pytest.raises(DataError, match="not a readable image"):
        checked_facts(task, task.client_data(context))
    (red / "0.png").unlink()
    assert "files" not in checked_facts(task, task.client_data(context))


def test_a_class_without_a_usable_image_is_refused(folder: Path) -> None:
    for path in (folder / "train" / "red").iterdir():
        path.write_bytes(b"no image")
    task, context = made(folder, unreadable="skip")
    with pytest.raises(DataError, match="no image that can be used"):
        task.client_data(context)


@pytest.mark.parametrize("is_one_left", [True, False])
def test_first_samples_without_content_are_refused(folder: Path, is_one_left: bool) -> None:
    task, context = made(folder)
    train = sorted((folder / "train").glob("*/*.png"))
    for number, path in enumerate(train):
        if not is_one_left or number % 2:
            Image.new("RGB", (40, 24), (number, 0, 0)).save(path)
    data = task.client_data(context)
    if is_one_left:
        checked_facts(task, data)
        return
    with pytest.raises(DataError, match="one value in all their pixels"):
        checked_facts(task, data)


def test_reduced_and_clipped_images_are_counted(folder: Path) -> None:
    values = np.linspace(-1, 2, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(folder / "train" / "red" / "numbers.tif")
    task, context = made(folder, range=[0.0, 1.0])
    facts = checked_facts(task, task.client_data(context))
    assert facts["files"] == "1 clipped"


def test_a_file_is_decoded_once_until_it_is_written_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, context = made(folder, unreadable="skip")
    task.client_data(context)

    def never(*arguments: Any) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(survey, "read", never)
    task.client_data(context)
    save_image(folder / "train" / "red" / "0.png", (1, 2, 3), (20, 20))
    with pytest.raises(AssertionError):
        task.client_data(context)


def test_a_long_look_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task, context = made(folder)
    monkeypatch.setattr(survey, "LOOK_S", -1.0)
    with caplog.at_level(logging.WARNING):
        checked_facts(task, task.client_data(context))
    assert "looked at 0 of 16 images" in caplog.text


def test_what_is_remembered_of_a_bad_image_holds_nothing_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    problem = survey.look(tmp_path / "bad.png", ImageSettings(channels=3)).problem
    assert problem is not None
    assert (problem.kind, bool(problem.reason)) == ("unreadable", True)
    # Frames of a traceback hold the decoded part of an image.
    assert problem.__cause__ is problem.__context__ is problem.__traceback__ is None
