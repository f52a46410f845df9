"""DICOM files, made here, and their pixels by the formulas of the standard."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, DataError
from fl_queue.tasks.images import dicom
from fl_queue.tasks.images.decoding import decode, read
from fl_queue.tasks.images.settings import ImageSettings

pydicom = pytest.importorskip("pydicom")

GREY = ImageSettings(channels=1)
CT = np.array([[0, 24, 1024, 1424], [2024, 3000, 4000, 4095]], dtype=np.uint16)


def written(folder: Path, values: NDArray[Any], name: str = "a.dcm", **elements: Any) -> Path:
    """A file with these stored values: (frames, height, width), (height, width) or colours (height, width, 3)."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    dataset, bits = Dataset(), 8 * values.itemsize
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = elements.pop("syntax", ExplicitVRLittleEndian)
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    samples = 3 if values.ndim == 3 and values.shape[-1] == 3 else 1
    if values.ndim == 3 and samples == 1:
        dataset.NumberOfFrames = len(values)
    dataset.Rows, dataset.Columns = values.shape[-3:-1] if samples == 3 else values.shape[-2:]
    dataset.SamplesPerPixel = samples
    if samples == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = elements.get("BitsStored", bits) - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    content = elements.pop("content", values.tobytes())
    for key, value in elements.items():
        setattr(dataset, key, value)
    dataset.PixelData = content
    dataset["PixelData"].VR = "OW" if bits == 16 else "OB"
    dataset.save_as(folder / name, enforce_file_format=True)
    return folder / name


def grey(path: Path, chosen: ImageSettings = GREY) -> NDArray[np.float32]:
    return decode(path, chosen).numpy()[0]


def linear(x: float, centre: float, width: float) -> float:
    """As the standard writes it: PS3.3, C.11.2.1.2.1."""
    if x <= centre - 0.5 - (width - 1) / 2:
        return 0.0
    if x > centre - 0.5 + (width - 1) / 2:
        return 1.0
    return (x - (centre - 0.5)) / (width - 1) + 0.5


def exact(x: float, centre: float, width: float) -> float:
    if x <= centre - width / 2:
        return 0.0
    return 1.0 if x > centre + width / 2 else (x - centre) / width + 0.5


def sigmoid(x: float, centre: float, width: float) -> float:
    return 1 / (1 + math.exp(min(700.0, -4 * (x - centre) / width)))


FUNCTIONS = {"LINEAR": linear, "LINEAR_EXACT": exact, "SIGMOID": sigmoid}


@given(
    function=st.sampled_from(sorted(FUNCTIONS)),
    centre=st.integers(-4000, 4000).map(lambda quarters: quarters / 4),
    width=st.integers(2, 3000),
    x=st.integers(-3000, 3000),
)
@settings(deadline=None)
def test_windows_are_those_of_the_standard(
    function: str, centre: float, width: float, x: int
) -> None:
    found = dicom.window(np.array([float(x)]), centre, width, function)[0]
    assert found == pytest.approx(FUNCTIONS[function](x, centre, width), abs=1e-9)


def test_a_window_of_one_is_a_step() -> None:
    found = dicom.window(np.array([99.0, 100.0]), 100.0, 1.0, "LINEAR")
    assert found.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
def test_rescale_window_and_photometric_interpretation(
    tmp_path: Path, function: str, kind: str
) -> None:
    path = written(
        tmp_path,
        CT,
        BitsStored=12,
        RescaleSlope=1,
        RescaleIntercept=-1024,
        WindowCenter=[40, 500],
        WindowWidth=[400, 1500],
        VOILUTFunction=function,
        PhotometricInterpretation=kind,
    )
    shown = [[FUNCTIONS[function](x - 1024.0, 40, 400) for x in row] for row in CT.tolist()]
    wanted = np.array(shown) if kind == "MONOCHROME2" else 1 - np.array(shown)
    np.testing.assert_allclose(grey(path), wanted, atol=1e-6)
    lung = grey(path, ImageSettings(1, window="-600,1500"))
    first = FUNCTIONS[function](-1024, -600, 1500)
    assert lung[0, 0] == pytest.approx(first if kind == "MONOCHROME2" else 1 - first, abs=1e-6)


def test_a_range_in_place_of_the_window(tmp_path: Path) -> None:
    path = written(
        tmp_path, CT, BitsStored=12, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=1, WindowWidth=2
    )  # fmt: skip
    chosen = ImageSettings(1, window="none", range=(-1000.0, 5000.0))
    np.testing.assert_allclose(grey(path, chosen), (CT * 2.0 / 6000).clip(0, 1), atol=1e-6)
    assert read(path, chosen).clipped == 2
    with pytest.raises(DataError, match=r"task\.range"):
        grey(path, ImageSettings(1, window="none"))


def test_a_modality_table_comes_before_the_window(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4, 0, 16], "HU"
    table.add_new("LUTData", "US", [0, 10, 100, 1000])
    values = np.array([[0, 1], [2, 3]], np.uint16)
    path = written(
        tmp_path, values, ModalityLUTSequence=[table], WindowCenter=500.5, WindowWidth=1001
    )
    np.testing.assert_allclose(grey(path), [[0, 0.01], [0.1, 1.0]], atol=1e-6)


def test_a_table_of_values_of_interest_wins_over_the_window(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    table = Dataset()
    table.LUTDescriptor = [4, 100, 12]
    table.add_new("LUTData", "US", [0, 1000, 2000, 4095])
    values = np.array([[50, 100, 101], [102, 103, 4000]], np.uint16)
    path = written(tmp_path, values, VOILUTSequence=[table], WindowCenter=1, WindowWidth=2)
    wanted = np.array([[0, 0, 1000], [2000, 4095, 4095]]) / 4095
    np.testing.assert_allclose(grey(path), wanted, atol=1e-6)


def test_signs_and_unused_bits(tmp_path: Path) -> None:
    # 12 bits in 16, the upper four hold something else; -2048 is 0x800.
    raw = np.array([[0xF800, 0x5FFF, 0x0001, 0xA7FF]], np.uint16).view(np.int16)
    path = written(tmp_path, raw, BitsStored=12, WindowCenter=0, WindowWidth=4095, VOILUTFunction="LINEAR_EXACT")  # fmt: skip
    wanted = np.array([[-2048, -1, 1, 2047]]) / 4095 + 0.5
    np.testing.assert_allclose(grey(path), wanted.clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
def test_padding_is_black(tmp_path: Path, kind: str) -> None:
    elements: dict[str, Any] = {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4095}
    path = written(
        tmp_path, CT, BitsStored=12, PhotometricInterpretation=kind, WindowCenter=1500, WindowWidth=3001, **elements
    )  # fmt: skip
    found = grey(path)
    assert found[1, 2:].tolist() == [0, 0]
    assert found[0, 3] > 0
    chosen = ImageSettings(1, window="none", range=(0.0, 3500.0))
    assert read(path, chosen).clipped == 0


def test_eight_bits_without_a_window_are_what_a_screen_shows(tmp_path: Path) -> None:
    values = np.array([[0, 51, 255]], np.uint8)
    assert np.array_equal(grey(written(tmp_path, values)), values / np.float32(255))
    with pytest.raises(DataError, match="has no window"):
        grey(written(tmp_path, CT))
    with pytest.raises(DataError, match="has no window"):
        grey(written(tmp_path, values, RescaleSlope=2, RescaleIntercept=0))


def test_colours_and_palettes(tmp_path: Path) -> None:
    colours = np.array([[[255, 0, 51], [10, 20, 30]]], np.uint8)
    found = decode(written(tmp_path, colours), ImageSettings(3)).numpy()
    assert np.array_equal(found, colours.transpose(2, 0, 1) / np.float32(255))
    deep = (colours.astype(np.uint16) * 257).astype(np.uint16)
    np.testing.assert_allclose(
        decode(written(tmp_path, deep), ImageSettings(3)).numpy(), found, atol=1e-6
    )
    lightness = np.tensordot([0.299, 0.587, 0.114], found, axes=1)
    np.testing.assert_allclose(grey(written(tmp_path, deep)), lightness, atol=1e-6)
    tables = {
        f"{name}PaletteColorLookupTable{part}": value
        for name, table in (("Red", [0, 65535]), ("Green", [0, 13107]), ("Blue", [65535, 0]))
        for part, value in (
            ("Descriptor", [2, 0, 16]),
            ("Data", np.array(table, np.uint16).tobytes()),
        )
    }
    values = np.array([[0, 1]], np.uint8)
    path = written(tmp_path, values, PhotometricInterpretation="PALETTE COLOR", **tables)
    found = decode(path, ImageSettings(3)).numpy()[:, 0]
    np.testing.assert_allclose(found, [[0, 1], [0, 0.2], [1, 0]], atol=1e-6)


def test_lightness_and_chroma_become_colours(tmp_path: Path) -> None:
    path = written(tmp_path, np.array([[[76, 85, 255]]], np.uint8), PhotometricInterpretation="YBR_FULL")  # fmt: skip
    red, green, blue = decode(path, ImageSettings(3)).numpy()[:, 0, 0]
    assert (red, green, blue) == pytest.approx((1, 0, 0), abs=0.01)


def test_a_frame_of_several_is_chosen_by_the_config(tmp_path: Path) -> None:
    values = np.stack([np.full((4, 4), value, np.uint8) for value in (10, 200, 90)])
    path = written(tmp_path, values)
    with pytest.raises(DataError, match=r"holds 3 pictures; .* task\.frame"):
        grey(path)
    assert grey(path, ImageSettings(1, frame=1))[0, 0] == np.float32(200 / 255)
    with pytest.raises(DataError, match=r"task\.frame = 3"):
        grey(path, ImageSettings(1, frame=3))


def test_a_compression_without_decoder_is_named_with_its_packages(tmp_path: Path) -> None:
    from pydicom.encaps import encapsulate
    from pydicom.uid import MPEG2MPML, JPEGLosslessSV1, RLELossless

    content = encapsulate([b"abcd"])
    path = written(tmp_path, CT, syntax=JPEGLosslessSV1, content=content)
    try:
        import pylibjpeg  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(DataError, match=r"JPEG Lossless.*install.*pylibjpeg") as caught:
            grey(path)
        assert "a.dcm" not in caught.value.public
    with pytest.raises(DataError, match=r"MPEG2.*convert it"):
        grey(written(tmp_path, CT, syntax=MPEG2MPML, content=content))
    with pytest.raises(DataError, match="not a readable image"):
        grey(written(tmp_path, CT, syntax=RLELossless, content=content))


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"PhotometricInterpretation": "ARGB"}, "interpretation ARGB"),
        ({"WindowCenter": 1, "WindowWidth": 0}, "width 0"),
        ({"WindowCenter": 1, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "function CUBIC"),
        ({"HighBit": 11}, "highest bit at 11"),
    ],
)
def test_what_no_rule_explains_is_refused(
    tmp_path: Path, elements: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        grey(written(tmp_path, CT, **elements))
    assert caught.value.path.endswith("a.dcm")
    assert message not in caught.value.public


@pytest.mark.parametrize("groups", dicom._GROUPS)
@pytest.mark.parametrize("meaning", dicom._MEANINGS)
def test_values_whose_meaning_is_in_groups_of_frames_are_refused(
    tmp_path: Path, groups: str, meaning: str
) -> None:
    """Read without them, the values of an enhanced CT would be too large by 1024."""
    from pydicom.dataset import Dataset

    group = Dataset()
    setattr(group, meaning, [Dataset()])
    path = written(tmp_path, np.stack([CT, CT]), **{groups: [group]})
    chosen = ImageSettings(channels=1, frame=0, window="40,400")
    with pytest.raises(DataError, match="enhanced DICOM file"):
        decode(path, chosen)


def test_damaged_files_are_unreadable(tmp_path: Path) -> None:
    whole = written(tmp_path, CT, WindowCenter=1, WindowWidth=9).read_bytes()
    for content in (b"", b"no image", whole[:200], whole[:-10]):
        (tmp_path / "b.dcm").write_bytes(content)
        with pytest.raises(DataError, match=r"not a readable image|without pixels"):
            grey(tmp_path / "b.dcm")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ConfigError, match=r"pydicom.*\[medical\]"):
        grey(tmp_path / "a.dcm")


@pytest.mark.parametrize("value", ["lung", "1", "1,0", "1,-2", "nan,2", "1,2,3"])
def test_windows_that_cannot_be_used_are_refused_when_the_config_is_read(value: str) -> None:
    with pytest.raises(ConfigError, match="centre and width"):
        RunConfig.from_dict({"run": {"task": "image-folder"}, "task": {"window": value}})
