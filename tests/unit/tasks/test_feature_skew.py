"""Feature skew: turned and noisy images, the same wherever a client's data are read."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fl_queue.client.site import WorkerSettings
from fl_queue.config.data_section import DataSection
from fl_queue.config.run_config import RunConfig
from fl_queue.config.task_catalog import TASKS
from fl_queue.errors import ConfigError
from fl_queue.protocol import virtual_clients
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.feature_skew import Skew, rotated
from fl_queue.tasks.loading import load_task
from tests.support.site_jobs import SiteJob

SKEWED = {"noise": 0.3, "rotation": 90.0, "shares": 4, "validation_per_class": [3, 3]}


def config_of(task="mnist-3v7", **data):
    return RunConfig.from_dict({"run": {"task": task}, "data": data})


def context_of(config, share=0, shares=1, **values):
    who = {"client": f"sim-{share + 1}", "run": "run", "round_number": 1}
    return ClientContext.of(config, share=share, shares=shares, **(who | values))


def mnist(data, share=0, shares=4, task="mnist-3v7", **values):
    config = config_of(task, train_per_class=[5, 5], **data)
    found = load_task(task, config).client_data(context_of(config, share, shares, **values))
    return found.train.tensors[0], found.validation.tensors[0]


@given(
    side=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    turns=st.integers(0, 8),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_quarter_turns_are_those_of_torch(side, turns, seed):
    height, width = (side[0], side[0]) if turns % 2 else side
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))

    turned = rotated(images, 90 * turns)

    assert torch.allclose(turned, torch.rot90(images, turns, dims=(2, 3)), atol=1e-4)


def test_an_oblong_image_is_rotated_and_not_distorted():
    image = torch.zeros(1, 9, 31)
    image[0, 4, 12:19] = 1  # A bar of seven pixels across the centre.

    turned = rotated(image, 90)[0]

    assert torch.allclose(turned[1:8, 15], torch.ones(7), atol=1e-4)
    assert float(turned.sum()) == pytest.approx(7, abs=1e-3)


def test_each_share_has_its_part_and_the_last_one_all():
    data = DataSection(noise=0.4, rotation=60.0)
    skews = [Skew.of(data, seed=1, client="a", share=i, shares=4) for i in range(4)]

    assert [skew.degrees for skew in skews] == [15, 30, 45, 60]
    assert [skew.deviation for skew in skews] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_the_number_is_a_standard_deviation():
    black = torch.zeros(40, 28, 28)
    skew = Skew.of(DataSection(noise=0.5), seed=1, client="a", share=1, shares=2)

    noise = skew.apply(black, range(40))

    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert not black.any(), "the images that came in were changed"


@given(order=st.permutations(range(6)))
@settings(max_examples=20)
def test_a_samples_noise_is_its_own(order):
    skew = Skew(3, "a", 0.0, 1.0)
    images = torch.zeros(6, 2, 2)

    assert torch.equal(skew.apply(images, order), skew.apply(images, range(6))[list(order)])
    assert not torch.equal(skew.apply(images[:1], [0]), skew.apply(images[:1], [1]))


@pytest.mark.parametrize("other", [{"seed": 4}, {"client": "b"}])
def test_seed_and_client_decide_the_noise(other):
    whose = {"seed": 3, "client": "a", "degrees": 0.0, "deviation": 1.0}
    images = torch.zeros(1, 2, 2)

    assert not torch.equal(
        Skew(**whose).apply(images, [0]), Skew(**(whose | other)).apply(images, [0])
    )


def test_nothing_is_done_to_the_images_when_it_is_off():
    skew = Skew.of(DataSection(), seed=1, client="a", share=0, shares=1)
    images = torch.rand(2, 28, 28)

    assert skew.apply(images, [0, 1]) is images


def test_mnist_is_skewed_in_training_and_validation_and_not_in_the_test_set():
    plain, skewed = mnist({"validation_per_class": [3, 3]}, 1), mnist(SKEWED, 1)
    turned = [rotated(pixels.reshape(-1, 28, 28), 45.0).reshape(-1, 784) for pixels in plain]

    for images, found in zip(turned, skewed, strict=True):
        assert float((found - images).std()) == pytest.approx(0.15, rel=0.05)
    tests = [
        load_task("mnist-3v7", config_of(**data)).test_data("").tensors[0] for data in ({}, SKEWED)
    ]
    assert torch.equal(*tests)


def test_a_round_draws_no_new_noise():
    assert torch.equal(mnist(SKEWED, 1)[0], mnist(SKEWED, 1, round_number=7, run="again")[0])


def test_the_convolutional_task_has_the_same_pixels():
    flat, square = mnist(SKEWED, task="mnist-2nn")[0], mnist(SKEWED, task="mnist-cnn")[0]

    assert torch.equal(flat, square.reshape(flat.shape))


def test_images_of_a_folder_are_skewed_one_by_one(tmp_path):
    for name in ("red", "blue"):
        for number in range(6):
            for part in ("train", "test"):
                path = tmp_path / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(path)

    def read(**data):
        config = RunConfig.from_dict(
            {"run": {"task": "image-folder"}, "data": data, "task": {"image_size": 16}}
        )
        task = load_task("image-folder", config, data_dir=str(tmp_path))
        context = context_of(task.config, 0, 2, data_dir=str(tmp_path))
        found = task.client_data(context)
        return found.train, found.validation, task.test_data(str(tmp_path))

    fraction = {"validation_fraction": 0.5}
    plain = read(**fraction)
    skewed = read(noise=0.2, rotation=180.0, **fraction)

    for part in (0, 1):
        for (image, label), (found, same) in zip(plain[part], skewed[part], strict=True):
            noise = found - rotated(image.unsqueeze(0), 90.0)[0]
            assert (found.shape, same) == (image.shape, label)
            assert float(noise.std()) == pytest.approx(0.1, rel=0.15)
    again = read(noise=0.2, rotation=180.0, **fraction)
    assert all(torch.equal(skewed[0][i][0], again[0][i][0]) for i in range(len(again[0])))
    assert torch.equal(plain[2][0][0], skewed[2][0][0])


# Virtual clients and sites


def context_in_a_worker(client, population):
    """The context of one job, as a worker makes it."""
    config = config_of(train_per_class=[5, 5], **SKEWED)
    job = SiteJob(config, WorkerSettings(threads=1), client, population, shares=4, number=2)
    return config, job.context()


def digest_of(client, population):
    config, context = context_in_a_worker(client, population)
    found = load_task("mnist-3v7", config).client_data(context)
    tensors = (*found.train.tensors, *found.validation.tensors)
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def test_a_pool_process_and_a_site_read_the_same_bytes():
    pool = [digest_of(client, virtual_clients.compact(4)) for client in virtual_clients.clients(4)]
    code = (
        "from tests.unit.tasks.test_feature_skew import digest_of\n"
        "print(digest_of('sim-3', ['sim-1', 'sim-2', 'sim-3', 'sim-4']))"
    )
    site = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()

    assert pool[2] == site
    assert len(set(pool)) == 4


# What is refused


class Unskewed(Task):
    """A custom task without support for feature skew."""

    def build_model(self):
        return torch.nn.Linear(1, 1)

    def client_data(self, context):
        return ClientData([], [])


class Skewing(Unskewed):
    """A custom task that declares that it applies feature skew."""

    skews = True


@pytest.mark.parametrize("field", ["noise", "rotation"])
def test_a_task_that_does_not_apply_it_is_refused(field):
    with pytest.raises(ConfigError, match=f"data.{field}.*csv has none") as found:
        config_of("csv", **{field: 1})
    assert found.value.exit_code == 2
    name = f"{__name__}:Unskewed"
    with pytest.raises(ConfigError, match=rf"data.{field}.*does not apply it.*skews = True"):
        load_task(name, config_of(name, **{field: 1}), (name,))
    assert load_task(name, config_of(name), (name,)).skews is False
    name = f"{__name__}:Skewing"
    assert load_task(name, config_of(name, **{field: 1}), (name,)).skews


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"noise": -0.1}, "data.noise.*at least 0"),
        ({"rotation": 361}, "data.rotation.*at most 360"),
        ({"noise": "loud"}, "data.noise.*not a number"),
        ({"noise": 0.1, "partition": "site", "source": "full"}, "data.noise.*no shares"),
    ],
)
def test_what_cannot_be_is_refused_when_the_config_is_read(data, reason):
    with pytest.raises(ConfigError, match=reason):
        config_of(**data)


def test_the_catalog_agrees_with_the_tasks():
    declared = {name: entry.skews for name, entry in TASKS.items()}
    # Transformers have no model of their own.
    needs = {name: {"architecture": "bert"} for name in ("text-classification", "causal-lm")}
    needs["table"] = {"features": "age"}
    configs = {
        name: RunConfig.from_dict({"run": {"task": name}, "task": needs.get(name, {})})
        for name in TASKS
    }

    assert declared == {name: load_task(name, configs[name]).skews for name in TASKS}
