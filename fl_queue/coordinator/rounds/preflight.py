"""
Ask each site, before its first round, if it can load its data and which facts describe that data.

Each start or continuation of a run sends one small job to each client; the client writes its answer into
one key of its own (``keyspace.client_facts``). A site that cannot load its task or data is left
out, and asked again after a restart of its worker or after a pause that doubles each time. The same holds
for a site whose answer to a round was that it cannot train.

If the task's classes or columns may differ between sites, the facts are compared: those that most of the
first sites share become the run's reference, and a late joiner must match it before its first round.
``protocol/site_facts.py`` has the rules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from weakref import WeakKeyDictionary

from fl_queue.common import safe_json
from fl_queue.common.safe_json import dumps
from fl_queue.config import task_catalog
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import MessageError
from fl_queue.protocol import identifiers, signing, site_facts
from fl_queue.protocol.events import SiteDiffers
from fl_queue.protocol.records import CANNOT, MAKES_NEXT, Purpose, Verdict
from fl_queue.secure.context import run_key_statement
from fl_queue.secure.records import SignedRunKey
from fl_queue.store import RunState, Store, keyspace
from fl_queue.store.jobs import dispatch, rq_types
from fl_queue.store.jobs.dead_jobs import JobMonitor
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.transactions import runs as transactions

#: Counted time for which the first round waits for sites without an answer: their workers may be busy.
MAX_WAIT_S = 60.0
#: Attempts of a site's job, after which its death is the answer.
ATTEMPTS = 3
TIMEOUT_S = 600
WAITING = "preflight: waiting until sites have reported if they can load their data"
#: Pause before a site that cannot train is asked again; it doubles each time.
FIRST_PAUSE_S = 60.0
MAX_PAUSE_S = 3600.0
#: Field of the run's sites for the facts of the majority; not a valid client id.
_REFERENCE = ":most"
_NO_RUN_KEY = (
    "it has not sent a run key for secure rounds yet; its worker may be of an older release"
)
#: Key in Redis -> field of ``SiteReport``, where they differ.
_FIELD_OF_KEY = {"told": "facts"}  # codespell:ignore told
_watches: WeakKeyDictionary[Store, JobMonitor] = WeakKeyDictionary()


@dataclass(frozen=True)
class SiteReport:
    """
    The record of one client, or of the facts that most clients share.

    Args:
        start: ``start_of`` the run when the site was asked.
        worker: Id of the worker that was asked; the site is asked again when it starts another one.
        ticket: The job that asks; empty in the record of the majority.
        facts: The site's answer; None before it. ``_FIELD_OF_KEY`` has its key in Redis.
        named: Text of the newest event about the site.
        unable: The reported reason why it cannot train; empty: it can, or has not been asked.
        since: Time of that report, Unix time of the control server.
        tries: Number of such reports by this worker, to questions and in rounds.
        failed_in: The newest round that it answered with a failure of that kind.
        run_key: JSON of its signed run key, in a run of secure rounds; empty: it has sent none.
    """

    start: str
    worker: str = ""
    ticket: Mapping[str, str | int] = field(default_factory=dict)
    facts: Mapping[str, str] | None = None
    named: str = ""
    unable: str = ""
    since: float = 0.0
    tries: int = 0
    failed_in: int = -1
    run_key: str = ""

    @property
    def pause_s(self) -> float:
        """Seconds until the site is asked again."""
        return min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** max(0, min(self.tries, 16) - 1))


@dataclass(frozen=True)
class EligibleClients:
    """
    The clients that may be selected.

    Args:
        clients: Sorted.
        out: Client -> reason why it is left out.
        unable: Clients in ``out`` that cannot train.
        unanswered: Clients in ``out`` whose answer is still awaited.
        problem: Reason why no client may be selected yet; empty when the round may be opened.
    """

    clients: list[str]
    out: Mapping[str, str] = field(default_factory=dict)
    unable: Sequence[str] = ()
    unanswered: Sequence[str] = ()
    problem: str = ""


def admit(
    store: Store,
    state: RunState,
    config: RunConfig,
    alive: Sequence[str],
    purpose: Purpose = Purpose.train,
) -> EligibleClients:
    """
    Ask the sites that were not asked yet, compare the answers, and decide which may train.

    Idempotent; any process of the operator may call it at any time.

    Args:
        alive: Clients that could be selected, sorted.
        purpose: Purpose of the round. The closing evaluation waits for no answer; nor does the making of
            version 0 when the config defines the model.
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
    facts = {
        client: sites[client].facts or {} for client in asked if sites[client].facts is not None
    }
    if is_compared(config):
        found = _compared(store, state, config, asked, sites, facts, reference, purpose)
    elif _waits(config, purpose) and len(facts) < len(asked) and state.waited_s < MAX_WAIT_S:
        found = EligibleClients([], problem=WAITING)
    else:
        found = EligibleClients(asked)
    if needs_run_keys(config, purpose):
        found = _with_run_keys(found, sites)
    out = dict(sorted({**found.out, **unable}.items()))
    return replace(found, out=out, unable=sorted(unable))


def _with_run_keys(found: EligibleClients, sites: Mapping[str, SiteReport]) -> EligibleClients:
    """Those of the clients that have sent a run key: without it no client can take part in a secure round."""
    without = [client for client in found.clients if not sites[client].run_key]
    return replace(
        found,
        clients=[client for client in found.clients if client not in without],
        out={**found.out, **dict.fromkeys(without, _NO_RUN_KEY)},
        unanswered=[*found.unanswered, *(who for who in without if sites[who].facts is None)],
    )


def run_keys(store: Store, state: RunState) -> dict[str, SignedRunKey]:
    """Client -> its run key, of those that have sent one."""
    return {
        client: SignedRunKey.from_json(site.run_key)
        for client, site in _read(store, state).items()
        if client != _REFERENCE and site.run_key
    }


def needs_run_keys(config: RunConfig, purpose: Purpose) -> bool:
    """Whether the rounds of a purpose are secure ones."""
    return config.secure.enabled and purpose == Purpose.train


def _compared(
    store: Store,
    state: RunState,
    config: RunConfig,
    asked: Sequence[str],
    sites: Mapping[str, SiteReport],
    facts: Mapping[str, site_facts.Facts],
    reference: SiteReport | None,
    purpose: Purpose,
) -> EligibleClients:
    """The clients that may train, where sites may differ."""
    mode = config.run.preflight
    if reference is None and not _waits(config, purpose) and purpose == Purpose.evaluate:
        return EligibleClients(list(asked))  # They have trained, and were compared before that.
    if reference is None:
        if len(facts) < len(asked) and state.waited_s < MAX_WAIT_S:
            return EligibleClients([], problem=WAITING)
        split = site_facts.undecided(facts)
        if split and mode == "refuse":
            return EligibleClients([], problem=_advice(split))
        reference = SiteReport(
            start_of(state), facts=site_facts.agreed(facts, always=mode == "warn")
        )
        if facts and not _write(store, state, _REFERENCE, None, reference):
            return EligibleClients(
                [], problem=WAITING
            )  # Another process wrote the reference first: read it at the next look.
    most = reference.facts or {}
    for client in facts:
        _name(store, state, client, sites[client], most, mode)
    if mode == "warn":
        return EligibleClients(list(asked))
    fit = [client for client in asked if client in facts and site_facts.is_fit(facts[client], most)]
    out = {c: _why_out(facts.get(c), most) for c in asked if c not in fit}
    return EligibleClients(fit, out, unanswered=[client for client in asked if client not in facts])


def _waits(config: RunConfig, purpose: Purpose) -> bool:
    """Whether a round waits for the answers: a closing evaluation is of clients that have trained."""
    is_first = purpose == Purpose.evaluate and config.run.purpose == "evaluate"
    return is_first or purpose in MAKES_NEXT


def is_asked(config: RunConfig) -> bool:
    """Whether sites are asked at all: for the facts of their data, or for their run keys."""
    return (config.run.preflight != "off" or config.secure.enabled) and not config.is_simulation


def is_compared(config: RunConfig) -> bool:
    """Whether the facts of sites are compared; not where the config alone defines the task."""
    asked = is_asked(config) and config.run.preflight != "off"
    return asked and task_catalog.may_differ(config.run.task, config.task)


def lines(store: Store, state: RunState, but: Collection[str] = ()) -> list[str]:
    """
    A line for each site of a run that differs, or could not report its facts; for ``status``.

    Args:
        but: Sites to leave out, as ``status`` has another line for them.
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


def _why_out(facts: site_facts.Facts | None, most: site_facts.Facts) -> str:
    if facts is None:
        return "it has not reported yet what it would train on"
    return ", ".join(site_facts.differences(facts, most, set(most) - set(site_facts.NOTED)))


def _read(store: Store, state: RunState) -> dict[str, SiteReport]:
    """Client -> its record of the newest start of the run."""
    raw = store.control.runs.site_reports(state.run_id)
    found = store.control.unreadable.each(
        keyspace.sites(state.run_id),
        raw.items(),
        lambda who, text: (who, _parsed(text)),
    )
    return {client: site for client, site in found.items() if site.start == start_of(state)}


def _parsed(text: bytes) -> SiteReport:
    """A record from its JSON. Raises MessageError."""
    raw = safe_json.loads(text, "a site")
    if type(raw) is dict:
        raw = {_FIELD_OF_KEY.get(key, key): value for key, value in raw.items()}
    return safe_json.record(SiteReport, raw, "a site")


def _encoded(report: SiteReport) -> str:
    keys = {name: key for key, name in _FIELD_OF_KEY.items()}
    raw = {keys.get(name, name): value for name, value in asdict(report).items()}
    if not report.run_key:
        del raw["run_key"]  # Releases before secure rounds do not know it.
    return dumps(raw)


def _learn(store: Store, state: RunState, sites: dict[str, SiteReport]) -> None:
    """Record the clients that answered the newest round that they cannot train."""
    receipts = (
        store.control.receipts.of_round(state.run_id, state.round) if state.round >= 0 else {}
    )
    for client, receipt in receipts.items():
        kind = receipt.environment.get(CANNOT)
        if (
            receipt.status != Verdict.failed
            or type(kind) is not str
            or not identifiers.is_name(client)
        ):
            continue
        site = sites.get(client)
        if site is not None and site.failed_in >= state.round:
            continue
        opened = store.control.rounds.get(state.run_id, state.round)
        if opened is None or opened.start != start_of(state):
            continue  # The run was continued since: the operator may have repaired the site.
        worker = store.control.leases.get(keyspace.client_holder(client)).get("worker", "")
        before = site or SiteReport(start_of(state), worker, facts={})
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
    if not is_asked(config) or not (worker or compared or config.secure.enabled):
        # Sites are not asked in this run, or this one has no worker that could answer: accept it.
        old = site or SiteReport(start_of(state), worker, facts={})
        if not old.unable or not (is_new or _is_pause_over(store, old)):
            return old
        new = replace(old, worker=worker, unable="", tries=0 if is_new else old.tries)
        return new if _write(store, state, client, site, new) else old
    if site is None or is_new:
        return _ask(store, state, client, site, worker, 1)
    if site.facts is not None:
        again = bool(site.unable) and _is_pause_over(store, site)
        return _ask(store, state, client, site, worker, 1) if again else site
    return _read_answer(store, state, config, client, site, worker)


def _read_answer(
    store: Store, state: RunState, config: RunConfig, client: str, site: SiteReport, worker: str
) -> SiteReport:
    """The record of a client that was asked, with its answer if one has arrived."""
    ticket = JobTicket.from_dict(dict(site.ticket))
    facts, run_key = _answer_to(store, state, config, client, ticket)
    if facts is None and _is_over(store, ticket):
        if ticket.attempt < ATTEMPTS:
            return _ask(store, state, client, site, worker, ticket.attempt + 1)
        facts = {
            site_facts.PROBLEM: site_facts.line(f"its job {dispatch.job_state(store, ticket)}")
        }
    if facts is None:
        return site
    new = replace(site, facts=facts, unable="", run_key=run_key)
    if site_facts.CANNOT in facts:
        why = site_facts.line(
            f"it cannot {config.run.purpose}: {facts.get(site_facts.PROBLEM, '')}"
        )
        now = round(store.control.now(), 3)
        new = replace(new, unable=why, since=now, tries=site.tries + 1)
    return new if _write(store, state, client, site, new) else site


def _is_pause_over(store: Store, site: SiteReport) -> bool:
    return store.control.now() - site.since >= site.pause_s


def _is_settled(site: SiteReport, reference: SiteReport | None, compared: bool) -> bool:
    """Whether a client's facts match the majority, so that it need not be asked again."""
    if site.facts is None or site.unable or site_facts.PROBLEM in site.facts:
        return False
    if not compared:
        return True
    return reference is not None and site_facts.is_fit(site.facts, reference.facts or {})


def _is_over(store: Store, ticket: JobTicket) -> bool:
    """Whether a job will never answer. Not so when its worker died: a new worker is asked anew."""
    if dispatch.job_state(store, ticket).partition(":")[0] in (
        dispatch.JobState.finished,
        dispatch.JobState.failed,
        "gone",
    ):
        return True
    # Its worker is alive without this job, so that no new worker will be asked.
    return (_watch(store).verdict(ticket) or "").startswith("lost")


def _watch(store: Store) -> JobMonitor:
    """The job monitor of this process; it finds a lost job only by repeated looks."""
    if store not in _watches:
        _watches[store] = JobMonitor(store)
    return _watches[store]


def _answer_to(
    store: Store, state: RunState, config: RunConfig, client: str, ticket: JobTicket
) -> tuple[dict[str, str] | None, str]:
    """A client's facts and the JSON of its run key (empty: none); None: it has not answered this question."""
    text = store.control.clients.site_facts(client, state.run_id, 2 * site_facts.MAX_BYTES)
    if text is None:
        return None, ""
    try:
        answer = safe_json.loads(text, "facts")
        if type(answer) is not dict or answer.get("job") != ticket.job:
            return None, ""  # The answer to an earlier question.
        facts = site_facts.parse(dumps(answer.get("facts")).encode())
        return facts, _run_key(store, state, config, client, answer)
    except MessageError as exc:
        return {site_facts.PROBLEM: site_facts.line(exc.reason)}, ""


def _run_key(
    store: Store, state: RunState, config: RunConfig, client: str, answer: Mapping[str, object]
) -> str:
    """
    The JSON of the run key in an answer; empty: it has none, or the run's rounds are not secure.

    Raises:
        MessageError: It is not signed with the key of its client's enrolment.
    """
    if not config.secure.enabled or "run_key" not in answer:
        return ""
    key = SignedRunKey.from_json(dumps(answer["run_key"]))
    enrolment = store.control.enrolments.get(client)
    statement = run_key_statement(state.run_id, client, key.key)
    if enrolment is not None and not signing.is_raw_signature(
        enrolment.key, statement, key.signature
    ):
        raise MessageError("its run key is not signed with the key of its enrolment")
    return key.to_json()


def _ask(
    store: Store, state: RunState, client: str, old: SiteReport | None, worker: str, attempt: int
) -> SiteReport:
    """Publish a client's job in place of its older one, unless another process has done so."""
    queue = keyspace.client_queue(client)
    ticket = JobTicket(
        client, rq_types.CLIENT_TELL, queue, state.run_id, state.segment, TIMEOUT_S, attempt
    )
    new = SiteReport(start_of(state), worker, asdict(ticket))
    if old is not None:
        # The last reported reason holds until the next answer; for another worker, counting starts again.
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
    event: SiteDiffers | None = None,
) -> bool:
    """Record a site if its record is still ``old``; a record of an earlier start counts as none."""

    def is_expected(raw: bytes | None) -> bool:
        now = _parsed(raw) if raw else None
        return (None if now is not None and now.start != start_of(state) else now) == old

    report = _encoded(new)
    return transactions.write_site_report(
        store, state.run_id, client, report, is_expected, ticket, event
    )


def _name(
    store: Store, state: RunState, client: str, site: SiteReport, most: site_facts.Facts, mode: str
) -> None:
    """Log once that a site differs or could not report its facts."""
    facts = site.facts or {}
    what = "; ".join(site_facts.differences(facts, most))
    if what and mode == "refuse" and not site_facts.is_fit(facts, most):
        what += "; left out until it has the same and its worker is started again"
    if site_facts.PROBLEM in facts:
        what = f"cannot report what it would train on: {facts[site_facts.PROBLEM]}"
    if site.unable:
        what = f"{site.unable}; left out until its worker is started again, or a pause has passed"
    if not what or what == site.named:
        return
    event = SiteDiffers(client=client, what=what)
    _write(store, state, client, site, replace(site, named=what), event=event)
