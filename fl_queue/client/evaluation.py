"""
A site's part in a run that only evaluates a model: on all its rows, or on those that it holds out, within its policy.

Everything that such a run shows of rows passes ``answer``. Imports torch; no Redis here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fl_queue.analyses.base import Limits
from fl_queue.client import local_update, policy
from fl_queue.client.policy import SitePolicy
from fl_queue.client.site import WorkerSettings
from fl_queue.common import failpoints
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import DataError, PolicyRefusal
from fl_queue.metrics import forms, reports
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import PER_SITE, Sums
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.training.base_part import Fetch
from fl_queue.training.sample_sets import Samples, joined, size_of


def rules_of(site: WorkerSettings) -> SitePolicy:
    """
    The policy for a worker's rows; of a pool's virtual clients, whose rows are the operator's, nothing is limited.

    Raises:
        ConfigError: The policy cannot be used.
    """
    if not site.client and not site.policy:
        return SitePolicy(min_rows=1, min_cell=1, dominance=0.0)
    return policy.read(site.policy)


def rows_of(config: RunConfig, data: ClientData) -> Samples:
    """
    The rows on which a model is evaluated.

    Raises:
        DataError: There are none.
    """
    if config.run.rows == "held_out":
        found, name = data.validation, "held-out rows; raise data.validation_fraction, or use all"
    else:
        parts = [part for part in (data.train, data.validation) if size_of(part)]
        found, name = joined(parts) if parts else data.train, "rows"
    if not size_of(found):
        raise DataError("data", f"this client has no {name}", public=True)
    return found


def check(site: WorkerSettings, config: RunConfig, data: ClientData) -> tuple[SitePolicy, Samples]:
    """
    A site's policy, and the rows on which a model is evaluated.

    Raises:
        ConfigError: The policy cannot be used.
        PolicyRefusal: The site does not evaluate, or has too few rows.
        DataError: There are no rows.
    """
    rules, rows = rules_of(site), rows_of(config, data)
    rules.check_asked("evaluate")
    rules.limits.check_rows(size_of(rows))
    if site.client and size_of(rows) < site.min_examples:
        raise PolicyRefusal("fewer rows than its --min-examples")
    return rules, rows


def answer(
    site: WorkerSettings,
    task: Task,
    base: tuple[Manifest, Mapping[str, Any], Fetch],
    data: ClientData,
    context: ClientContext,
) -> tuple[Sums, dict[str, str | int]]:
    """
    Sums of a model's metrics on this site's rows, and how they may be shown.

    Args:
        base: The model: manifest, arrays, and what brings its base part.

    Raises:
        ConfigError, PolicyRefusal, DataError: As ``check``.
        PolicyRefusal: There are too few rows of a class.
        ModelMismatch: The task builds another model.
    """
    rules, rows = check(site, task.config, data)
    manifest, arrays, fetch_base_part = base
    failpoints.failpoint("rows.read")
    reporting = replace(context, shown=rules.limits)
    sums = local_update.evaluate_version(task, manifest, arrays, rows, reporting, fetch_base_part)
    noted: dict[str, str | int] = {"policy": rules.digest}
    return within(sums, rules.limits), noted if rules.per_site else noted | {PER_SITE: 0}


def within(sums: Sums, limits: Limits) -> dict[str, Any]:
    """
    The sums that a site shows: a report, which keeps to the limits, and sums over many rows.

    Counts by class and by score are in the report alone. A count of few rows, or of all but few, is left out.
    """
    has_report = any(key in reports.NAMES for key in sums)
    is_limited = limits.min_cell > 1
    kept: dict[str, Any] = {}
    for key, value in sums.items():
        if key in ("confusion", "logit_histograms", "score_histograms"):
            if has_report or is_limited:
                continue
        elif is_limited and key not in reports.NAMES and _is_few(key, value, sums, limits):
            continue
        kept[key] = value
    return kept


def _is_few(key: str, value: Any, sums: Sums, limits: Limits) -> bool:
    """Whether a sum is a count of few rows, or has counts by class."""
    if parts := forms.parts_of(key):
        if parts[1] == "macro":
            return True
        above, below = value[0], value[1]
    else:
        above, below = value, sums.get("num_examples", 0)
    counts = [above, below - above] if key != "num_examples" else [above]
    # A sum of numbers is none of rows; ``metrics`` has counts as whole numbers.
    are_counts = all(type(count) is int for count in (above, below))
    return are_counts and any(0 < count < limits.min_cell for count in counts)
