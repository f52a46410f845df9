"""Random changes of training images: by name, of training images alone, and the same when a job is done again."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from fl_queue.client.local_update import evaluate_version, initial_model, train_update
from fl_queue.config import loading
from fl_queue.config.image_options import AUGMENTATIONS
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.experiments.trial import run_trial
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.image_folder import ImageFiles, balanced
from fl_queue.tasks.images import augmentation
from fl_queue.tasks.loading import load_task
from fl_queue.training.data_loading import LoaderSettings, iterate_batches
from fl_queue.training.sgd import local_sgd
from tests.support.images import image_task, save_image

IMAGE = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, sizes in (("train", (9, 27)), ("test", (4, 8))):
        for name, count, colour in zip(
            ("NORMAL", "PNEUMONIA"), sizes, ((20, 20, 20), (160, 160, 160)), strict=True
        ):
            for number in range(count):
                save_image(tmp_path / part / name / f"{number}.jpeg", colour)
    save_image(tmp_path / "val" / "NORMAL" / "0.jpeg", (20, 20, 20))
    return tmp_path


made = partial(image_task, "NORMAL,PNEUMONIA", 9)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_name_changes_images_and_keeps_their_shape_and_range(name: str) -> None:
    change = augmentation.of([name], 16, 3)
    assert change is not None
    found = []
    for seed in range(12):
        torch.manual_seed(seed)
        found.append(change(IMAGE))
        torch.manual_seed(seed)
        assert torch.equal(change(IMAGE), found[-1])
    assert all(image.shape == IMAGE.shape and image.dtype == IMAGE.dtype for image in found)
    assert all(image.min() >= 0 and image.max() <= 1 for image in found)
    assert any(not torch.equal(image, IMAGE) for image in found)


def test_there_is_a_change_for_each_name() -> None:
    assert list(augmentation._CHANGES) == list(AUGMENTATIONS)
    assert augmentation.of((), 16, 3) is None


def test_a_typing_error_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"'flop' is not one of flip, .*erase.*did you mean flip"):
        RunConfig.from_dict({"run": {"task": "image-folder"}, "task": {"augment": ["flop"]}})
    with pytest.raises(ConfigError, match="channels = 3"):
        augmentation.of(["colour"], 16, 1)


def test_training_images_alone_are_changed(folder: Path) -> None:
    plain, context = made(folder)
    changed, _ = made(folder, augment=["affine", "brightness"])
    before, after = plain.client_data(context), changed.client_data(context)
    torch.manual_seed(1)
    assert not torch.equal(before.train[0][0], after.train[0][0])
    assert torch.equal(before.validation[0][0], after.validation[0][0])
    assert changed.test_data(str(folder)).change is None  # type: ignore[union-attr]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_is_changed_the_same_by_any_process_and_anew_in_each_epoch(
    folder: Path, workers: int
) -> None:
    task, context = made(folder, augment=["affine"])
    dataset = task.client_data(context).train

    def read(epoch: int, count: int) -> torch.Tensor:
        reading = LoaderSettings(seed=4, epoch=epoch, workers=count)
        return next(iter(iterate_batches(dataset, [[0, 1], [2, 3]], reading)))[0]

    assert torch.equal(read(1, workers), read(1, 0))
    assert not torch.equal(read(1, workers), read(2, workers))


# Weights of classes


def test_balanced_classes_have_the_same_part_in_the_loss() -> None:
    assert balanced([0, 1, 1, 1], 2) == [2.0, 4 / 6]
    assert balanced([1, 1], 3) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("chosen", ["balanced", "1,3"])
def test_the_training_loss_has_the_weights_and_an_evaluation_has_none(
    folder: Path, chosen: str
) -> None:
    task, context = made(folder, class_weights=chosen)
    data = task.client_data(context)
    assert isinstance(data.train, ImageFiles)
    labels = [label for _, label in data.train.items]
    weight = torch.tensor(balanced(labels, 2) if chosen == "balanced" else [1.0, 3.0])
    output, target = torch.tensor([[1.0, 2.0], [0.5, 0.0]]), torch.tensor([0, 1])
    found = task.training_loss(data, context)(output, target)
    each = functional.cross_entropy(output, target, reduction="none")
    torch.testing.assert_close(found, (weight[target] * each).mean())
    assert torch.equal(
        task.loss_in(context)(output, target), functional.cross_entropy(output, target)
    )
    manifest, arrays = initial_model(task, 0)
    plain, _ = made(folder)
    weighted = train_update(task, manifest, arrays, context)
    equal = train_update(plain, manifest, arrays, context)
    assert weighted.metrics == equal.metrics
    assert weighted.train_metrics["loss_sum"] != equal.train_metrics["loss_sum"]


def test_weights_count_alike_in_batches_of_any_size(folder: Path) -> None:
    task, context = made(folder, class_weights="1,30")
    loss = task.training_loss(task.client_data(context), context)
    drawn = torch.Generator().manual_seed(2)
    rows = TensorDataset(torch.randn(8, 3, generator=drawn), torch.tensor([0, 1, 0, 0, 0, 0, 1, 1]))
    found = []
    for size, accumulate in ((8, 1), (4, 2), (1, 8)):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        sums = local_sgd(
            model, rows, loss, seed=1, epochs=1, batch_size=size, accumulate=accumulate, learning_rate=0.1
        )  # fmt: skip
        found.append((model.weight.detach(), sums["loss_sum"]))
    for weight, total in found[1:]:
        torch.testing.assert_close(weight, found[0][0])
        assert total == pytest.approx(found[0][1])


def test_weights_that_cannot_be_used_are_refused(folder: Path) -> None:
    task, context = made(folder, class_weights="1,2,3")
    with pytest.raises(ConfigError, match="3 weights for 2 classes"):
        task.training_loss(task.client_data(context), context)
    for value in ("equal", "1,-2", "0,1", "nan,1"):
        with pytest.raises(ConfigError, match="positive number for each class"):
            RunConfig.from_dict({"run": {"task": "image-folder"}, "task": {"class_weights": value}})


# The config for chest X-rays


def test_the_chest_x_ray_layout_runs_as_it_is(folder: Path) -> None:
    config = loading.load(
        "chest-xray", ("task.image_size=32", "train.epochs=8", "train.batch_size=9")
    )
    assert config.task["augment"]
    done = run_trial(config, str(folder))
    assert (done.problem, dict(done.unused)) == ("", {})
    assert done.num_examples + done.num_validation == 36
    assert "auc" in done.trained
    # What a site would send is trained further to a model that the evaluator scores.
    task = load_task("image-folder", config, data_dir=str(folder))
    context = ClientContext.of(config, client="a", run="run", round_number=1, data_dir=str(folder))
    manifest, arrays = initial_model(task, 0)
    tested = task.test_data(str(folder))
    assert tested is not None
    assert evaluate_version(task, manifest, arrays, tested, context)["num_examples"] == 12
