"""Hugging Face's packages are imported offline, by one module, and only when they are used."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fl_queue.errors import ConfigError
from fl_queue.tasks.hf import packages


def test_they_are_offline_and_the_environment_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    packages.transformers.__wrapped__()
    packages.datasets.__wrapped__()
    import datasets.config
    import huggingface_hub.constants

    assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert datasets.config.HF_HUB_OFFLINE
    assert dict(os.environ) == before


def test_packages_that_a_task_has_imported_before_are_offline_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    packages.transformers.__wrapped__()
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    packages.datasets.__wrapped__()
    assert datasets.config.HF_HUB_OFFLINE


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)

    with pytest.raises(ConfigError, match=r'pip install "\S+\[hf\]"') as caught:
        packages.peft.__wrapped__()
    assert caught.value.public


def test_nothing_of_them_is_imported_with_a_task() -> None:
    code = (
        "import sys; from fl_queue.config import loading; from fl_queue.tasks.loading import load_task;"
        "config = loading.load('causal-lm'); load_task('causal-lm', config);"
        "import workers.client, workers.aggregator, fl_queue.cli;"
        "sys.exit(bool({'transformers', 'peft', 'accelerate', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
