"""The example of examples/monai: a trial of its task, and its metric beside MONAI's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fl_queue import load_config, try_task
from fl_queue.metrics import finish
from fl_queue.tasks import ClientContext, load_task
from tests.support.checkout import ROOT


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the folder of the example, as its README has it; its module is forgotten afterwards."""
    monkeypatch.chdir(ROOT / "examples/monai")
    monkeypatch.syspath_prepend(str(ROOT / "examples/monai"))
    yield
    sys.modules.pop("segmentation", None)


def test_the_example_finds_circles() -> None:
    found = try_task(load_config("segmentation.toml"))

    assert (found.problem, found.num_examples, found.num_validation) == ("", 48, 16)
    assert found.trained["dice"] > 0.8 > 0.5 > found.base["dice"]


def test_dice_is_that_of_monai_and_samples_are_seeded() -> None:
    # Here: each process that collects tests would import it for seconds.
    from monai.metrics import compute_dice
    from monai.networks import one_hot

    name = "segmentation:Segment"
    task = load_task(name, load_config("segmentation.toml"), [name])
    rounds = [
        ClientContext.of(task.config, client="a", run="run", round_number=number)
        for number in (1, 2)
    ]
    torch.manual_seed(0)
    model, data = task.build_model().eval(), task.client_data(rounds[0])
    image, mask = torch.utils.data.default_collate([*data.validation])
    with torch.no_grad():
        # All images as one, side by side.
        side = [torch.cat([*one], -1)[None] for one in (model(image), mask[:, None])]
    predicted, truth = one_hot(side[0].argmax(1, keepdim=True), 2), one_hot(side[1], 2)
    wanted = float(compute_dice(predicted, truth, include_background=False))

    assert finish(task.evaluate(model, data.validation, rounds[0]))["dice"] == pytest.approx(wanted)
    # The images are of the site, and not of the round; a change of one is of its reading's seed.
    again = task.client_data(rounds[1])
    for one, other in ((data.train, again.train), (data.train, data.train)):
        read = []
        for samples in (one, other):
            np.random.seed(5)
            read.append(samples[3])
        assert all(torch.equal(a, b) for a, b in zip(*read, strict=True))
