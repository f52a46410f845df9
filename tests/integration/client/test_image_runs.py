"""Whole runs of images with two site workers: the layout of chest X-rays, and the example of examples/monai."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fl_queue.config import loading
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.models import selection
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from tests.support.checkout import ROOT
from tests.support.federation import Federation, wait_for

# Four processes that import torchvision, or MONAI, and train on images: half a minute each.
pytestmark = pytest.mark.slow
MONAI = ROOT / "examples/monai"
ROUNDS = ("run.rounds=2", "round.cohort=2", "round.deadline_s=300")


@contextmanager
def federation_of(
    redis: EmbeddedRedis,
    folder: Path,
    allow: str = "",
    data: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Federation]:
    """Two sites and an evaluator."""
    federation = Federation(redis, folder, 2, environment, allow, data, forked=True)
    try:
        yield federation
    finally:
        federation.close()


def scores_of(federation: Federation, config: str, metric: str, *overrides: str) -> list[float]:
    """The metric of each version of a run, which ends well with both sites in each round."""
    loaded = loading.load(config, (*ROUNDS, *overrides))
    state = runs.start_run(federation.store, "images", loaded, loaded.run.rounds)
    lifecycle.advance(federation.store, state.run_id)
    ended = federation.finish(state.run_id, 280)
    assert (ended.state, ended.version) == ("completed", 2), ended.reason
    records = federation.committed(state.run_id)
    assert [sorted(record.accepted) for record in records] == [["site-1", "site-2"]] * 2

    def scored() -> bool:
        return (
            len(selection.test_metrics(federation.store, state.run_id)) == 3
        )  # Versions 0, 1 and 2.

    wait_for("the scores of all versions", scored, 120)
    return [
        found[metric] for found in selection.test_metrics(federation.store, state.run_id).values()
    ]


def test_two_hospitals_train_on_the_chest_x_ray_layout(
    private_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    draw = np.random.default_rng(7)
    for part, count in (("train", 40), ("test", 10)):
        for name, level in (("NORMAL", 60), ("PNEUMONIA", 160)):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.normal(level, 30, (40, 40)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    with federation_of(private_redis, tmp_path, "image-folder", tmp_path / "data") as federation:
        scores = scores_of(
            federation, "chest-xray", "auc", "task.image_size=32", "train.batch_size=16"
        )
    assert max(scores) > 0.9  # Bright and dark images.


def test_the_example_of_monai_trains_at_two_sites(
    private_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    path = {"PYTHONPATH": str(MONAI)}
    with federation_of(
        private_redis, tmp_path, "segmentation:Segment", environment=path
    ) as federation:
        config = str(MONAI / "segmentation.toml")
        scores = scores_of(
            federation, config, "dice", "clients.kind=cross-silo", "data.partition=site"
        )
    assert scores[0] < scores[-1]
    assert scores[-1] > 0.5
