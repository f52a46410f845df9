"""A client's report before round 1: whether it can load its data, and the facts of them."""

from __future__ import annotations

import logging
import os

from fl_queue.client import trust
from fl_queue.client.progress import refused
from fl_queue.client.site import WorkerSettings
from fl_queue.common.safe_json import dumps
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import RoundRefused
from fl_queue.protocol import site_facts
from fl_queue.store import REDIS_ERRORS, RunState
from fl_queue.store.jobs.rq_types import TimedOut
from fl_queue.tasks.calls import training_data
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.error_disclosure import disclosed
from fl_queue.tasks.loading import load_task
from fl_queue.tasks.site_facts import facts_of

log = logging.getLogger(__name__)


def report_facts(run: str, segment: int) -> str:
    """
    Load this site's task and data, and write the facts of them; nothing of the data itself.

    Args:
        segment: Of the run's config, that the question is about.

    Returns:
        The outcome, for the log.

    Raises:
        StoreUnavailable: The control server cannot be used; the job is begun again when it can.
    """
    site = WorkerSettings.from_environ()
    store = site.connect()
    state = store.control.runs.get(run)
    if state is None or not state.active or state.segment != segment:
        return "the run does not need the facts any more"
    try:
        config = trust.segment_config(site, state, store.control.runs.config_segments(run), segment)
    except RoundRefused as exc:
        refused(store, site, exc)
        found = {site_facts.PROBLEM: site_facts.line(str(exc)), site_facts.CANNOT: "yes"}
    else:
        found = read_facts(site, state, config)
    answer = {"job": os.environ.get("RQ_JOB_ID", ""), "facts": found}
    store.control.clients.set_site_facts(site.client, run, dumps(answer))
    return "reported"


def read_facts(site: WorkerSettings, state: RunState, config: RunConfig) -> dict[str, str]:
    """Facts of a site's task and data, or the reason why they cannot be read."""
    cannot = {site_facts.CANNOT: "yes"}
    try:
        context = _context(site, state, config)
        task = load_task(config.run.task, config, site.allow, context.data_dir)
        data = training_data(task, context)
        cannot = {}  # The data can be loaded; what follows is for the comparison only.
        return facts_of(task, data)
    except (TimedOut, *REDIS_ERRORS):
        raise
    # The task is its owner's code and may raise anything; the error is this site's report.
    except Exception as exc:
        log.exception("run=%s client=%s cannot report its facts", state.name, site.client)
        return {site_facts.PROBLEM: site_facts.line(disclosed(exc, config)), **cannot}


def _context(site: WorkerSettings, state: RunState, config: RunConfig) -> ClientContext:
    """
    The context of a round's training, but for the share: the first of ``data.shares``.

    The config is signed. A client's share, and the number of shares, come from Redis unsigned until there is
    a round: an attacker who chose them could find out how many examples a site has.
    """
    return ClientContext.of(
        config,
        client=site.client,
        run=state.name,
        round_number=1,
        share=0,
        shares=config.data.shares or 1,
        data_dir=site.data_folder(config),
        device=site.device,
        threads=site.threads,
        max_examples=site.max_examples,
        min_examples=site.min_examples,
        min_batch=site.min_step_examples,
    )
