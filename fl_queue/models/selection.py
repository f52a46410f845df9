"""Selection of versions: the metrics of each, and the best one."""

from __future__ import annotations

from collections.abc import Mapping

from fl_queue import metrics
from fl_queue.common.safe_json import is_count
from fl_queue.common.spelling import nearest
from fl_queue.config import metric_choice
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import RunStateError
from fl_queue.protocol.records import EvaluationState, Outcome
from fl_queue.store import RunState, Store

BEST = "best"
#: Words for a version, which are no tags.
WORDS = ("newest", BEST)


def test_metrics(store: Store, run: str) -> dict[int, dict[str, float]]:
    """Version -> finished metrics on the test set, of the versions that have been evaluated."""
    return {
        version: value["finished"]
        for version, value in sorted(store.control.evaluations.all(run).items())
        if value.get("state") == EvaluationState.done
    }


def version_metrics(store: Store, run: str) -> dict[int, dict[str, float]]:
    """
    Version -> finished metrics: on the test set, else, with no evaluator, of the clients' validation.

    Metrics beside the version (``personal_accuracy``) come from the clients alone, so they are there with a
    test set, too.
    """
    validated, tested = validation_metrics(store, run), test_metrics(store, run)
    if not tested:
        return validated
    own = {version: metrics.only_beside(found) for version, found in validated.items()}
    return {
        version: {**own.get(version, {}), **tested.get(version, {})}
        for version in sorted(own.keys() | tested.keys())
        if own.get(version) or version in tested
    }


def validation_metrics(store: Store, run: str) -> dict[int, dict[str, float]]:
    """Version -> finished metrics of the clients' validation."""
    return {
        record.base_version: metrics.finish(record.validation)
        for record in store.control.history.records(run)
        if record.outcome in (Outcome.committed, Outcome.evaluated) and record.validation
    }


def best_by(
    select: str,
    validated: Mapping[int, Mapping[str, float]],
    tested: Mapping[int, Mapping[str, float]],
) -> int | None:
    """
    The best version by the clients' validation; by the test set only where nothing is validated.

    A test set that has chosen a version is biased: its metric is the best of many draws. So the validation
    chooses, and the test set reports.

    Args:
        select: As ``run.select``.
    """
    chosen = metrics.best_version(select, validated)
    if chosen is not None or any(validated.values()):
        return chosen
    return metrics.best_version(select, tested)


def best_version(store: Store, run: str, config: RunConfig) -> int | None:
    """The version that ``run.select`` names; None when nothing has been evaluated."""
    state = store.control.runs.get(run)
    select = metric_choice.select_of(config, state.metrics if state is not None else ())
    return best_by(select, validation_metrics(store, run), test_metrics(store, run))


def _named(state: RunState, text: str) -> int | None:
    """The number of a version; None: the newest, or the best one."""
    if text in WORDS:
        return None
    if is_count(text):
        return int(text)
    if text not in state.tags:
        there = f"tags: {', '.join(sorted(state.tags))}" if state.tags else "no tags yet"
        raise RunStateError(
            state.name,
            f"{text!r} is neither a version nor a tag{nearest(text, sorted(state.tags))} ({there})",
        )
    return state.tags[text]


def chosen_version(
    store: Store, state: RunState, config: RunConfig, version: int | str | None, best: bool
) -> int:
    """
    The version that a user asks for: the best one, the named one, else the newest.

    Args:
        version: Its number, a tag, or one of ``WORDS``; None: the newest.

    Raises:
        RunStateError: There is none yet, or no such tag.
    """
    if isinstance(version, str):
        best = best or version == BEST
        version = _named(state, version)
    if best:
        version = best_version(store, state.run_id, config)
        if version is None:
            select = metric_choice.select_of(config, state.metrics) or "accuracy:max"
            found = sorted(
                {name for of in version_metrics(store, state.run_id).values() for name in of}
            )
            there = f"; there is {', '.join(found)}" if found else ""
            raise RunStateError(
                state.name,
                f"no version has been evaluated by {select}{there}; wait, or start an evaluator",
            )
    chosen = state.version if version is None else version
    if chosen is None:
        raise RunStateError(state.name, "has no version yet; wait for version 0")
    return chosen
