"""The MNIST tasks: exact sizes, the excerpt, the full set's files, and that they learn."""

import gzip
import os

import numpy as np
import pytest
import torch

from fl_queue.client.local_update import evaluate_version, initial_model, train_update
from fl_queue.config.loading import load
from fl_queue.config.run_config import RunConfig
from fl_queue.data.idx import encode_idx, read_idx
from fl_queue.errors import ConfigError, DataError
from fl_queue.metrics import finish
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task


def context_of(config, **values):
    defaults = {"client": "a", "run": "run", "round_number": 1}
    return ClientContext.of(config, **(defaults | values))


def data_of(task, context):
    data = task.client_data(context)
    return data.train.tensors, data.validation.tensors


def config_of(task, **data):
    return RunConfig.from_dict({"run": {"task": task}, "data": data})


@pytest.fixture
def full(tmp_path):
    """A folder with a small data set under MNIST's standard names."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(encode_idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(encode_idx(labels))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("mnist-3v7", 785), ("mnist-2nn", 199_210), ("mnist-cnn", 1_663_370)],
)
def test_parameter_counts_are_those_of_the_papers(name, parameters):
    task = load_task(name, config_of(name))
    model = task.build_model()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    inputs, target = task.test_data("").tensors
    output = model(inputs[:3])
    assert output.shape == ((3, 1) if name == "mnist-3v7" else (3, 10))
    assert torch.isfinite(task.loss(output, target[:3]))


def test_excerpt_has_every_digit_equally_often_and_pixels_in_unit_range():
    task = load_task("mnist-2nn", config_of("mnist-2nn", validation_fraction=0.0))
    (inputs, target), (held, _) = data_of(task, context_of(task.config))
    assert (inputs.shape, inputs.dtype, len(held)) == ((10_000, 784), torch.float32, 0)
    assert np.bincount(target).tolist() == [1000] * 10
    assert (float(inputs.min()), float(inputs.max())) == (0.0, 1.0)
    test_inputs, test_target = task.test_data("").tensors
    assert (len(test_inputs), np.bincount(test_target).tolist()) == (2000, [200] * 10)


def test_three_is_class_one_and_all_of_the_test_set_is_used():
    task = load_task("mnist-3v7", config_of("mnist-3v7"))
    inputs, target = task.test_data("").tensors
    assert (len(inputs), int(target.sum())) == (400, 200)
    certain = torch.tensor([[100.0], [-100.0]])
    assert task.loss(certain, torch.tensor([1, 0])) == 0.0
    assert task.loss(certain, torch.tensor([0, 1])) == 1.0
    assert task.loss(torch.zeros(2, 1), torch.tensor([0, 1])) == 0.5


def test_a_clients_samples_are_fixed_for_the_run_and_its_own():
    config = load("mnist-3v7")
    task = load_task("mnist-3v7", config)
    (first, target), (held, _) = data_of(task, context_of(config, shares=3))
    (later, _), _ = data_of(task, context_of(config, shares=3, round_number=9, run="other"))
    (others, _), _ = data_of(task, context_of(config, shares=3, share=1, client="b"))
    assert torch.equal(first, later)
    assert 40 <= len(first) <= 60
    assert 20 <= len(held) <= 40
    assert 20 <= int(target.sum()) <= 30
    images = {row.numpy().tobytes() for row in first}
    assert not images & {row.numpy().tobytes() for row in torch.cat([held, others])}


def test_threes_and_sevens_are_learned_from_one_client():
    config = load("mnist-3v7", ("data.train_per_class=[900,900]",))
    task = load_task("mnist-3v7", config)
    manifest, arrays = initial_model(task, 0)
    context = context_of(config)
    trained = train_update(task, manifest, arrays, context)
    local = {name: arrays[name] + trained.tensors[name] for name in arrays}
    sums = evaluate_version(task, manifest, local, task.test_data(""), context)
    finished = finish(sums)
    assert finished["accuracy"] > 0.9
    assert finished["auc"] > 0.97
    assert np.array(sums["confusion"]).sum() == 400
    assert sum(map(sum, sums["logit_histograms"])) == 400


def test_convolutional_network_trains_on_images():
    config = RunConfig.from_dict(
        {
            "run": {"task": "mnist-cnn"},
            "data": {"train_per_class": [2, 2], "validation_per_class": [1, 1]},
        }
    )
    task = load_task("mnist-cnn", config)
    manifest, arrays = initial_model(task, 0)
    trained = train_update(task, manifest, arrays, context_of(config))
    assert trained.num_examples == 20
    assert trained.tensors["conv1.weight"].shape == (32, 1, 5, 5)
    assert finish(trained.metrics).keys() == {"loss", "accuracy", "f1"}


@pytest.mark.parametrize("inside", ["", "MNIST/raw"])
def test_full_set_is_read_from_its_folder(full, tmp_path, inside):
    folder = tmp_path / "other"
    (folder / inside).mkdir(parents=True)
    for file in list(full.glob("*ubyte*")):
        file.rename(folder / inside / file.name)
    task = load_task("mnist-2nn", config_of("mnist-2nn", source="full", validation_fraction=0.5))
    (inputs, _), (held, _) = data_of(task, context_of(task.config, data_dir=str(folder), shares=3))
    assert (len(inputs), len(held)) == (10, 10)
    assert len(task.test_data(str(folder))) == 20


def test_site_uses_all_of_its_own_folder(full):
    config = config_of("mnist-2nn", source="full", partition="site", validation_fraction=0.0)
    task = load_task("mnist-2nn", config, data_dir=str(full))
    (inputs, _), _ = data_of(task, context_of(task.config, data_dir=str(full), share=7, shares=2))
    assert len(inputs) == 60


def test_site_with_the_excerpt_is_refused():
    task = load_task("mnist-2nn", config_of("mnist-2nn", partition="site"))
    with pytest.raises(ConfigError) as caught:
        task.client_data(context_of(task.config))
    assert caught.value.field == "data.partition"


def test_share_beyond_the_split_names_the_field():
    task = load_task("mnist-2nn", config_of("mnist-2nn"))
    with pytest.raises(ConfigError) as caught:
        task.client_data(context_of(task.config, share=4, shares=4))
    assert caught.value.field == "data.shares"


def test_missing_folder_names_it(tmp_path):
    task = load_task("mnist-2nn", config_of("mnist-2nn", source="full"))
    with pytest.raises(DataError) as caught:
        task.test_data(str(tmp_path / "nowhere"))
    assert caught.value.path == str(tmp_path / "nowhere")


def test_failed_download_names_the_folder_and_the_fix(tmp_path):
    # A file where torchvision wants its folder: it cannot even begin.
    (tmp_path / "MNIST").write_text("in the way")
    task = load_task("mnist-2nn", config_of("mnist-2nn", source="full"))
    with pytest.raises(DataError, match="excerpt") as caught:
        task.test_data(str(tmp_path))
    assert caught.value.path == str(tmp_path)


def test_images_and_labels_of_different_sets_are_refused(full):
    (full / "t10k-labels-idx1-ubyte").write_bytes(encode_idx(np.zeros(3, dtype=np.uint8)))
    task = load_task("mnist-2nn", config_of("mnist-2nn", source="full"))
    with pytest.raises(DataError, match="3 labels"):
        task.test_data(str(full))


def garble(content, how):
    if how == "cut":
        return content[:-10]
    if how == "longer":
        return content + b"x"
    if how == "magic":
        return b"\0\0\x0d" + content[3:]
    return how


@pytest.mark.parametrize("how", ["cut", "longer", "magic", b"", b"\0\0", b"<html>not found</html>"])
@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_idx_file_is_named(tmp_path, how, compressed):
    good = encode_idx(np.arange(784, dtype=np.uint16).astype(np.uint8).reshape(1, 28, 28))
    content = garble(good, how)
    file = tmp_path / "images"
    file.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(DataError) as caught:
        read_idx(file, 3)
    assert caught.value.path == str(file)


def test_truncated_or_corrupt_gzip_file_is_named(tmp_path):
    good = gzip.compress(encode_idx(np.arange(100, dtype=np.uint8)))
    file = tmp_path / "labels.gz"
    for content in (
        good[:-12],
        good[:20],
        good[:15] + b"\xff" * 8 + good[23:],
        good[:-8] + b"12345678",
    ):
        file.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_idx(file, 1)
        assert caught.value.path == str(file)


def test_idx_round_trip(tmp_path):
    file = tmp_path / "plain"
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    file.write_bytes(encode_idx(array))
    assert np.array_equal(read_idx(file, 3), array)
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "absent", 3)


def test_files_are_read_once_and_again_when_they_change(full):
    config = config_of("mnist-2nn", source="full", validation_fraction=0.0)
    file = full / "train-images-idx3-ubyte.gz"

    def first_pixels():
        (inputs, _), _ = data_of(
            load_task("mnist-2nn", config), context_of(config, data_dir=str(full))
        )
        pixels = inputs[0].clone()
        inputs.zero_()  # A task may work on its data in place.
        return pixels

    before, inverted = first_pixels(), gzip.compress(encode_idx(255 - read_idx(file, 3)))
    written = file.stat()
    file.write_bytes(b"x" * written.st_size)
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert torch.equal(first_pixels(), before)
    file.write_bytes(inverted)
    assert torch.allclose(first_pixels(), 1 - before)
