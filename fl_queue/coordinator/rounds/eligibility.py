"""
Decide which clients may be selected for the next round of a run, and why others may not.

The decision is recorded with the round (``eligible`` and ``ineligible``), and with the run while it holds
(``left_out``), with an event whenever that changes. A cohort is a function of the seed, the round's number
and the recorded list of eligible clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from fl_queue.common.safe_json import dumps
from fl_queue.config import task_catalog
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import preflight
from fl_queue.protocol import virtual_clients
from fl_queue.protocol.events import ClientsLeftOut
from fl_queue.protocol.records import Purpose
from fl_queue.store import RunState, Store
from fl_queue.store.transactions import runs as transactions

#: Clients with the same reason that a line names.
_NAMED = 8


@dataclass(frozen=True)
class EligibleClients:
    """
    The clients that may be selected for a round.

    Args:
        clients: Sorted.
        out: Client that is alive -> why it may not be selected.
        unable: Clients in ``out`` that reported that they cannot train; they may be able to make version 0.
        unanswered: Clients in ``out`` whose answer to the preflight is still awaited.
        problem: Why no client may be selected yet; empty when the round may be opened.
    """

    clients: list[str]
    out: Mapping[str, str] = field(default_factory=dict)
    unable: Sequence[str] = ()
    unanswered: Sequence[str] = ()
    problem: str = ""

    def lasting(self) -> dict[str, str]:
        """``out`` without clients that have not answered yet."""
        return {client: why for client, why in self.out.items() if client not in self.unanswered}


def decide(
    store: Store, state: RunState, config: RunConfig, purpose: Purpose
) -> EligibleClients | None:
    """
    The clients that may be selected; None after an outage, until all living clients are seen again.

    A cohort of the clients that reconnected first would be another one.
    """
    if config.is_simulation:
        return EligibleClients(virtual_clients.clients(config.clients.count))
    store.control.clients.record_heartbeats()
    if store.control.clients.is_settling():
        return None
    alive = store.control.clients.alive(config.clients.active_s)
    out = barred(store, state, config, alive)
    asked = [client for client in alive if client not in out]
    admitted = preflight.admit(store, state, config, asked, purpose)
    out = dict(sorted({**out, **admitted.out}.items()))
    return EligibleClients(
        admitted.clients, out, admitted.unable, admitted.unanswered, admitted.problem
    )


def paused(store: Store, state: RunState, config: RunConfig) -> dict[str, str]:
    """Clients that might be selected if their sites had not paused them -> why."""
    if config.is_simulation:
        return {}
    found = store.control.clients.alive_paused(config.clients.active_s)
    out = barred(store, state, config, list(found))
    return {client: why for client, why in found.items() if client not in out}


def barred(
    store: Store, state: RunState, config: RunConfig, clients: Sequence[str]
) -> dict[str, str]:
    """Clients that are excluded from a run, whatever they would answer -> why."""
    out = {**_not_named(config, clients), **not_admitted(store, state, config, clients)}
    return out | _without_share(state, config, [c for c in clients if c not in out])


def not_admitted(
    store: Store, state: RunState, config: RunConfig, clients: Iterable[str]
) -> dict[str, str]:
    """
    Clients that were revoked, or are not enrolled where that is required -> why.

    Where other clients are enrolled, also those whose names cannot be enrolled.
    """
    known, out = store.control.enrolments.all(), {}
    required = store.control.enrolments.pins.required(
        state.run_id, config.security.require_enrolment
    )
    for client in clients:
        if client in known and known[client].revoked_at:
            out[client] = "it was revoked"
        elif client not in known and required:
            out[client] = "it is not enrolled (security.require_enrolment)"
        elif client not in known and known and client.startswith(virtual_clients.SHARED):
            out[client] = "it has a name of simulations, which cannot be enrolled"
    return out


def _not_named(config: RunConfig, clients: Sequence[str]) -> dict[str, str]:
    """Clients that ``clients.include`` and ``clients.exclude`` leave out -> why."""
    out = {}
    for client in clients:
        if _fits(client, config.clients.exclude):
            out[client] = "it is in clients.exclude"
        elif config.clients.include and not _fits(client, config.clients.include):
            out[client] = "it is not in clients.include"
    return out


def _fits(client: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(client, pattern) for pattern in patterns)


def _without_share(state: RunState, config: RunConfig, clients: Sequence[str]) -> dict[str, str]:
    """
    Clients without a share of a data set that was split when the run began -> why.

    Only built-in tasks are known to use a share; with any other the site itself reports it.
    """
    shares = config.data.shares or state.shares
    is_split = config.data.partition != "site" and config.run.task in task_catalog.TASKS
    if not shares or not is_split:
        return {}
    places = {client: place for place, client in enumerate(state.population)}
    newcomers = [client for client in sorted(clients) if client not in places]
    places |= {client: place for place, client in enumerate(newcomers, len(state.population))}
    why = f"there is no share of the data for it: they were split into {shares} (data.shares)"
    return {client: why for client in clients if places[client] >= shares}


def record(store: Store, state: RunState, found: EligibleClients) -> None:
    """Record the clients that are left out of a run and why, with an event, if that has changed."""
    out = found.lasting()
    if out == dict(state.left_out):
        return

    event = ClientsLeftOut(left_out=out)
    transactions.set_fields(store, state, {"left_out": dumps(out)}, event)


def lines(out: Mapping[str, str]) -> list[str]:
    """The clients that are left out, a line for each reason: ``b, c: not in clients.include``."""
    by_reason: dict[str, list[str]] = {}
    for client, why in out.items():
        by_reason.setdefault(why, []).append(client)
    return [f"{_shortened(clients)}: {why}" for why, clients in by_reason.items()]


def _shortened(clients: Sequence[str]) -> str:
    more = f" and {len(clients) - _NAMED} more" if len(clients) > _NAMED else ""
    return ", ".join(clients[:_NAMED]) + more
