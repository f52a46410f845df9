"""
Secure sums without Redis: ``python -m benchmarks.cases.secure_rounds [--quick]``.

One thread. What a mask costs beside AES alone, what a client and the aggregator compute in a round of 100 clients,
and the bytes of a parameter. Ways are timed in turns, in processor time of this process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.harness.table import markdown, median
from fl_queue.aggregation.scales import choose_scales
from fl_queue.protocol import crypto, signing
from fl_queue.protocol.arrays import Tensor
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.secure import graph, masks, shamir
from fl_queue.secure.bodies import KeysBody, UpdateTrailer
from fl_queue.secure.context import RoundView, mask_key_statement, run_key_statement
from fl_queue.secure.masks import Secrets
from fl_queue.secure.member import Member
from fl_queue.secure.policy import Demands, RoundPolicy, Terms
from fl_queue.secure.records import Party, Roster, SignedRunKey
from fl_queue.secure.ring import Accompanying, RingLayout, RingSum

REPEATS = 5
CLIENTS = 100
PARAMETERS = 1_663_370  # Of the CNN of McMahan et al. 2017.
TERMS = Terms(confirm=True, max_corrupt=0.2, max_dropout=0.1)


def seconds(ways: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """Median processor seconds of each, in turns after one that warms up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            found[name].append(time.process_time() - began)
    return {name: median(values[1:]) for name, values in found.items()}


def one_mask(size: int) -> str:
    """A mask drawn and added, beside AES-CTR of as many bytes followed by numpy's addition."""
    rows = []
    for bits, kind in ((32, "uint32"), (64, "uint64")):
        words: Tensor = np.zeros(size, kind)
        zeros, stream = bytes(words.nbytes), bytearray(words.nbytes + 16)
        mask = masks.self_mask(bytes(32), bytes(32), "site-1")
        plain, own = f"{bits} bits: AES-CTR, then numpy.add", f"{bits} bits: a mask drawn and added"
        found = seconds(
            {
                plain: partial(_plain_mask, words, zeros, stream),
                own: partial(mask.apply_to_values, words),
            }
        )
        rows += [
            [name, f"{words.nbytes / spent / 1e9:.1f}", f"{found[plain] / spent:.0%}"]
            for name, spent in found.items()
        ]
    return markdown((f"{size / 1e6:g} M words", "GB/s", "of AES and addition"), rows)


def _plain_mask(words: Tensor, zeros: bytes, stream: bytearray) -> None:
    cipher = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()
    cipher.update_into(zeros, stream)
    np.add(words, np.frombuffer(stream, words.dtype, words.size), out=words)


class Round(NamedTuple):
    """A round of ``CLIENTS`` with all keys: what the first client and the aggregator compute in it."""

    view: RoundView
    member: Member
    policy: RoundPolicy
    layout: RingLayout
    roster: Roster
    run_keys: dict[str, SignedRunKey]
    secrets: dict[str, bytes]
    sign: Callable[[bytes], bytes]


def prepared(size: int) -> Round:
    """Keys of all clients, and a model of ``size`` parameters."""
    clients = [f"site-{index:03}" for index in range(CLIENTS)]
    signers = {client: signing.new_key() for client in clients}
    pairs = {client: crypto.new_exchange_key() for client in clients}
    degree, threshold = graph.shape(CLIENTS, TERMS.max_corrupt, TERMS.max_dropout)
    view = RoundView(
        run="bench-000000", number=1, purpose="train", fetched="0" * 64, base_version=0, config="0" * 64,
        layout="0" * 64, bits=32, threshold=threshold, degree=degree, min_cohort=3,
        run_keys={client: public for client, (_, public) in pairs.items()},
    )  # fmt: skip

    def sign(client: str, content: bytes) -> bytes:
        return signing.raw_signature(signers[client][0], content)

    run_keys = {
        client: SignedRunKey(public, sign(client, run_key_statement(view.run, client, public)))
        for client, (_, public) in pairs.items()
    }
    secrets = {client: shamir.to_bytes(shamir.random_element()) for client in clients}
    context, parties = view.digest(), []
    for client in clients:
        public = crypto.public_half(masks.mask_key(secrets[client], context))
        statement = mask_key_statement(context, client, public)
        parties.append(Party(client, public, sign(client, statement)))
    peers = {client: public for client, (_, public) in signers.items()}
    first = clients[0]
    return Round(
        view,
        Member(first, pairs[first][0], view),
        RoundPolicy(Demands(client=first, peers=peers), TERMS, view),
        layout(size, 32),
        Roster(context, tuple(parties)),
        run_keys,
        secrets,
        lambda content: sign(first, content),
    )


def layout(size: int, bits: int) -> RingLayout:
    """The ring of a model of five tensors, weights uniform."""
    specs = tuple(TensorSpec(f"w{i}", (size // 5,), "parameter") for i in range(5))
    return RingLayout(
        Manifest(specs), choose_scales(CLIENTS, 1, {"parameter": 1.0}, bits=bits), 1, bits
    )


def client(at: Round, size: int) -> str:
    """What one client of the round computes, step by step."""
    update = np.random.default_rng(1).normal(0, 0.01, size // 5).astype(np.float32)
    r = shamir.random_polynomial(shamir.from_bytes(at.secrets[at.member.client]), at.view.threshold)
    b = shamir.random_polynomial(shamir.random_element(), at.view.threshold)
    words = at.layout.sent_words(lambda spec: [update], Accompanying(1, {}, {}))
    own = crypto.public_half(at.member.mask_key(r))
    fresh = Member(at.member.client, bytes([1] * 32), at.view)
    ways: dict[str, Callable[[], object]] = {
        "mask key and its boxes": lambda: Member(fresh.client, bytes([1] * 32), at.view).keys(
            r, at.sign
        ),
        "signatures and demands of the cohort": lambda: at.policy.of_cohort(
            at.run_keys, at.view.run_keys[at.member.client], 0
        ),
        "signatures and demands of the roster": lambda: at.policy.of_roster(at.roster, own),
        "the update as words of the ring": lambda: at.layout.sent_words(
            lambda spec: [update], Accompanying(1, {}, {})
        ),
        "masks, and the boxes of b": lambda: at.member.mask(words, r, at.roster, b),
        "words on the wire": lambda: [bytes(piece) for piece in at.layout.pieces(words)],
    }
    found = seconds(ways)
    once = "signatures and demands of the cohort"
    rows = [[name, f"{1000 * spent:.1f}"] for name, spent in found.items() if name != once]
    rows.append(["a round", f"{1000 * (sum(found.values()) - found[once]):.1f}"])
    rows.append([f"{once}, once a run", f"{1000 * found[once]:.1f}"])
    shape = f"k = {at.view.degree}, t = {at.view.threshold}"
    return markdown(
        (f"a client of {CLIENTS} ({shape}), {size / 1e6:.2f} M parameters, 32 bits", "ms"), rows
    )


def aggregator(at: Round) -> str:
    """The masks of a round taken off."""
    total = RingSum(at.layout)
    body = b"".join(map(bytes, at.layout.pieces(at.layout.zeros())))
    rows = [["an update added", f"{1000 * seconds({'add': lambda: total.add(body)})['add']:.1f}"]]
    clients = at.view.cohort
    for gone in (0, CLIENTS // 10):
        survivors = {name: at.secrets[name] for name in clients[gone:]}
        dropped = {name: at.secrets[name] for name in clients[:gone]}
        secrets = Secrets(survivors, dropped, at.roster.mask_keys)
        removals = secrets.removals(at.member.graph, at.roster.context)
        spent = seconds({"off": partial(masks.apply, removals, *total.words)}, 1)["off"]
        rows.append([f"{len(removals)} masks taken off, {gone} dropped out", f"{1000 * spent:.0f}"])
    holders = list(range(1, at.view.threshold + 1))
    polynomial = shamir.random_polynomial(7, at.view.threshold)
    shares = {holder: shamir.share_of(polynomial, holder) for holder in holders}

    def rebuilt() -> None:
        for _ in range(CLIENTS):
            shamir.rebuild(shares, at.view.threshold)

    rows.append([f"{CLIENTS} secrets rebuilt", f"{1000 * seconds({'all': rebuilt})['all']:.0f}"])
    return markdown(("the aggregator of that round", "ms"), rows)


def sizes(size: int) -> str:
    """Bytes that a client sends in a round, for each parameter."""
    degree = graph.shape(CLIENTS, TERMS.max_corrupt, TERMS.max_dropout).degree
    rows = []
    for bits in (64, 32, 24, 20, 16):
        vector = layout(size, bits).nbytes + UpdateTrailer.nbytes(degree)
        rows.append([bits, f"{(vector + KeysBody.nbytes(degree)) / size:.3f}"])
    return markdown(("bits", "bytes a parameter"), rows)


def report(quick: bool = False) -> str:
    """All tables."""
    size = 100_000 if quick else PARAMETERS // 5 * 5
    at = prepared(size)
    parts = [
        one_mask(1_000_000 if quick else 25_000_000),
        client(at, size),
        aggregator(at),
        sizes(size),
    ]
    return "\n".join(parts)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a million words, a small model")
    print(report(parser.parse_args().quick))


if __name__ == "__main__":
    main()
