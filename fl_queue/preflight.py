"""
The comparison of sites before round 1: what each would train on is told, and who differs is named.

Each client gets one small job whenever a run is begun or gone on with, whose answer is a key of its own
(``flq:client:<id>:told:<run>``). What most of the first sites tell is the run's reference from then
on; late joiners are held against it before their first round. ``facts`` has the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from redis.client import Pipeline

from fl_queue import catalog, dispatch, facts, jobs, names, plain, simulation
from fl_queue.config import RunConfig
from fl_queue.dispatch import Ticket
from fl_queue.errors import BlobError
from fl_queue.records import dumps
from fl_queue.store import RunState, Store

#: Counted time for which the first round waits for sites that tell nothing: a worker may be busy.
LONGEST_WAIT_S = 60.0
#: A job that dies so often tells nothing.
ATTEMPTS = 3
TIMEOUT_S = 600
WAITING = "preflight: waiting for what sites tell of their labels, columns and channels"
#: Field of the run's sites that holds what most of them have; no client is called so.
_REFERENCE = ":most"


@dataclass(frozen=True)
class Site:
    """
    What is recorded of one client, or of what most have.

    Args:
        start: What was asked about: the run as it was begun, or gone on with.
        worker: The worker that was asked: another one is another attempt of the site to be like the others.
        ticket: The job that asks; empty of what most have.
        told: Its facts; None while it has not told.
        named: What an event has said of it.
    """

    start: str
    worker: str = ""
    ticket: Mapping[str, str | int] = field(default_factory=dict)
    told: Mapping[str, str] | None = None
    named: str = ""


@dataclass(frozen=True)
class Admitted:
    """
    Who may be selected.

    Args:
        clients: Sorted.
        out: Client -> why it is left out.
        problem: Why nobody is yet; empty when the round may be opened.
    """

    clients: list[str]
    out: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    def left_out(self) -> str:
        """Who is left out and why, as a sentence; empty when nobody is."""
        who = "; ".join(f"{client}: {why}" for client, why in self.out.items())
        return f"preflight leaves out {who}" if who else ""


def admit(store: Store, state: RunState, config: RunConfig, alive: Sequence[str]) -> Admitted:
    """
    Ask the sites that were not asked yet, compare those that have told, and say who may train.

    Idempotent; anybody may call it at any time.

    Args:
        alive: Who would be selected from, sorted.
    """
    mode = config.run["preflight"]
    if not is_wanted(config):
        return Admitted(list(alive))
    sites = _read(store, state)
    reference = sites.pop(_REFERENCE, None)
    for client in alive:
        sites[client] = _follow(store, state, client, sites.get(client), reference)
    told = {client: sites[client].told or {} for client in alive if sites[client].told is not None}
    if reference is None:
        if len(told) < len(alive) and state.waited_s < LONGEST_WAIT_S:
            return Admitted([], problem=WAITING)
        split = facts.undecided(told)
        if split and mode == "refuse":
            return Admitted([], problem=_advice(split))
        reference = Site(_start(state), told=facts.agreed(told, always=mode == "warn"))
        if told and not _write(store, state, _REFERENCE, None, reference):
            return Admitted([], problem=WAITING)  # Somebody else was faster: look again.
    most = reference.told or {}
    for client in told:
        _name(store, state, client, sites[client], most, mode)
    if mode == "warn":
        return Admitted(list(alive))
    fit = [client for client in alive if client in told and facts.is_fit(told[client], most)]
    return Admitted(fit, {c: _why_out(told.get(c), most) for c in alive if c not in fit})


def is_wanted(config: RunConfig) -> bool:
    """Whether sites are compared: of virtual clients, or where the config says all, there is nothing to."""
    return (
        config.run["preflight"] != "off"
        and not simulation.is_simulation(config)
        and catalog.may_differ(config.run["task"], config.task)
    )


def lines(store: Store, state: RunState) -> list[str]:
    """A line for each site of a run that differs, or could not tell; for ``status``."""
    sites = _read(store, state)
    return [
        f"preflight: {client}: {site.named}"
        for client, site in sites.items()
        if client != _REFERENCE and site.named
    ]


def _start(state: RunState) -> str:
    """Another one whenever ``start-round`` begins the run or goes on with it: sites may have changed."""
    return f"{state.segment}:{state.rounds_wanted}"


def _advice(split: str) -> str:
    return (
        f"preflight: {split}; make them the same and restart the workers that were wrong, "
        'or set run.preflight = "warn"'
    )


def _why_out(told: facts.Facts | None, most: facts.Facts) -> str:
    if told is None:
        return "it has not told yet what it would train on"
    return ", ".join(facts.differences(told, most, set(most) - set(facts.NOTED)))


def _read(store: Store, state: RunState) -> dict[str, Site]:
    """What is recorded since the run was begun, or gone on with, last."""
    raw = store.control.sites(state.run_id)
    found = {
        client: plain.record(Site, plain.loads(text, "a site"), "a site")
        for client, text in raw.items()
    }
    return {client: site for client, site in found.items() if site.start == _start(state)}


def _follow(
    store: Store, state: RunState, client: str, site: Site | None, reference: Site | None
) -> Site:
    """A client's record, after asking it if that is due and hearing what it has told."""
    if site is not None and _is_settled(site, reference):
        return site
    worker = store.control.lease(names.client_holder(client)).get("worker", "")
    if site is None or (worker and worker != site.worker):
        return _ask(store, state, client, site, worker, 1)
    if site.told is not None:
        return site
    ticket = Ticket.from_dict(dict(site.ticket))
    told = _heard(store, state, client, ticket)
    if told is None and _is_over(store, ticket):
        if ticket.attempt < ATTEMPTS:
            return _ask(store, state, client, site, worker, ticket.attempt + 1)
        told = {facts.PROBLEM: facts.line(f"its job {dispatch.job_state(store, ticket)}")}
    if told is None:
        return site
    new = replace(site, told=told)
    return new if _write(store, state, client, site, new) else site


def _is_settled(site: Site, reference: Site | None) -> bool:
    """Whether a client is as most are: it need not be asked again, whoever serves it."""
    if site.told is None or reference is None or facts.PROBLEM in site.told:
        return False
    return facts.is_fit(site.told, reference.told or {})


def _is_over(store: Store, ticket: Ticket) -> bool:
    """Whether nothing will come of a job any more; a dead worker is another one soon, or not alive."""
    return dispatch.job_state(store, ticket).partition(":")[0] in ("finished", "failed", "gone")


def _heard(store: Store, state: RunState, client: str, ticket: Ticket) -> dict[str, str] | None:
    text = store.control.told(client, state.run_id, 2 * facts.LONGEST_BYTES)
    if text is None:
        return None
    try:
        answer = plain.loads(text, "facts")
        if type(answer) is not dict or answer.get("job") != ticket.job:
            return None  # Of an earlier question.
        return facts.parse(dumps(answer.get("facts")).encode())
    except BlobError as exc:
        return {facts.PROBLEM: facts.line(exc.reason)}


def _ask(
    store: Store, state: RunState, client: str, old: Site | None, worker: str, attempt: int
) -> Site:
    """Publish a client's job, in place of an older one; unless somebody else was faster."""
    queue = names.client_queue(client)
    ticket = Ticket(
        client, jobs.CLIENT_TELL, queue, state.run_id, state.segment, TIMEOUT_S, attempt
    )
    new = Site(_start(state), worker, asdict(ticket))
    connection = store.control.redis

    def publish(pipe: Pipeline) -> None:
        dispatch.publish(ticket, pipe, connection)

    if not _write(store, state, client, old, new, publish):
        return old or new
    if old is not None and old.ticket:
        dispatch.forget(store, Ticket.from_dict(dict(old.ticket)))
    return new


def _write(
    store: Store,
    state: RunState,
    client: str,
    old: Site | None,
    new: Site,
    also: Callable[[Pipeline], None] = lambda pipe: None,
) -> bool:
    """Record a site, if its record is still the old one, or of an earlier start where there was none."""
    run, key = state.run_id, names.sites(state.run_id)

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        raw = pipe.hget(key, client)
        now = plain.record(Site, plain.loads(raw, "a site"), "a site") if raw else None
        if now is not None and now.start != _start(state):
            now = None
        if now != old or pipe.hget(names.run(run), "state") != b"training":
            return None

        def write() -> None:
            pipe.hset(key, client, dumps(asdict(new)))
            also(pipe)

        return write

    return store.control.transact([key, names.run(run)], body)


def _name(
    store: Store, state: RunState, client: str, site: Site, most: facts.Facts, mode: str
) -> None:
    """Tell of a site that differs, or could not tell: once."""
    told = site.told or {}
    what = "; ".join(facts.differences(told, most))
    if what and mode == "refuse" and not facts.is_fit(told, most):
        what += "; left out until it has the same and its worker is started again"
    if facts.PROBLEM in told:
        what = f"cannot tell what it would train on: {told[facts.PROBLEM]}"
    if not what or what == site.named:
        return
    event = {"event": "site_differs", "client": client, "what": what}

    def also(pipe: Pipeline) -> None:
        store.control.add_event(state.run_id, event, pipe)

    _write(store, state, client, site, replace(site, named=what), also)
