"""Configs of users keep their digests: signatures, pins and older workers depend on them."""

from __future__ import annotations

import pytest

from fl_queue.config import loading

#: Digests that the release before optimizers, base parts and patience gave to the shipped configs.
DIGESTS = {
    "csv": "384162c5418b59c0e95c9b8c99784192f608414322fc0c6a7b2f74d1bc58ceb4",
    "demo": "d2e432cc2c52a8788ec418184d706c54a8aba4ad22ffd4459ccc52c1cd9e3ce9",
    "image-folder": "6465a3853bfa28d495dce8fdb69d7ce3b06b6087023bdc241fdb88a3ceb0c20a",
    "mnist-2nn": "5d3584dfa076722878f5089bd3b61844181621cf4c1860672488539c04c5e0b2",
    "mnist-2nn-100": "06a52923fcbf559f5a491bb2e236c26a7215ab9bffb0ea85ddb7c8fa68aae576",
    "mnist-3v7": "bc65169c48d73b07cd7b7f47c8ca898d84392f744dcd2358f989cd1e0146272d",
    "mnist-cnn": "d7a275cd1f20dd18da9b7c53988621ea0cc108e34ca285d8e569cff30b976522",
}


@pytest.mark.parametrize("preset", DIGESTS)
def test_a_new_field_at_its_default_changes_no_digest(preset: str) -> None:
    """A field that is added needs ``newer`` in its ``Use``."""
    assert loading.load(preset, (), {}).digest == DIGESTS[preset]
