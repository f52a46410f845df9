"""Models of single sites: of which runs they can be made, and of what their updates hold."""

from __future__ import annotations

from typing import Any

import pytest

from fl_queue.config.run_config import RunConfig
from fl_queue.errors import RunStateError
from fl_queue.models import site_models
from fl_queue.protocol.manifest import Manifest, TensorSpec

MANIFEST = Manifest((TensorSpec("w", (2, 3), "parameter"),))


def config(strategy: str, **more: Any) -> RunConfig:
    """A run that keeps its updates."""
    tables = {
        "model": {"keep_updates": True},
        "aggregation": {"strategy": strategy, "weighting": "uniform"},
        **more,
    }
    return RunConfig.from_dict(tables)


@pytest.mark.parametrize("strategy", ["fednova", "qfedavg"])
def test_an_update_that_a_site_has_scaled_makes_no_model(strategy: str) -> None:
    """By a factor that it sends besides, or does not send: the base version and the update are another model."""
    with pytest.raises(RunStateError, match=f"is of {strategy}, whose updates are scaled"):
        site_models.check("study", config(strategy), MANIFEST)


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam", "scaffold", "feddyn"])
def test_other_strategies_send_a_sites_own_change(strategy: str) -> None:
    """SCAFFOLD's controls are tensors besides."""
    site_models.check("study", config(strategy), MANIFEST)
