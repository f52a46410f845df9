"""
The question to each site before its first round: can it load its data, and what would it train on.

Each client gets one small job whenever a run is begun or gone on with, whose answer is a key of its own
(``flq:client:<id>:told:<run>``). A site that cannot load its task or data is left out, and asked again when
its worker is another one or a pause has passed, which doubles each time. The same holds for one that
answered a round that it cannot train.

Where sites may differ in what the task is about, they are compared, too: what most of the first sites tell
is the run's reference from then on; late joiners are held against it before their first round. ``facts``
has the rules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from fl_queue.common import safe_json
from fl_queue.common.safe_json import dumps
from fl_queue.config import task_catalog
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import MessageError
from fl_queue.protocol import identifiers, site_facts
from fl_queue.protocol.records import CANNOT, Purpose
from fl_queue.store import RunState, Store, keyspace
from fl_queue.store.jobs import dispatch, rq_types
from fl_queue.store.jobs.dead_jobs import JobMonitor
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.transactions import runs as transactions

#: Counted time for which the first round waits for sites that tell nothing: a worker may be busy.
LONGEST_WAIT_S = 60.0
#: A job that dies so often tells nothing.
ATTEMPTS = 3
TIMEOUT_S = 600
WAITING = "preflight: waiting until sites have told whether they can load their data"
#: A site that cannot train is asked again after this time, the next time after twice as long, ...
FIRST_PAUSE_S = 60.0
LONGEST_PAUSE_S = 3600.0
#: Field of the run's sites that holds what most of them have; no client is called so.
_REFERENCE = ":most"
_watches: WeakKeyDictionary[Store, JobMonitor] = WeakKeyDictionary()


@dataclass(frozen=True)
class SiteReport:
    """
    The record of one client, or of the facts that most clients share.

    Args:
        start: What was asked about: the run as it was begun, or gone on with.
        worker: The worker that was asked: another one is another attempt of the site to be like the others.
        ticket: The job that asks; empty of what most have.
        told: Its facts; None while it has not told.
        named: What an event has said of it.
        unable: Why it cannot train, as far as it has said; empty: it can, or has not been asked.
        since: When it said so, Unix time of the control server.
        tries: How often it said so to this worker's questions and rounds.
        failed_in: The newest round that it answered with a failure of that kind.
    """

    start: str
    worker: str = ""
    ticket: Mapping[str, str | int] = field(default_factory=dict)
    told: Mapping[str, str] | None = None
    named: str = ""
    unable: str = ""
    since: float = 0.0
    tries: int = 0
    failed_in: int = -1

    @property
    def pause_s(self) -> float:
        """Seconds until it is asked again."""
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** max(0, min(self.tries, 16) - 1))


@dataclass(frozen=True)
class Admitted:
    """
    The clients that may be selected.

    Args:
        clients: Sorted.
        out: Client -> why it is left out.
        unable: Those of them that cannot train.
        untold: Clients in ``out`` that have only not answered yet.
        problem: Why no client may be selected yet; empty when the round may be opened.
    """

    clients: list[str]
    out: Mapping[str, str] = field(default_factory=dict)
    unable: Sequence[str] = ()
    untold: Sequence[str] = ()
    problem: str = ""


def admit(
    store: Store,
    state: RunState,
    config: RunConfig,
    alive: Sequence[str],
    purpose: Purpose = "train",
) -> Admitted:
    """
    Ask the sites that were not asked yet, compare the answers, and decide which may train.

    Idempotent; any process of the operator may call it at any time.

    Args:
        alive: Who would be selected from, sorted.
        purpose: Of the round: nobody is waited for before version 0 is made where the config says what
            it is like, nor before the closing evaluation.
    """
    sites = _read(store, state)
    reference = sites.pop(_REFERENCE, None)
    _learn(store, state, sites)
    for client in alive:
        sites[client] = _follow(store, state, config, client, sites.get(client), reference)
    unable = {client: _why_unable(sites[client]) for client in alive if sites[client].unable}
    for client in unable:
        _name(store, state, client, sites[client], {}, "")
    asked = [client for client in alive if client not in unable]
    told = {client: sites[client].told or {} for client in asked if sites[client].told is not None}
    if is_compared(config):
        found = _compared(store, state, config, asked, sites, told, reference, purpose)
    elif purpose == "train" and len(told) < len(asked) and state.waited_s < LONGEST_WAIT_S:
        found = Admitted([], problem=WAITING)
    else:
        found = Admitted(asked)
    out = dict(sorted({**found.out, **unable}.items()))
    return replace(found, out=out, unable=sorted(unable))


def _compared(
    store: Store,
    state: RunState,
    config: RunConfig,
    asked: Sequence[str],
    sites: Mapping[str, SiteReport],
    told: Mapping[str, site_facts.Facts],
    reference: SiteReport | None,
    purpose: Purpose,
) -> Admitted:
    """The clients that may train, where sites may differ."""
    mode = config.run.preflight
    if reference is None and purpose == "evaluate":
        return Admitted(list(asked))  # They have trained, and were compared then.
    if reference is None:
        if len(told) < len(asked) and state.waited_s < LONGEST_WAIT_S:
            return Admitted([], problem=WAITING)
        split = site_facts.undecided(told)
        if split and mode == "refuse":
            return Admitted([], problem=_advice(split))
        reference = SiteReport(start_of(state), told=site_facts.agreed(told, always=mode == "warn"))
        if told and not _write(store, state, _REFERENCE, None, reference):
            return Admitted([], problem=WAITING)  # Somebody else was faster: look again.
    most = reference.told or {}
    for client in told:
        _name(store, state, client, sites[client], most, mode)
    if mode == "warn":
        return Admitted(list(asked))
    fit = [client for client in asked if client in told and site_facts.is_fit(told[client], most)]
    out = {c: _why_out(told.get(c), most) for c in asked if c not in fit}
    return Admitted(fit, out, untold=[client for client in asked if client not in told])


def is_asked(config: RunConfig) -> bool:
    """Whether sites are asked at all."""
    return config.run.preflight != "off" and not config.is_simulation


def is_compared(config: RunConfig) -> bool:
    """Whether sites are compared: where the config says all, there is nothing to compare."""
    return is_asked(config) and task_catalog.may_differ(config.run.task, config.task)


def lines(store: Store, state: RunState, but: Collection[str] = ()) -> list[str]:
    """
    A line for each site of a run that differs, or could not tell; for ``status``.

    Args:
        but: Sites of which something else is said.
    """
    sites = _read(store, state)
    return [
        f"preflight: {client}: {site.named}"
        for client, site in sites.items()
        if client != _REFERENCE and site.named and client not in but
    ]


def start_of(state: RunState) -> str:
    """Id of this start of the run; facts are collected again for each."""
    return f"{state.segment}:{state.rounds_wanted}"


def _advice(split: str) -> str:
    return (
        f"preflight: {split}; make them the same and restart the workers that were wrong, "
        'or set run.preflight = "warn"'
    )


def _why_unable(site: SiteReport) -> str:
    return (
        f"{site.unable}; left out until its worker is started again, "
        f"and asked again after {site.pause_s:g} s"
    )


def _why_out(told: site_facts.Facts | None, most: site_facts.Facts) -> str:
    if told is None:
        return "it has not told yet what it would train on"
    return ", ".join(site_facts.differences(told, most, set(most) - set(site_facts.NOTED)))


def _read(store: Store, state: RunState) -> dict[str, SiteReport]:
    """What is recorded since the run was begun, or gone on with, last."""
    raw = store.control.runs.site_reports(state.run_id)
    found = store.control.unreadable.each(
        keyspace.sites(state.run_id),
        raw.items(),
        lambda who, text: (
            who,
            safe_json.record(SiteReport, safe_json.loads(text, "a site"), "a site"),
        ),
    )
    return {client: site for client, site in found.items() if site.start == start_of(state)}


def _learn(store: Store, state: RunState, sites: dict[str, SiteReport]) -> None:
    """Record the clients that answered the newest round that they cannot train."""
    receipts = (
        store.control.receipts.of_round(state.run_id, state.round) if state.round >= 0 else {}
    )
    for client, receipt in receipts.items():
        kind = receipt.environment.get(CANNOT)
        if receipt.status != "failed" or type(kind) is not str or not identifiers.is_name(client):
            continue
        site = sites.get(client)
        if site is not None and site.failed_in >= state.round:
            continue
        opened = store.control.rounds.get(state.run_id, state.round)
        if opened is None or opened.start != start_of(state):
            continue  # The run has been gone on with since: sites may have been mended.
        worker = store.control.leases.get(keyspace.client_holder(client)).get("worker", "")
        before = site or SiteReport(start_of(state), worker, told={})
        new = replace(
            before,
            unable=site_facts.line(f"its answer to round {state.round} was a {kind}"),
            since=round(store.control.now(), 3),
            tries=before.tries + 1,
            failed_in=state.round,
        )
        if _write(store, state, client, site, new):
            sites[client] = new


def _follow(
    store: Store,
    state: RunState,
    config: RunConfig,
    client: str,
    site: SiteReport | None,
    reference: SiteReport | None,
) -> SiteReport:
    """A client's record, after asking it if that is due and reading its answer."""
    compared = is_compared(config)
    if site is not None and _is_settled(site, reference, compared):
        return site
    worker = store.control.leases.get(keyspace.client_holder(client)).get("worker", "")
    is_new = site is None or bool(worker and worker != site.worker)
    if not is_asked(config) or not (worker or compared):
        # Nobody asks, or there is no process that could answer: it is taken as it is.
        old = site or SiteReport(start_of(state), worker, told={})
        if not old.unable or not (is_new or _is_pause_over(store, old)):
            return old
        new = replace(old, worker=worker, unable="", tries=0 if is_new else old.tries)
        return new if _write(store, state, client, site, new) else old
    if site is None or is_new:
        return _ask(store, state, client, site, worker, 1)
    if site.told is not None:
        again = bool(site.unable) and _is_pause_over(store, site)
        return _ask(store, state, client, site, worker, 1) if again else site
    return _read_answer(store, state, client, site, worker)


def _read_answer(
    store: Store, state: RunState, client: str, site: SiteReport, worker: str
) -> SiteReport:
    """The record of a client that has been asked, with its answer if there is one."""
    ticket = JobTicket.from_dict(dict(site.ticket))
    told = _heard(store, state, client, ticket)
    if told is None and _is_over(store, ticket):
        if ticket.attempt < ATTEMPTS:
            return _ask(store, state, client, site, worker, ticket.attempt + 1)
        told = {site_facts.PROBLEM: site_facts.line(f"its job {dispatch.job_state(store, ticket)}")}
    if told is None:
        return site
    new = replace(site, told=told, unable="")
    if site_facts.CANNOT in told:
        why = site_facts.line(f"it cannot train: {told.get(site_facts.PROBLEM, '')}")
        now = round(store.control.now(), 3)
        new = replace(new, unable=why, since=now, tries=site.tries + 1)
    return new if _write(store, state, client, site, new) else site


def _is_pause_over(store: Store, site: SiteReport) -> bool:
    return store.control.now() - site.since >= site.pause_s


def _is_settled(site: SiteReport, reference: SiteReport | None, compared: bool) -> bool:
    """Whether a client's facts match the majority: it need not be asked again."""
    if site.told is None or site.unable or site_facts.PROBLEM in site.told:
        return False
    if not compared:
        return True
    return reference is not None and site_facts.is_fit(site.told, reference.told or {})


def _is_over(store: Store, ticket: JobTicket) -> bool:
    """Whether a job will never answer; a dead worker is replaced soon, or not alive."""
    if dispatch.job_state(store, ticket).partition(":")[0] in ("finished", "failed", "gone"):
        return True
    # Its worker lives, and is not at it: no other one comes that would be asked anew.
    return (_watch(store).verdict(ticket) or "").startswith("lost")


def _watch(store: Store) -> JobMonitor:
    """This process's, as it takes some looks to tell that a job is lost."""
    if store not in _watches:
        _watches[store] = JobMonitor(store)
    return _watches[store]


def _heard(store: Store, state: RunState, client: str, ticket: JobTicket) -> dict[str, str] | None:
    text = store.control.clients.site_facts(client, state.run_id, 2 * site_facts.LONGEST_BYTES)
    if text is None:
        return None
    try:
        answer = safe_json.loads(text, "facts")
        if type(answer) is not dict or answer.get("job") != ticket.job:
            return None  # Of an earlier question.
        return site_facts.parse(dumps(answer.get("facts")).encode())
    except MessageError as exc:
        return {site_facts.PROBLEM: site_facts.line(exc.reason)}


def _ask(
    store: Store, state: RunState, client: str, old: SiteReport | None, worker: str, attempt: int
) -> SiteReport:
    """Publish a client's job, in place of an older one; unless somebody else was faster."""
    queue = keyspace.client_queue(client)
    ticket = JobTicket(
        client, rq_types.CLIENT_TELL, queue, state.run_id, state.segment, TIMEOUT_S, attempt
    )
    new = SiteReport(start_of(state), worker, asdict(ticket))
    if old is not None:
        # What it said last holds until it says something else; another worker begins anew.
        tries = old.tries if old.worker == worker else 0
        new = replace(new, unable=old.unable, since=old.since, tries=tries, failed_in=old.failed_in)
    if not _write(store, state, client, old, new, ticket):
        return old or new
    if old is not None and old.ticket:
        dispatch.forget(store, JobTicket.from_dict(dict(old.ticket)))
    return new


def _write(
    store: Store,
    state: RunState,
    client: str,
    old: SiteReport | None,
    new: SiteReport,
    ticket: JobTicket | None = None,
    event: Mapping[str, Any] | None = None,
) -> bool:
    """Record a site, if its record is still the old one, or of an earlier start where there was none."""

    def is_expected(raw: bytes | None) -> bool:
        now = (
            safe_json.record(SiteReport, safe_json.loads(raw, "a site"), "a site") if raw else None
        )
        return (None if now is not None and now.start != start_of(state) else now) == old

    report = dumps(asdict(new))
    return transactions.write_site_report(
        store, state.run_id, client, report, is_expected, ticket, event
    )


def _name(
    store: Store, state: RunState, client: str, site: SiteReport, most: site_facts.Facts, mode: str
) -> None:
    """Log once that a site differs or could not report its facts."""
    told = site.told or {}
    what = "; ".join(site_facts.differences(told, most))
    if what and mode == "refuse" and not site_facts.is_fit(told, most):
        what += "; left out until it has the same and its worker is started again"
    if site_facts.PROBLEM in told:
        what = f"cannot tell what it would train on: {told[site_facts.PROBLEM]}"
    if site.unable:
        what = f"{site.unable}; left out until its worker is started again, or a pause has passed"
    if not what or what == site.named:
        return
    event = {"event": "site_differs", "client": client, "what": what}

    _write(store, state, client, site, replace(site, named=what), event=event)
