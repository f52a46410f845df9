"""The sum of a step of an analysis, as an aggregator opens it, and the check of the state that it begins with."""

from __future__ import annotations

from pathlib import Path

from fl_queue.aggregation.step_sum import StepSum
from fl_queue.analyses.base import Analysis
from fl_queue.coordinator.aggregator.open_round import OpenRound
from fl_queue.errors import MessageError
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import Purpose


def open_step(current: OpenRound, manifest: Manifest | None, state_dir: Path) -> StepSum | None:
    """
    The sum of a round's words; None: it is no step of an analysis.

    Args:
        manifest: The run's; None before version 0.

    Raises:
        ContentMissing, CheckpointError: The state before it is not there.
        MessageError: That state is none of the analysis.
    """
    analysis = current.config.analysis
    if manifest is None or analysis is None or current.state.purpose != Purpose.sums:
        return None
    chunk_bytes = current.config.redis.chunk_bytes
    models = ModelStore(current.store, current.run, chunk_bytes, state_dir)
    body = models.open_body(current.state.base_digest, analysis.manifest)
    return StepSum.of_body(analysis, body.view)


def check_first_state(analysis: Analysis | None, manifest: Manifest, body: memoryview) -> None:
    """Raise MessageError unless a version 0 is the state that an analysis begins with; None: a run trains."""
    if analysis is None:
        return
    first = tensor_layout.little_endian(analysis.version(analysis.initial()))
    if manifest != analysis.manifest or bytes(body) != first.tobytes():
        raise MessageError("it is not the state that the analysis begins with")
