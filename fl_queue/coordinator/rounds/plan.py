"""Plan a round before it is opened: its cohort, its groups or buffer, and the jobs that it takes over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fl_queue.common import seeding
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import in_flight
from fl_queue.coordinator.rounds.eligibility import EligibleClients
from fl_queue.protocol import job_origins, virtual_clients
from fl_queue.protocol.panel import Panel
from fl_queue.protocol.records import MAKES_NEXT, Mode, Purpose
from fl_queue.store import RunState, Store
from fl_queue.store.jobs.dispatch import JobTicket


@dataclass(frozen=True)
class RoundPlan:
    """
    A round that is about to be opened.

    Args:
        number: Number of the round.
        purpose: Purpose of the round.
        cohort: Selected clients, sorted.
        eligible: Clients that the cohort was selected from, as recorded.
        shares: Number of clients that ``eligible`` stands for.
        groups: Number of jobs of a simulation's cohort; 0: one job for each client.
        mode: ``async``: the clients of the cohort in ``carried`` are at work already.
        buffer: Updates that an asynchronous round merges.
        carried: Client -> its ticket of an earlier round, and the origin of that job.
        ineligible: Client that is alive -> reason why it cannot be selected.
        needs_all: Whether the round needs the answers of its whole cohort.
    """

    number: int
    purpose: Purpose
    cohort: Sequence[str]
    eligible: Sequence[str]
    shares: int
    groups: int = 0
    mode: Mode = Mode.synchronous
    buffer: int = 0
    carried: Mapping[str, tuple[JobTicket, job_origins.JobOrigin]] = field(default_factory=dict)
    ineligible: Mapping[str, str] = field(default_factory=dict)
    needs_all: bool = False

    def quorum(self, config: RunConfig) -> int:
        """The number of updates after which the round may end."""
        size = len(self.cohort)
        if self.mode == Mode.asynchronous:
            return self.buffer
        if self.purpose in MAKES_NEXT and not self.needs_all:
            return config.quorum_size(size)
        # One client makes version 0; the closing evaluation takes all answers.
        return 1 if self.purpose == Purpose.initialise else size

    def population(self, state: RunState) -> list[str]:
        """
        The clients that the run has seen, those of this round included.

        A client's index is its share of a data set that is split over clients: it keeps the index
        for the life of the run, and new clients are appended.
        """
        return [*state.population, *sorted(self._newcomers(state))]

    def population_count(self, state: RunState) -> int:
        """The size of the population, this round's clients included: ``N`` of some strategies."""
        if self.groups:
            return self.shares  # A simulation has all its clients from the beginning.
        return len(state.population) + len(self._newcomers(state))

    def _newcomers(self, state: RunState) -> set[str]:
        """Clients that the run has not seen before this round."""
        return set(self.eligible if self.purpose in MAKES_NEXT else ()) - set(state.population)


def plan_first(state: RunState, candidates: Sequence[str], found: EligibleClients) -> RoundPlan:
    """The round that makes version 0: the first candidate is asked; the others may follow (``initialisation``)."""
    return RoundPlan(
        state.round + 1,
        Purpose.initialise,
        candidates[:1],
        candidates,
        len(candidates),
        ineligible=found.out,
    )


def plan_sync(
    store: Store, state: RunState, config: RunConfig, purpose: Purpose, found: EligibleClients
) -> tuple[RoundPlan, int]:
    """A synchronous round, and the number of clients that it needs."""
    simulated, alive = config.is_simulation, found.clients
    wanted = config.cohort_size(len(alive))
    chosen = min(wanted, len(alive))
    cohort = seeding.select_cohort(config.run.seed, state.round + 1, alive, chosen)
    plan = RoundPlan(
        state.round + 1,
        purpose,
        cohort,
        virtual_clients.compact(len(alive)) if simulated else alive,
        len(alive),
        _groups(cohort, config) if simulated else 0,
        ineligible=found.out,
    )
    return plan, wanted


def plan_panel(state: RunState, panel: Panel) -> RoundPlan:
    """A step of a fit after its first one, whether the clients of the panel are alive or not."""
    clients = panel.clients
    number = state.round + 1
    return RoundPlan(number, Purpose.sums, clients, clients, len(clients), needs_all=True)


def plan_async(
    store: Store, state: RunState, config: RunConfig, purpose: Purpose, found: EligibleClients
) -> tuple[RoundPlan, int]:
    """
    An asynchronous round, and the number of clients that it needs at work.

    Clients at work continue; idle clients begin up to ``round.concurrency``.
    """
    last, tickets = in_flight.carried(store, state, config.round.max_staleness)
    carried = {
        ticket.who: (ticket, job_origins.begun(last, ticket.who)) for ticket in tickets if last
    }
    idle = [client for client in found.clients if client not in carried]
    limit = config.concurrency_size(len(idle) + len(carried))
    free = min(max(0, limit - len(carried)), len(idle))
    chosen = seeding.select_cohort(config.run.seed, state.round + 1, idle, free)
    buffer = config.buffer_size(limit)
    plan = RoundPlan(
        state.round + 1,
        purpose,
        sorted((*carried, *chosen)),
        idle,
        len(found.clients),
        mode=Mode.asynchronous,
        buffer=buffer,
        carried=carried,
        ineligible=found.out,
    )
    # The first round fixes the number of parts of the data, so it waits for all clients.
    return plan, buffer if state.shares else max(buffer, limit)


def _groups(cohort: Sequence[str], config: RunConfig) -> int:
    return virtual_clients.group_count(len(cohort), config.processes)
