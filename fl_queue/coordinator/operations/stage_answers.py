"""Answers of a round's clients in the stage that it is in: what decides whose job is still needed."""

from __future__ import annotations

from collections.abc import Iterable

from fl_queue.protocol.records import Receipt, Verdict
from fl_queue.protocol.secure_state import Stage
from fl_queue.store import RoundState, Store

#: In place of the answer of a client that is not asked in this stage.
_NOT_ASKED = Receipt(Verdict.failed, "not asked in this stage")


def of_round(
    store: Store, run: str, current: RoundState, clients: Iterable[str] = ()
) -> dict[str, Receipt]:
    """
    Client -> its receipt in the stage of a round; a round that is not secure has one stage.

    Args:
        clients: Those that have jobs, of whom some may not be asked in this stage.
    """
    receipts = store.control.receipts.of_round(run, current.number)
    if current.secure is None or current.secure.stage == Stage.keys:
        return receipts
    stages = store.control.stages.of_round(run, current.number)
    in_roster = {
        client
        for client, found in stages.items()
        if "keys" in found and found["keys"].status == Verdict.received
    }
    if current.secure.stage == Stage.unmask:
        receipts = {
            client: Receipt(found["unmask"].status, found["unmask"].reason)
            for client, found in stages.items()
            if "unmask" in found
        }
    return {**dict.fromkeys(set(clients) - in_roster, _NOT_ASKED), **receipts}
