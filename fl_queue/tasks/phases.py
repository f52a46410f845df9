"""
Phases of a job: reading the data, building the model, training, evaluation; each begins with its own seed.

So a phase that is skipped, since a process has its result from an earlier job, changes no bit of those after it.
The data and the model have a seed without round and client. Imports torch; no Redis here.
"""

from __future__ import annotations

from fl_queue.common.seeding import seed_for
from fl_queue.tasks.context import ClientContext
from fl_queue.training.data_loading import seed_everything


def data_seed(context: ClientContext) -> int:
    """Seed of reading data and building a model: the same in each round, and for version 0."""
    return seed_for(context.seed, "initialise")


def begin_building(context: ClientContext) -> None:
    """Seed all generators for the build of a model."""
    seed_everything(data_seed(context), context.device)


def begin(context: ClientContext, purpose: str) -> None:
    """Seed all generators for a training or an evaluation of a client in a round."""
    seed_everything(context.seed_for(purpose), context.device)
