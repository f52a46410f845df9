"""NIfTI volumes, made here: scaled values, the patient's directions, one slice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, DataError
from fl_queue.tasks.images.decoding import decode, read
from fl_queue.tasks.images.settings import ImageSettings

nibabel = pytest.importorskip("nibabel")

#: Right, anterior, superior: 3 x 4 x 5.
VOLUME = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def written(
    folder: Path, values: NDArray[Any], directions: Any = None, name: str = "a.nii"
) -> Path:
    image = nibabel.Nifti1Image(values, np.eye(4) if directions is None else directions)
    nibabel.save(image, folder / name)
    return folder / name


def shown(path: Path, plane: str, **options: Any) -> NDArray[np.float32]:
    chosen = ImageSettings(1, range=(0.0, 59.0), slice=plane, **options)
    return decode(path, chosen).numpy()[0] * 59


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_slices_of_a_volume(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, VOLUME, name=name)
    for plane, wanted in (
        ("axial:1", VOLUME[:, :, 1].T[::-1]),
        ("axial:middle", VOLUME[:, :, 2].T[::-1]),
        ("coronal:0", VOLUME[:, 0].T[::-1]),
        ("sagittal:2", VOLUME[2].T[::-1]),
    ):
        np.testing.assert_allclose(shown(path, plane), wanted, atol=1e-4)


def test_axes_are_turned_to_the_patient(tmp_path: Path) -> None:
    # Stored as left, posterior, superior.
    turned = written(tmp_path, VOLUME[::-1, ::-1], np.diag([-1.0, -1.0, 1.0, 1.0]))
    np.testing.assert_allclose(shown(turned, "axial:1"), VOLUME[:, :, 1].T[::-1], atol=1e-4)
    # Stored with the superior axis first.
    swapped = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    path = written(tmp_path, VOLUME.transpose(2, 0, 1), swapped)
    np.testing.assert_allclose(shown(path, "axial:1"), VOLUME[:, :, 1].T[::-1], atol=1e-4)


def test_a_flat_image_is_turned_to_the_patient_too(tmp_path: Path) -> None:
    turned = written(tmp_path, VOLUME[::-1, :, 0], np.diag([-1.0, 1.0, 1.0, 1.0]))
    np.testing.assert_allclose(shown(turned, ""), VOLUME[:, :, 0].T[::-1], atol=1e-4)


def test_slope_and_intercept_come_before_the_range(tmp_path: Path) -> None:
    path = written(tmp_path, VOLUME)
    with path.open("r+b") as file:
        # scl_slope and scl_inter of the header; nibabel itself would scale the values while it saves.
        file.seek(112)
        file.write(np.array([2, -20], "<f4").tobytes())
    whole = VOLUME * 2.0 - 20
    chosen = ImageSettings(1, range=(0.0, 10.0), slice="axial:0")
    wanted = (whole[:, :, 0].T[::-1] / 10).clip(0, 1)
    np.testing.assert_allclose(decode(path, chosen).numpy()[0], wanted, atol=1e-6)
    assert read(path, chosen).clipped == int(((whole[:, :, 0] > 10) | (whole[:, :, 0] < 0)).sum())


def test_a_volume_of_one_slice_needs_no_choice(tmp_path: Path) -> None:
    path = written(tmp_path, VOLUME[:, :, :1])
    np.testing.assert_allclose(shown(path, ""), VOLUME[:, :, 0].T[::-1], atol=1e-4)
    flat = written(tmp_path, VOLUME[:, :, 0])
    np.testing.assert_allclose(shown(flat, ""), VOLUME[:, :, 0].T[::-1], atol=1e-4)


def test_a_time_of_a_series_is_chosen_by_the_config(tmp_path: Path) -> None:
    path = written(tmp_path, np.stack([VOLUME, VOLUME[::-1]], axis=-1))
    with pytest.raises(DataError, match=r"holds 2 pictures; .*task\.frame"):
        shown(path, "axial:0")
    found = shown(path, "axial:0", frame=1)
    np.testing.assert_allclose(found, VOLUME[::-1, :, 0].T[::-1], atol=1e-4)


def test_what_the_config_does_not_decide_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, VOLUME)
    with pytest.raises(DataError, match=r"a volume.*task\.slice"):
        shown(path, "")
    with pytest.raises(DataError, match="5 axial slices"):
        shown(path, "axial:5")
    with pytest.raises(DataError, match=r"task\.range"):
        decode(path, ImageSettings(1, slice="axial:0"))


@pytest.mark.parametrize("name", ["b.nii", "b.nii.gz"])
def test_damaged_files_are_unreadable(tmp_path: Path, name: str) -> None:
    whole = written(tmp_path, VOLUME, name=name).read_bytes()
    for content in (b"", b"no volume", whole[:100], whole[:-40]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="not a readable image"):
            shown(tmp_path / name, "axial:4")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ConfigError, match=r"nibabel.*\[medical\]"):
        shown(tmp_path / "a.nii", "")


@pytest.mark.parametrize("value", ["axial", "top:1", "axial:-1", "axial:1.5", "middle"])
def test_slices_that_cannot_be_used_are_refused_when_the_config_is_read(value: str) -> None:
    with pytest.raises(ConfigError, match="axial, coronal or sagittal"):
        RunConfig.from_dict({"run": {"task": "image-folder"}, "task": {"slice": value}})
