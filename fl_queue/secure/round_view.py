"""A secure round as one party sees it, from the round's fields and from what the party has fetched itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fl_queue.aggregation.scales import Scale
from fl_queue.common.safe_json import dumps
from fl_queue.errors import MessageError
from fl_queue.protocol.header import Header, TensorEntry
from fl_queue.protocol.manifest import Manifest, extra_name
from fl_queue.protocol.records import INPUTS
from fl_queue.protocol.secure_state import SecureState
from fl_queue.protocol.state import RoundState
from fl_queue.secure.bodies import UpdateTrailer
from fl_queue.secure.context import RoundView, layout_digest, text_digest
from fl_queue.secure.records import SignedRunKey
from fl_queue.secure.ring import RingLayout
from fl_queue.strategies.base import Strategy
from fl_queue.strategies.layouts import update_manifest

#: Name of the trailer among the tensors of a masked update.
TRAILER = extra_name("secure", "trailer")


@dataclass(frozen=True, kw_only=True)
class SeenRound:
    """
    What a party knows of a secure round.

    Args:
        run: Run id.
        round: Its fields on the control server.
        recorded: The recorded config of its segment, as JSON has it.
        strategy: The run's.
        manifest: The run's.
        fetched: Digest of the base version as the party has fetched it.
        states: Name -> digest of each server state that clients fetch, as the party has fetched it.
    """

    run: str
    round: RoundState
    recorded: Mapping[str, Any]
    strategy: Strategy
    manifest: Manifest
    fetched: str
    states: Mapping[str, str]

    @property
    def terms(self) -> SecureState:
        """The secure part of the round. Raises MessageError: it has none."""
        if self.round.secure is None:
            raise MessageError(f"round {self.round.number} is no secure round")
        return self.round.secure

    @property
    def layout(self) -> RingLayout:
        """Place of everything in the round's vectors."""
        sent = update_manifest(self.strategy, self.manifest)
        scales = {name: Scale.of(recorded) for name, recorded in self.round.scales.items()}
        return RingLayout(sent, scales, self.round.w_max, self.terms.bits)

    @property
    def run_keys(self) -> dict[str, SignedRunKey]:
        """Client of the cohort -> its run key. Raises MessageError."""
        found = {}
        for client in self.round.cohort:
            party = self.terms.parties.get(client)
            if party is not None:
                found[client] = SignedRunKey(bytes.fromhex(party.key), _bytes_of(party.signature))
        return found

    @property
    def signers(self) -> dict[str, str] | None:
        """Client -> public signing key, base64; None: the run has no signatures."""
        known = {client: party.signer for client, party in self.terms.parties.items()}
        return known if any(known.values()) else None

    def view(self) -> RoundView:
        """
        What the round's context is made of.

        Raises:
            MessageError: A client of the cohort has no run key.
        """
        terms, keys, layout = self.terms, self.run_keys, self.layout
        if missing := sorted(set(self.round.cohort) - keys.keys()):
            raise MessageError(f"round {self.round.number} has no run key of {missing[0]}")
        digest = layout_digest(
            layout.sent, layout.scales, layout.w_max, self.round.quorum, layout.tail, self.states
        )
        return RoundView(
            run=self.run,
            number=self.round.number,
            purpose=self.round.purpose,
            fetched=self.fetched,
            base_version=self.round.base_version,
            config=text_digest(dumps(self.recorded)),
            layout=digest,
            bits=terms.bits,
            threshold=terms.threshold,
            degree=terms.degree,
            min_cohort=terms.min_cohort,
            run_keys={client: key.key for client, key in keys.items()},
        )


def fetched_states(strategy: Strategy, states: Mapping[str, str]) -> dict[str, str]:
    """Those of a round's server states that clients fetch. Args: ``states``: name -> digest."""
    return {name: digest for name, digest in states.items() if name in strategy.fetched}


def masked_entries(layout: RingLayout, neighbours: int) -> tuple[TensorEntry, ...]:
    """
    The tensors of a masked update: ring words, tail and trailer.

    Args:
        neighbours: Of its client, in the roster.
    """
    nbytes = UpdateTrailer.nbytes(neighbours)
    return (*layout.entries, TensorEntry(TRAILER, "bytes", (nbytes,), layout.nbytes, nbytes))


def masked_header(header: Header, layout: RingLayout, neighbours: int) -> Header:
    """
    Header of a masked update, without anything of its training.

    Args:
        header: Of the plain update: run, round, client, base and token are taken from it.
        neighbours: As of ``masked_entries``.
    """
    entries = masked_entries(layout, neighbours)
    return replace(
        bare(header, "update"),
        tensors=entries,
        codec=f"masked:{layout.bits}",
        # Whether the client has lost what it keeps for the strategy.
        scalars=header.scalars,
        body_bytes=entries[-1].offset + entries[-1].nbytes,
    )


def bare(header: Header, kind: str) -> Header:
    """A header of a kind with run, round, client, base, inputs and token of another one, and nothing else of it."""
    inputs = header.environment.get(INPUTS)
    return Header(
        environment={} if inputs is None else {INPUTS: inputs},
        kind=kind,
        run=header.run,
        round=header.round,
        client=header.client,
        base_version=header.base_version,
        base_digest=header.base_digest,
        token=header.token,
    )


def check_bare(header: Header) -> None:
    """
    Refuse a header of a secure round that discloses something of its client.

    Raises:
        MessageError: Names the field.
    """
    found = {
        name: getattr(header, name)
        for name in ("num_examples", "metrics", "train_metrics", "train_s")
    }
    for name, value in {**found, "environment": header.environment.keys() - {INPUTS}}.items():
        if value:
            raise MessageError(f"{name} is not empty in a message of a secure round")


def _bytes_of(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise MessageError("a signature is not hexadecimal") from None
