"""
A client's answer to the question before round 1: what it would train on. docs/machines.md.
"""

from __future__ import annotations

import logging
import os

from rq.timeouts import JobTimeoutException

from fl_queue import facts
from fl_queue.errors import StoreUnavailable
from fl_queue.records import dumps
from fl_queue.runs import current_config
from fl_queue.site import Site
from fl_queue.tasks import ClientContext
from fl_queue.tasks.loading import load_task
from fl_queue.tasks.telling import facts_of

log = logging.getLogger(__name__)


def tell(run: str, segment: int) -> str:
    """
    Look at this site's task and data, and write what they are like; nothing of the data itself.

    Args:
        segment: Of the run's config, that was asked about.

    Returns:
        What happened, for the log.

    Raises:
        StoreUnavailable: The control server is gone; the question comes again.
    """
    site = Site.from_environ()
    store = site.connect()
    state = store.control.run(run)
    if state is None or not state.active or state.segment != segment:
        return "nobody wants to know any more"
    config = current_config(store, run, segment)
    context = ClientContext.of(
        config,
        client=site.client,
        run=state.name,
        round_number=1,
        shares=config.data["shares"] or state.shares or 1,
        data_dir=site.data_dir,
        device=site.device,
        threads=site.threads,
    )
    try:
        task = load_task(config.run["task"], config, site.allow, site.data_dir)
        found = facts_of(task, context)
    except (JobTimeoutException, StoreUnavailable):
        raise
    # The task is its owner's code and may raise anything; that is what this site has to tell.
    except Exception as exc:
        log.exception("run=%s client=%s cannot tell what it would train on", run, site.client)
        # Its message may quote the data, and nobody is asked about it.
        said = "its message stays in the log of the site (--approve)" if site.approve else exc
        found = {facts.PROBLEM: facts.line(f"{type(exc).__name__}: {said}")}
    answer = {"job": os.environ.get("RQ_JOB_ID", ""), "facts": found}
    store.control.tell(site.client, run, dumps(answer))
    return "told"
