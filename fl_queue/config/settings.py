"""
The sections of a config, and the numbers that follow from them: sizes of cohorts, rates, formats.

No Redis here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fl_queue.aggregation.sum_format import SumFormat, sum_format
from fl_queue.analyses.base import Analysis
from fl_queue.config.analysis_catalog import ANALYSES
from fl_queue.config.data_section import DataSection
from fl_queue.config.optimizer_catalog import is_own
from fl_queue.config.schema import (
    AggregationSection,
    ClientsSection,
    ModelSection,
    RedisSection,
    RoundSection,
    RunSection,
    SecuritySection,
    TrainSection,
    UpdateSection,
)
from fl_queue.config.section import Share
from fl_queue.config.secure_section import SecureSection
from fl_queue.config.task_catalog import TASKS, own_code
from fl_queue.protocol.identifiers import is_name
from fl_queue.strategies import get_strategy
from fl_queue.strategies.base import Strategy


@dataclass(frozen=True)
class RunSettings:
    """
    A config's sections: ``settings.train.epochs``.

    ``task`` and ``strategy`` hold the options of the task and of the strategy themselves.
    """

    run: RunSection
    round: RoundSection
    clients: ClientsSection
    data: DataSection
    train: TrainSection
    aggregation: AggregationSection
    update: UpdateSection
    model: ModelSection
    security: SecuritySection
    secure: SecureSection
    redis: RedisSection
    task: Mapping[str, Any]
    strategy: Mapping[str, Any]

    @property
    def is_simulation(self) -> bool:
        """True if the clients of the run are virtual."""
        return self.clients.kind == "simulation"

    @property
    def is_async(self) -> bool:
        """True if the run trains in asynchronous rounds."""
        return self.round.mode == "async"

    @property
    def is_split(self) -> bool:
        """True if one data set is split over the clients, a share for each."""
        return self.data.partition != "site"

    @property
    def ring_bits(self) -> int:
        """Bits of the integers in which parameters are summed; fewer than 64 in secure rounds only."""
        return self.secure.bits if self.secure.enabled else 64

    @property
    def processes(self) -> int:
        """Pool processes of a simulation; by default one for each core that this process may use."""
        return self.clients.processes or len(os.sched_getaffinity(0))

    @property
    def premerges(self) -> bool:
        """
        True if the updates of a group of virtual clients may travel as their sum.

        Nothing may need them one by one: neither ``verify`` nor the strategy.
        """
        return not (self.model.keep_updates or self.plain_strategy().needs_all)

    @property
    def is_per_site(self) -> bool:
        """Whether an analysis shows the numbers of each site alone, too."""
        return bool(self.task.get("per_site", False))

    @property
    def keeps_answers(self) -> bool:
        """Whether the aggregator keeps accepted answers on its disk."""
        return self.model.keep_updates or self.is_per_site

    @cached_property
    def analysis(self) -> Analysis | None:
        """The analysis of a run that adds up tables; None: the run trains."""
        entry = ANALYSES.get(self.run.task)
        return entry.kind(self.task) if entry is not None else None

    def own_code(self) -> tuple[str, ...]:
        """Own code of this run, each as ``module:name``: that of the task, and the optimizer."""
        optimizer = self.train.optimizer
        return (*own_code(self.run.task, self.task), *([optimizer] if is_own(optimizer) else []))

    def allowed_code(self) -> tuple[str, ...]:
        """List for a worker that is to train this run: its own code, and the built-in tasks; empty: those alone."""
        own = self.own_code()
        return (*own, *TASKS) if own else ()

    def plain_strategy(self) -> Strategy:
        """The strategy as clients and the sum see it: of an own one, FedAvg."""
        return get_strategy(self.aggregation.strategy, self.strategy)

    def learning_rate(self, round_number: int) -> float:
        """The learning rate of a round (numbered from 1): the newest schedule entry that has begun."""
        rate = self.train.learning_rate
        if isinstance(rate, tuple):
            return float([value for first, value in rate if first <= max(round_number, 1)][-1])
        return rate

    def cohort_size(self, alive: int) -> int:
        """Number of ``alive`` clients that a round selects; a count may be more than there are."""
        return _count(self.round.cohort, alive)

    def quorum_size(self, cohort: int) -> int:
        """Number of accepted updates that a cohort of that size needs to commit."""
        return min(cohort, _count(self.round.quorum, cohort))

    def concurrency_size(self, clients: int) -> int:
        """Number of ``clients`` that train at a time in asynchronous rounds; a count may be more."""
        return _count(self.round.concurrency, clients)

    def buffer_size(self, concurrency: int) -> int:
        """Number of updates that make a version in asynchronous rounds."""
        return _count(self.round.buffer, concurrency)

    def known_cohort(self) -> int:
        """Clients of a round; 0: that depends on how many will be alive."""
        if self.is_simulation:
            return self.cohort_size(self.clients.count)
        cohort = self.round.cohort
        return cohort if isinstance(cohort, int) else 0

    def known_quorum(self) -> int:
        """The smallest number of updates of a round; 0: that depends on how many clients will be alive."""
        if cohort := self.known_cohort():
            return self.quorum_size(cohort)
        quorum = self.round.quorum
        return quorum if isinstance(quorum, int) else 0

    def named_clients(self) -> int:
        """Number of clients that ``clients.include`` names; 0 if it is empty or has patterns."""
        include = self.clients.include
        return len(set(include)) if all(map(is_name, include)) else 0

    def known_shares(self) -> int:
        """Shares of a built-in task's data, each of which one client takes; 0: any number."""
        return self.data.shares if self.is_split and self.run.task in TASKS else 0

    def max_clients(self) -> int:
        """Largest number of clients, where the config limits them; 0: any number."""
        return min(filter(None, (self.named_clients(), self.known_shares())), default=0)

    def max_updates(self) -> int:
        """Updates that a synchronous round merges at most; 1 where the config does not limit them."""
        return self.known_cohort() or self.cohort_size(self.max_clients() or 1)

    def known_buffer(self) -> int:
        """Updates of an asynchronous round; 1 where that depends on how many clients will be alive."""
        return self.buffer_size(self.concurrency_size(self.max_clients() or 1))

    def format_of_sum(self) -> SumFormat:
        """
        The format of a round's sum, for as many updates as are known to come.

        Raises:
            ConfigError: There is no room for them.
        """
        if self.is_async:
            return sum_format(self.aggregation, self.strategy, self.known_buffer(), self.round)
        return sum_format(self.aggregation, self.strategy, self.max_updates(), bits=self.ring_bits)


def _count(share: Share, whole: int) -> int:
    # Rounded up: a quorum of 0.8 of 4 is 4 of 4, never fewer than the fraction asked for.
    return share if isinstance(share, int) else max(1, -int(-share * whole // 1))
