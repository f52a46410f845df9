"""One record of each kind of a secure round of three clients."""

from __future__ import annotations

from fl_queue.secure.records import (
    Confirmations,
    Inbox,
    Parcel,
    Party,
    Roster,
    Survivor,
    Survivors,
)
from tests.support.secure_vectors import CLIENTS, CONTEXT, MASK_KEYS

ROSTER = Roster(CONTEXT, tuple(Party(id_, MASK_KEYS[id_], bytes([7] * 64)) for id_ in CLIENTS))
SURVIVORS = Survivors(
    CONTEXT, ROSTER.digest, tuple(Survivor(id_, "5" * 64, bytes([6] * 32)) for id_ in "ab")
)
CONFIRMATIONS = Confirmations(SURVIVORS.digest, {"b": bytes([8] * 64), "a": bytes([9] * 64)})
KEY_INBOX = Inbox(CONTEXT, "key", "a", (Parcel("b", bytes(48), bytes(32)),))
SELF_INBOX = Inbox(CONTEXT, "self", "a", (Parcel("b", bytes(48), bytes(32), bytes([1] * 32)),))
RECORDS = (ROSTER, SURVIVORS, CONFIRMATIONS, KEY_INBOX, SELF_INBOX)
