"""Checks of options of the built-in task on images. No torch here."""

from __future__ import annotations

import math

from fl_queue.common.spelling import nearest

#: Names of ``task.augment`` -> how a training image is changed.
AUGMENTATIONS = {
    "flip": "mirrored from left to right, half of them",
    "flip-vertical": "mirrored from top to bottom, half of them",
    "rotate": "turned by up to 10 degrees",
    "rotate-any": "turned by any angle",
    "crop": "a part of 80 to 100 % of the area, at its full size",
    "affine": "moved by up to 5 % and scaled by 0.9 to 1.1",
    "brightness": "brightness and contrast times 0.8 to 1.2",
    "colour": "brightness, contrast and saturation times 0.8 to 1.2, hue by up to 5 %",
    "blur": "blurred by 3 x 3 pixels, deviation 0.1 to 1",
    "erase": "a part of 2 to 33 % of the area black, in a quarter of them",
}
BALANCED = "balanced"


def augment_problem(names: tuple[str, ...]) -> str | None:
    """Problem of ``task.augment``."""
    for name in names:
        if name not in AUGMENTATIONS:
            known = ", ".join(AUGMENTATIONS)
            return f"{name!r} is not one of {known}{nearest(name, AUGMENTATIONS)}"
    return "names one twice" if len(set(names)) < len(names) else None


def class_weights_problem(value: str) -> str | None:
    """Problem of ``task.class_weights``."""
    if value in ("", BALANCED):
        return None
    try:
        weights = [float(part) for part in value.split(",")]
    except ValueError:
        weights = []
    if weights and all(math.isfinite(weight) and weight > 0 for weight in weights):
        return None
    return (
        f'{value!r} is neither "{BALANCED}" nor a positive number for each class, such as "1,2.5"'
    )
