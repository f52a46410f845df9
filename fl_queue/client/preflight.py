"""A client's report before round 1: whether it can load its data, and the facts of them. Without torch."""

from __future__ import annotations

import os
from typing import Any

from fl_queue.client import trust
from fl_queue.client.asking import Ask, facts_request
from fl_queue.client.progress import refused
from fl_queue.client.site import WorkerSettings
from fl_queue.common.safe_json import dumps
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import RoundRefused, TrainingLost
from fl_queue.protocol import site_facts
from fl_queue.store import RunState
from fl_queue.tasks.error_disclosure import shown


def report_facts(run: str, segment: int, ask: Ask) -> str:
    """
    Have this site's task and data loaded, and write the facts of them; nothing of the data itself.

    Args:
        segment: Of the run's config, that the question is about.
        ask: Loads them.

    Returns:
        The outcome, for the log.

    Raises:
        StoreUnavailable: The control server cannot be used; the job is begun again when it can.
        TrainingLost: What loads them was lost.
    """
    site = WorkerSettings.from_environ()
    store = site.connected()
    state = store.control.runs.get(run)
    if state is None or not state.active or state.segment != segment:
        return "the run does not need the facts any more"
    config: RunConfig | None = None
    try:
        config = trust.segment_config(site, state, store.control.runs.config_segments(run), segment)
    except RoundRefused as exc:
        refused(store, site, exc)
        found = {site_facts.PROBLEM: site_facts.line(str(exc)), site_facts.CANNOT: "yes"}
    else:
        found = read_facts(site, state, config, ask)
    answer: dict[str, Any] = {"job": os.environ.get("RQ_JOB_ID", ""), "facts": found}
    if config is not None and config.secure.enabled:
        from fl_queue.client import (
            secure_rounds,
        )  # Takes numpy, which the worker has no other use for.

        try:
            answer["run_key"] = secure_rounds.run_key(site, state.run_id)
        except RoundRefused as exc:
            refused(store, site, exc)
            answer["facts"] = {
                site_facts.PROBLEM: site_facts.line(str(exc)), site_facts.CANNOT: "yes",
            }  # fmt: skip
    store.control.clients.set_site_facts(site.client, run, dumps(answer))
    return "reported"


def read_facts(
    site: WorkerSettings, state: RunState, config: RunConfig, ask: Ask
) -> dict[str, str]:
    """
    Facts of a site's task and data, or the reason why they cannot be read.

    Raises:
        TrainingLost: What reads them was lost.
    """
    if config.secure.enabled and config.run.preflight == "off":
        return {}  # Asked for its run key alone.
    answer = ask(facts_request(site, state, config), lambda progress: None)
    if answer.outcome == "done":
        # Numbers of its files are numbers of its data.
        is_secure = site.require_secure or config.secure.enabled
        kept = {site_facts.FILES} if is_secure else set()
        return {fact: line for fact, line in answer.facts.items() if fact not in kept}
    failure = answer.error
    if answer.outcome != "failed":
        raise TrainingLost(shown(failure), public=True)
    cannot = {site_facts.CANNOT: "yes"} if failure.lasts else {}
    return {site_facts.PROBLEM: site_facts.line(shown(failure)), **cannot}
