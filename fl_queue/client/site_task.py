"""The task of a request at this site, and the context that it is given. Imports torch; no Redis here."""

from __future__ import annotations

from fl_queue.client import policy
from fl_queue.client.site import WorkerSettings
from fl_queue.config.run_config import RunConfig
from fl_queue.protocol.trainer_messages import Call, Request
from fl_queue.tasks.base import Task
from fl_queue.tasks.context import ClientContext, Place
from fl_queue.tasks.loading import load_task
from fl_queue.training.ranks import Ranks


def task_of(site: WorkerSettings, config: RunConfig) -> Task:
    """
    A run's task, with this site's data folder.

    Raises:
        ConfigError: As of ``load_task``.
    """
    # Version 0 needs no data: a site that has none may make it.
    folder = site.known_folder(config)
    return load_task(config.run.task, config, site.allow, folder)


def context_of(
    site: WorkerSettings, config: RunConfig, request: Request, ranks: Ranks | None = None
) -> ClientContext:
    """
    The context that a task is given.

    Args:
        ranks: The processes that train together.

    Raises:
        ConfigError: Only the config names this client's folder, or the site's policy cannot be used.
        PolicyRefusal: The policy does not let it train.
        DataError: The policy hides a column.
    """
    place: Place = {
        "share": request.share,
        "shares": request.shares,
        "data_dir": site.data_folder(config),
        "device": site.device,
        "threads": site.threads,
        "loader_workers": site.loader_workers,
        "ranks": ranks,
        "compiled": site.compiled,
    }
    # Test data are the evaluator's own, and no client's.
    if request.call != Call.score:
        rules = policy.read(site.policy) if site.policy else None
        if rules is not None:
            # Facts are asked for before a run: they are answered for what it does.
            is_evaluated = request.call == Call.evaluate or config.run.purpose == "evaluate"
            rules.check_training(config, is_evaluated=is_evaluated)
        place |= {
            "max_examples": site.max_examples,
            "min_examples": site.min_examples,
            "min_training": rules.min_rows if rules is not None else 0,
            "min_batch": site.min_step_examples,
        }
    return ClientContext.of(
        config,
        client=request.client,
        run=request.name,
        round_number=max(request.round, 1),
        **place,
    )
