"""Image folders: reading real files, the order of classes, and clear errors."""

import pytest
import torch
from PIL import Image

from fl_queue.client.local_update import evaluate_version, initial_model, train_update
from fl_queue.config.run_config import RunConfig
from fl_queue.config.task_catalog import TASKS
from fl_queue.errors import ConfigError, DataError
from fl_queue.metrics import finish
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task
from tests.support.images import save_image


def config_of(partition="site", batch_size=8, epochs=1, **options):
    return RunConfig.from_dict(
        {
            "run": {"task": "image-folder"},
            "data": {"partition": partition, "validation_fraction": 0.25},
            "train": {"batch_size": batch_size, "learning_rate": 0.01, "epochs": epochs},
            "task": {"image_size": 32} | options,
        }
    )


def task_of(folder, **options):
    return load_task("image-folder", config_of(**options), data_dir=str(folder))


def context_of(task, **values):
    defaults = {"client": "a", "run": "run", "round_number": 1, "data_dir": task.config.data.dir}
    return ClientContext.of(task.config, **(defaults | values))


@pytest.fixture
def folder(tmp_path):
    """Twelve reddish and twelve bluish training images, and four of each for the test."""
    for part, count in (("train", 12), ("test", 4)):
        for number in range(count):
            save_image(tmp_path / part / "red" / f"{number}.png", (180, 20, 20))
            save_image(tmp_path / part / "blue" / f"{number}.jpg", (20, 20, 180))
    return tmp_path


def test_images_are_resized_scaled_and_labelled_by_sorted_folder(folder):
    task = task_of(folder)
    pixels, label = task.test_data(str(folder))[0]
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32), torch.float32)
    assert 0.0 <= pixels.min() <= pixels.max() <= 1.0
    assert label == 0  # blue
    assert pixels[2].mean() > pixels[0].mean()


def test_listed_classes_fix_the_order_for_all_sites(folder):
    dataset = task_of(folder, classes="red, green, blue").test_data(str(folder))
    labels = {path.parent.name: label for path, label in dataset.items}
    assert labels == {"red": 0, "blue": 2}


def test_a_model_learns_the_colours(folder):
    # BatchNorm needs full batches and some steps until its running statistics are of use.
    task = task_of(folder, classes="red,blue", batch_size=6, epochs=10)
    manifest, arrays = initial_model(task, 0)
    context = context_of(task)
    trained = train_update(task, manifest, arrays, context)
    assert trained.num_examples == 18
    assert trained.metrics["num_examples"] == 6
    kinds = {spec.name: spec.kind for spec in manifest.tensors}
    assert kinds["bn1.running_mean"] == "float_buffer"
    assert kinds["bn1.num_batches_tracked"] == "integer_buffer"
    # 18 samples in batches of 6, ten epochs.
    assert trained.tensors["bn1.num_batches_tracked"] == 30
    local = {
        spec.name: trained.tensors[spec.name]
        + (0 if spec.kind == "integer_buffer" else arrays[spec.name])
        for spec in manifest.tensors
    }
    sums = evaluate_version(task, manifest, local, task.test_data(str(folder)), context)
    assert sums["num_examples"] == 8
    assert finish(sums)["accuracy"] > 0.9


def test_shares_of_one_folder_are_disjoint(folder):
    task = task_of(folder, partition="iid")
    files = []
    for share in range(3):
        data = task.client_data(context_of(task, share=share, shares=3))
        files += [path for path, _ in data.train.items + data.validation.items]
    assert len(files) == len(set(files)) == 24


def test_natural_shares_of_a_folder_are_those_of_whole_owners(tmp_path):
    for owner in ("ann", "bob", "cyd"):
        for number in range(2):
            save_image(tmp_path / "train" / "red" / owner / f"{number}.png", (180, 20, 20))
            save_image(
                tmp_path / "train" / "blue" / owner / "deep" / f"{number}.png", (20, 20, 180)
            )
    task = task_of(tmp_path, partition="natural")
    owners = []
    for share in range(3):
        data = task.client_data(context_of(task, share=share, shares=3))
        paths = [path for path, _ in data.train.items + data.validation.items]
        assert len(paths) == 4
        owners += {path.relative_to(tmp_path).parts[2] for path in paths}
    assert sorted(owners) == ["ann", "bob", "cyd"]
    save_image(tmp_path / "train" / "red" / "stray.png", (180, 20, 20))
    with pytest.raises(DataError, match="no owner's folder") as caught:
        task.client_data(context_of(task, share=0, shares=3))
    assert caught.value.path.endswith("stray.png")


@pytest.mark.parametrize("model", TASKS["image-folder"].options["model"].choices)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_model_takes_grey_and_colour_images(model, channels):
    task = load_task("image-folder", config_of(model=model, channels=channels, classes="a,b,c"))
    # Shapes without numbers: drawing initial weights of twelve models takes longer than all else here.
    with torch.device("meta"):
        output = task.build_model().eval()(torch.zeros(2, channels, 32, 32))
    assert output.shape == (2, 3)


def test_grey_images_have_one_channel(folder):
    pixels, _ = task_of(folder, channels=1).test_data(str(folder))[0]
    assert pixels.shape == (1, 32, 32)


def test_unreadable_image_is_named(folder):
    bad = folder / "train" / "red" / "0.png"
    manifest, arrays = initial_model(task_of(folder), 0)
    for content in (b"not an image", b"", bad.read_bytes()[:60]):
        bad.write_bytes(content)
        task = task_of(folder)
        with pytest.raises(DataError) as caught:
            train_update(task, manifest, arrays, context_of(task))
        assert caught.value.path == str(bad)


def test_a_class_that_is_not_listed_is_named(folder):
    with pytest.raises(DataError) as caught:
        task_of(folder, classes="red,green").test_data(str(folder))
    assert caught.value.path == str(folder / "test" / "blue")
    with pytest.raises(DataError, match=r"add it to task.classes; did you mean Blue\?"):
        task_of(folder, classes="red,Blue").test_data(str(folder))


def test_hidden_files_and_folders_are_not_data(folder):
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "red" / "._0.png").write_bytes(b"resource fork")
    task = task_of(folder)
    assert len(task.client_data(context_of(task)).train) == 18


def test_what_is_not_read_is_counted(folder, tmp_path_factory, caplog):
    red = folder / "train" / "red"
    for name in ("scan.npy", "deep/other.NPY", "volume.img.gz", "README", ".DS_Store"):
        (red / name).parent.mkdir(exist_ok=True)
        (red / name).write_bytes(b"x")
    (folder / "train" / "list.csv").write_text("a,b")
    more = tmp_path_factory.mktemp("more")
    save_image(more / "25.png", (180, 20, 20))
    (red / "linked").symlink_to(more)
    (red / "single.png").symlink_to(red / "0.png")
    task = task_of(folder)
    data = task.client_data(context_of(task))
    assert len(data.train) + len(data.validation) == 25
    assert data.unused == {
        ".npy": 2,
        ".gz": 1,
        ".csv": 1,
        "files without a suffix": 1,
        "hidden": 1,
        "link to a folder out of the data folder": 1,
    }
    assert "not read as images: 1 .csv, 1 .gz, 2 .npy" in caplog.text


@pytest.mark.parametrize("name", ["scan.npy", "elsewhere"])
def test_a_class_without_an_image_among_its_files_is_refused(folder, name):
    empty = folder / "train" / "green"
    empty.mkdir()
    task = task_of(folder)
    task.client_data(context_of(task))
    if name == "elsewhere":
        (empty / name).symlink_to(folder.parent)
    else:
        (empty / name).write_bytes(b"x")
    with pytest.raises(DataError, match="has no image, and 1 ") as caught:
        task.client_data(context_of(task))
    assert caught.value.path == str(empty)
    assert name not in caught.value.public


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_a_file_of_several_pictures_is_refused_by_name(folder, suffix):
    pages = [Image.new("L", (32, 32), value) for value in (10, 200, 30)]
    path = folder / "test" / "blue" / f"a.{suffix}"
    pages[0].save(path)
    stack = folder / "test" / "blue" / f"b.{suffix}"
    pages[0].save(stack, save_all=True, append_images=pages[1:])
    images = task_of(folder).test_data(str(folder))
    at = [item[0] for item in images.items]
    assert images[at.index(path)][0].shape == (3, 32, 32)
    with pytest.raises(DataError, match=r"3 pictures") as caught:
        images[at.index(stack)]
    assert caught.value.path == str(stack)


def test_a_cameras_picture_with_a_second_view_is_read(folder):
    path = folder / "test" / "blue" / "0.jpg"
    pages = [Image.new("RGB", (32, 32), (0, 0, value)) for value in (200, 10)]
    pages[0].save(path, format="MPO", save_all=True, append_images=pages[1:])
    pixels, _ = task_of(folder).test_data(str(folder))[0]
    assert pixels[2].mean() > 0.7


def test_missing_and_empty_folders_are_named(tmp_path):
    task = task_of(tmp_path, classes="a,b")
    with pytest.raises(DataError) as caught:
        task.client_data(context_of(task))
    assert caught.value.path == str(tmp_path / "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        task.client_data(context_of(task))
    (tmp_path / "train" / "a").mkdir()
    with pytest.raises(DataError, match="no images"):
        task.client_data(context_of(task))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "task.classes"),
        ({"classes": "only"}, "task.classes"),
        ({"classes": "a,b,a"}, "task.classes"),
        ({"classes": "a,b", "channels": 2}, "task.channels"),
        ({"classes": "a,b", "model": "densenet121", "image_size": 8}, "task.image_size"),
    ],
)
def test_unusable_options_name_the_field(options, field):
    with pytest.raises(ConfigError) as caught:
        load_task("image-folder", config_of(**options)).build_model()
    assert caught.value.field == field


def test_without_a_data_folder():
    task = load_task("image-folder", config_of(classes="a,b"))
    assert task.test_data("") is None
    with pytest.raises(ConfigError) as caught:
        task.client_data(context_of(task))
    assert caught.value.field == "data.dir"


def test_batch_size_one_is_refused_with_batchnorm(folder):
    task = task_of(folder, batch_size=1)
    manifest, arrays = initial_model(task, 0)
    with pytest.raises(ConfigError) as caught:
        train_update(task, manifest, arrays, context_of(task))
    assert caught.value.field == "train.batch_size"
