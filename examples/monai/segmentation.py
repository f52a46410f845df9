"""Circles in noise, found by MONAI's U-Net: each site makes its own images, with more noise at some than at others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data import create_test_image_2d
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import Compose, EnsureTyped, RandFlipd, RandRotate90d, RandScaleIntensityd
from torch import Tensor, nn
from torch.utils.data import Dataset

from fl_queue.common.seeding import seed_for
from fl_queue.metrics import Segmentation
from fl_queue.tasks import ClientContext, ClientData, Task

SIZE = 64
#: Images of a site for training and for validation, and of the test set.
COUNTS = (48, 16, 32)
#: Random changes of images and masks together. ``track_meta``: batches are plain tensors.
AUGMENT = Compose(
    [
        RandFlipd(["image", "mask"], prob=0.5, spatial_axis=0),
        RandRotate90d(["image", "mask"], prob=0.5),
        RandScaleIntensityd(["image"], factors=0.2, prob=0.5),
        EnsureTyped(["image", "mask"], track_meta=False),
    ]
)


class Circles(Dataset[tuple[Tensor, Tensor]]):
    """
    Images (1, H, W) with their masks (H, W).

    Args:
        count: How many.
        noise: Most of it that a pixel has; circles have 1.0.
        seed: The same makes the same images.
        augment: Whether they are changed each time they are read.
    """

    def __init__(self, count: int, noise: float, seed: int, augment: bool = False) -> None:
        draw = np.random.RandomState(seed % 2**32)
        made = [
            create_test_image_2d(
                SIZE,
                SIZE,
                num_objs=3,
                rad_min=4,
                rad_max=12,
                noise_max=noise,
                num_seg_classes=1,
                random_state=draw,
            )
            for _ in range(count)
        ]
        self._images = torch.tensor(np.stack([image for image, _ in made]))[:, None]
        self._masks = torch.tensor(np.stack([mask for _, mask in made]))[:, None]
        self._augment = augment

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        found: dict[str, Any] = {"image": self._images[index], "mask": self._masks[index]}
        if self._augment:
            # fl-queue seeds numpy for each sample; MONAI's transforms draw from generators of their own.
            AUGMENT.set_random_state(seed=int(np.random.randint(2**31)))
            found = AUGMENT(found)
        return found["image"], found["mask"][0].long()


class Segment(Task):
    """The task: a U-Net of 10,000 parameters, the loss of Dice and cross entropy, and Dice as the metric."""

    def build_model(self) -> nn.Module:
        """The network: scores (B, 2, H, W). Its norms keep no statistics, so sites share all of it."""
        return UNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=2,
            channels=(8, 16, 32),
            strides=(2, 2),
            norm="instance",
        )

    def client_data(self, context: ClientContext) -> ClientData:
        """A site's own images; read files of ``context.data_dir`` here instead."""
        noise = 0.4 + 0.4 * context.share / context.shares
        # Not ``context.seed_for``: its seeds are of a round, and a site's images stay the same.
        train, validation = (
            seed_for(context.seed, context.client, part) for part in ("train", "validation")
        )
        return ClientData(
            Circles(COUNTS[0], noise, train, augment=True), Circles(COUNTS[1], noise, validation)
        )

    def test_data(self, data_dir: str) -> Circles:
        """Images of the evaluator, with the noise of a site in the middle."""
        return Circles(COUNTS[2], 0.6, seed=1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """A mean over samples, so batches of any size add up."""
        return DiceCELoss(to_onehot_y=True, softmax=True)(output, target[:, None])

    def metrics(self) -> list[Segmentation]:
        """Dice and IoU of the circles."""
        return [Segmentation(background=False)]
