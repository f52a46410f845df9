"""Results of single sites in an analysis that was asked for them (``task.per_site``), from the answers that were kept."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from fl_queue.analyses.base import Analysis
from fl_queue.errors import DataError
from fl_queue.models import update_archive
from fl_queue.protocol.arrays import Int64s
from fl_queue.store import RunState, Store


def results(
    store: Store, state: RunState, analysis: Analysis, words: Int64s, state_dir: Path
) -> dict[str, dict[str, Any]] | None:
    """
    The result of each site alone, by client.

    Args:
        analysis: The run's.
        words: Its last state.
        state_dir: Where the aggregator keeps answers.

    Returns:
        None: this machine does not have the answers.

    Raises:
        MessageError: An answer is not of its step.
    """
    answers: dict[str, list[Int64s]] = defaultdict(list)
    records = store.control.history.records(state.run_id)
    committed = [one for one in records if one.outcome == "committed"]
    for step, record in enumerate(committed):
        for client, digest in sorted(record.accepted.items()):
            if len(answers[client]) != step:  # It has not answered an earlier step.
                continue
            try:
                found = update_archive.read(state_dir, state.run_id, record.round, client, digest)
            except DataError:
                return None
            answers[client].append(np.frombuffer(found.body, "<i8").astype(np.int64))
    return {
        client: analysis.site_result(words, given)
        for client, given in sorted(answers.items())
        if given
    }
