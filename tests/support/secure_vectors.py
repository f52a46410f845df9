"""Three clients of a secure round whose secrets are hashes of labels: what the golden vectors are made of."""

from __future__ import annotations

import hashlib

from fl_queue.protocol import crypto
from fl_queue.secure import masks, shamir
from fl_queue.secure.context import RoundView

CLIENTS = ("a", "b", "c")


def element(label: str) -> bytes:
    """A secret or coefficient: SHA-256 of a label, its top bit cleared."""
    raw = bytearray(hashlib.sha256(label.encode()).digest())
    raw[31] &= 0x7F
    return bytes(raw)


def number(label: str) -> int:
    return shamir.from_bytes(element(label))


RUN_SECRETS = {id_: hashlib.sha256(f"run key {id_}".encode()).digest() for id_ in CLIENTS}
RUN_KEYS = {id_: crypto.public_half(secret) for id_, secret in RUN_SECRETS.items()}
VIEW = RoundView(
    run="demo-3f2a9c", number=3, purpose="train", fetched="0" * 64, base_version=2, config="1" * 64,
    layout="2" * 64, bits=32, threshold=2, degree=2, min_cohort=3, run_keys=RUN_KEYS,
)  # fmt: skip
CONTEXT = VIEW.digest()
MASK_SECRETS = {id_: element(f"mask seed {id_}") for id_ in CLIENTS}
SELF_SECRETS = {id_: element(f"self seed {id_}") for id_ in CLIENTS}
KEYS = {id_: masks.mask_key(secret, CONTEXT) for id_, secret in MASK_SECRETS.items()}
MASK_KEYS = {id_: crypto.public_half(key) for id_, key in KEYS.items()}
ROSTER = hashlib.sha256(b"roster of the vectors").hexdigest()
