"""Refusal of fields that have no meaning in an analysis: sums are exact, and nothing is trained."""

from __future__ import annotations

from fl_queue.analyses.base import MAX_SITES, Analysis
from fl_queue.analyses.questions import MAX_WORDS
from fl_queue.common.toml_text import value_text
from fl_queue.config.settings import RunSettings
from fl_queue.errors import ConfigError

#: Field -> why an analysis has no use for it; it is refused at any value but its default.
_UNUSED = {
    "clients.kind": "each site has a worker of its own",
    "round.mode": "a step waits for its cohort",
    "data.shares": "each site's table is its own",
    "aggregation.strategy": "sums are only added",
    "aggregation.weighting": "sums are only added",
    "aggregation.clip_norm": "sums are only added",
    "update.codec": "sums are exact",
    "update.error_feedback": "sums are exact",
    "model.codec": "a state is exact",
    "model.initial": "it begins without anything",
    "model.private": "a state is the same for all",
    "run.stop_when": "it has as many steps as it needs",
    "run.patience": "it has as many steps as it needs",
    "run.restore_best": "its last state is its result",
    "run.select": "its last state is its result",
}


def check_analysis(settings: RunSettings) -> None:
    """
    Refuse fields that an analysis does not use.

    Raises:
        ConfigError: Names the field, and its default.
    """
    task = settings.run.task
    for name, why in _UNUSED.items():
        section, _, key = name.partition(".")
        default = getattr(settings, section).options()[key].default
        if getattr(getattr(settings, section), key) != default:
            raise ConfigError(name, f"has no use in {task}: {why}; set it to {value_text(default)}")
    if settings.data.partition not in ("site", "iid"):
        raise ConfigError(
            "data.partition",
            f'has no use in {task}: each site\'s table is its own; set it to "site"',
        )
    if settings.analysis is not None:
        _check_size(settings.analysis)
    if settings.known_cohort() > MAX_SITES:
        raise ConfigError(
            "round.cohort", f"{settings.known_cohort()} sites are more than {MAX_SITES}; lower it"
        )


def _check_size(analysis: Analysis) -> None:
    """Raise ConfigError if a version is too large."""
    words = analysis.manifest.nbytes // 8
    if words <= MAX_WORDS:
        return
    if analysis.is_fit:
        reason = f"a step of it has {words:,} words, more than {MAX_WORDS:,}; name fewer columns"
        raise ConfigError("task", reason)
    raise ConfigError(
        "task.tables",
        f"so many questions have {words:,} words, more than {MAX_WORDS:,}; ask fewer at a time",
    )
