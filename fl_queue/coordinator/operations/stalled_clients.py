"""
Detect clients that ask for room on the data server and then send nothing: others stop waiting for them.

The operator's side decides this, by counted time: a client could extend its own claim without end. The
healer looks once a second; if it restarts, its counts start again from zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_queue.coordinator.rounds.deadlines import SLOWEST_BYTES_PER_S
from fl_queue.protocol.records import MAKES_NEXT, Receipt
from fl_queue.store import RoundState, Store, admission, size_of

#: A client may hold room this long, plus the time to send its update, before others go first.
PATIENCE_S = 20.0
#: Largest update that is allowed for, in models: some strategies send more than the parameters.
_MOST_MODELS = 2
#: Longest time between two looks that is counted: during a longer one no healer was at work.
_MAX_LOOK_S = 3.0


@dataclass
class _Seen:
    """The state of one run. Args: ``at_s``: counted time of the round at the last look; ``held_s``: by client."""

    number: int
    at_s: float
    held_s: dict[str, float] = field(default_factory=dict)
    #: Clients that were skipped in this round, and in the one before it.
    passed: set[str] = field(default_factory=set)
    before: set[str] = field(default_factory=set)


class StallDetector:
    """Watches the claims for room. Args: ``store``: both servers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._runs: dict[str, _Seen] = {}

    def look(self, run: str, current: RoundState) -> dict[str, float]:
        """
        Skip the claims of clients that have held room too long and have sent nothing.

        A client that was skipped in the round before is skipped at once.

        Returns:
            Client -> seconds it held room, of those that are skipped from now on.
        """
        if current.purpose not in MAKES_NEXT or current.groups:
            return {}  # Pools belong to the operator.
        seen = self._seen(run, current)
        looked_s = min(current.elapsed_s - seen.at_s, _MAX_LOOK_S)
        seen.at_s = current.elapsed_s
        claims = self._store.data.admission.claims(run, current.cohort)
        if not claims or not self._is_at_work(run, current):
            return {}
        receipts = self._store.control.receipts.of_round(run, current.number)
        passed: dict[str, float] = {}
        for client, claim in claims.items():
            if _has_sent(receipts, client, claim):
                seen.before.discard(client)
                continue
            held_s = seen.held_s.get(client, 0.0) + looked_s
            seen.held_s[client] = held_s
            if client in seen.before or held_s > self._patience_s(run, claim):
                self._store.data.admission.skip(run, current.number, client)
                passed[client] = held_s
                seen.passed.add(client)
                seen.before.discard(client)
                seen.held_s[client] = 0.0
        return passed

    def forget(self, run: str) -> None:
        """Forget a run that is not training any more."""
        self._runs.pop(run, None)

    def _seen(self, run: str, current: RoundState) -> _Seen:
        known = self._runs.get(run)
        if known is None or known.number != current.number:
            before = known.passed | known.before if known else set()
            known = _Seen(current.number, current.elapsed_s, before=before)
            self._runs[run] = known
        return known

    def _is_at_work(self, run: str, current: RoundState) -> bool:
        """Whether sent updates are taken: if not, waiting is not the clients' fault."""
        data = self._store.data
        return not data.results.count(run) or data.taken.is_owned(run, current.fence)

    def _patience_s(self, run: str, claim: bytes) -> float:
        manifest = self._store.control.versions.manifest(run)
        most = _MOST_MODELS * manifest.nbytes if manifest else 0
        return PATIENCE_S + min(size_of(claim), most) / SLOWEST_BYTES_PER_S


def _has_sent(receipts: Mapping[str, Receipt], client: str, claim: bytes) -> bool:
    """Whether the update of a claim has come: its room is released when it is merged."""
    found = (receipts.get(client), receipts.get(f"{client}:duplicate"))
    return any(
        receipt is not None
        and admission.permission(receipt.token, receipt.nbytes).encode() == claim
        for receipt in found
    )
