"""
The operator's part in a secure round: keys judged, boxes handed on, secrets rebuilt from shares.

A client that lies about a share is known by the share's hash, a dealer by the commitment to its secret; a share that
a reader could not use names the two and blames neither. No Redis here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fl_queue.errors import MessageError
from fl_queue.protocol import crypto, signing
from fl_queue.secure import boxes, masks, shamir
from fl_queue.secure.bodies import NO_SHARE, Dealt, KeysBody, UnmaskBody
from fl_queue.secure.boxes import Box, Kind
from fl_queue.secure.context import mask_key_statement
from fl_queue.secure.graph import Graph
from fl_queue.secure.masks import Secrets
from fl_queue.secure.policy import another_view
from fl_queue.secure.records import Inbox, Parcel, Roster, Survivors, Transcript


def check_keys(body: KeysBody, client: str, context: bytes, number: int, public: str) -> None:
    """
    Judge a ``keys`` element.

    Args:
        body: Of its client's size.
        client: Who sent it.
        context: The round's.
        number: The round's, for the reason.
        public: The client's public signing key, base64; empty: the run has no signatures.

    Raises:
        MessageError: It is of another view of the round, its mask key is not signed, or of low order, with which
            no other client could make a mask.
    """
    if body.context != context:
        raise MessageError(another_view(f"what {client} signed", number, body.context, context))
    statement = mask_key_statement(context, client, body.mask_key)
    if public and not signing.is_raw_signature(public, statement, body.signature):
        raise MessageError(f"the mask key of {client} is not signed with its key")
    fresh, _ = crypto.new_exchange_key()
    try:
        crypto.exchange(fresh, body.mask_key)
    except MessageError:
        raise MessageError(f"bad key of {client}") from None


@dataclass(frozen=True)
class Dealing:
    """
    What one dealer has dealt of one secret.

    Args:
        readers: In the order of the shares: its neighbours, by id.
        dealt: Boxes and hashes.
        commitment: To a self secret, 32 bytes; empty of a mask secret.
    """

    readers: tuple[str, ...]
    dealt: Dealt
    commitment: bytes = b""

    def hash_for(self, reader: str) -> bytes | None:
        """Hash of a reader's share; None: it has none."""
        known = dict(zip(self.readers, self.dealt.hashes, strict=True))
        return known.get(reader)


def inboxes(
    context: bytes, kind: Kind, dealings: Mapping[str, Dealing], readers: Iterable[str]
) -> dict[str, Inbox]:
    """
    The boxes of all dealers, by reader.

    Args:
        context: The round's.
        kind: Of the secrets.
        dealings: Dealer -> what it has dealt.
        readers: Whose inboxes are wanted: the roster.
    """
    found: dict[str, list[Parcel]] = {reader: [] for reader in readers}
    for dealer in sorted(dealings):
        dealing = dealings[dealer]
        shares = zip(dealing.readers, dealing.dealt.boxes, dealing.dealt.hashes, strict=True)
        for reader, box, share_hash in shares:
            if reader in found:
                found[reader].append(Parcel(dealer, box, share_hash, dealing.commitment))
    return {reader: Inbox(context, kind, reader, tuple(got)) for reader, got in found.items()}


@dataclass
class Unmasking:
    """
    Answers to one frozen round, until its secrets can be rebuilt.

    Args:
        graph: The cohort's.
        threshold: Shares that rebuild a secret.
        roster, survivors: The frozen records.
        dealings: Dealer -> what it dealt of the secret that is to be rebuilt: of b if it survived, of r if not.

    Attributes:
        answered: Clients whose answers were taken.
        liars: Client -> what it was caught in, a sentence.
        unusable: (dealer, reader) pairs of a share that its reader could not use.
    """

    graph: Graph
    threshold: int
    roster: Roster
    survivors: Survivors
    dealings: Mapping[str, Dealing]
    answered: set[str] = field(default_factory=set)
    liars: dict[str, str] = field(default_factory=dict)
    unusable: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._members = set(self.roster.clients)
        self._survived = set(self.survivors.clients)
        #: Dealer -> holder -> share.
        self._shares: dict[str, dict[str, int]] = {dealer: {} for dealer in self.wanted}

    @property
    def wanted(self) -> tuple[str, ...]:
        """Clients whose secret is needed: all survivors, and those of the others that have a survivor as neighbour."""
        return tuple(
            client
            for client in self.roster.clients
            if client in self._survived or self.graph.neighbours(client, self._survived)
        )

    @property
    def is_complete(self) -> bool:
        """Whether every secret has enough shares."""
        return all(len(shares) >= self.threshold for shares in self._shares.values())

    def secrets_of(self, client: str) -> int:
        """How many shares a client's answer has: of its own secret, and of each neighbour's in the roster."""
        return len(self.graph.holders(client, self._members))

    def take(self, client: str, body: UnmaskBody) -> None:
        """
        Take a client's shares; the first answer counts.

        Args:
            client: Of the roster.
            body: Of ``secrets_of`` shares.
        """
        if client in self.answered:
            return
        self.answered.add(client)
        for dealer, raw in zip(self.graph.holders(client, self._members), body.shares, strict=True):
            share = self._judged(dealer, client, raw)
            if share is not None and dealer in self._shares:
                self._shares[dealer][client] = share

    def _judged(self, dealer: str, reader: str, raw: bytes) -> int | None:
        """A share that can be used; None: it cannot."""
        if raw == NO_SHARE:
            self.unusable.add((dealer, reader))
            return None
        kind: Kind = "self" if dealer in self._survived else "key"
        # Its own share has no hash: if it is wrong, so is its dealer, which is the same client.
        if dealer != reader:
            box = Box(self.roster.context, kind, dealer, reader, b"")
            if self.dealings[dealer].hash_for(reader) != box.share_hash(raw):
                self.liars[reader] = (
                    f"{reader} revealed another share of {dealer} than it was dealt"
                )
                return None
        try:
            return shamir.from_bytes(raw)
        except MessageError:
            self.liars[dealer] = f"{dealer} dealt a share that is none"
            return None

    def secrets(self) -> Secrets:
        """
        The rebuilt secrets, once there are enough shares.

        Raises:
            MessageError: A dealer's shares give no secret that fits its commitment; names it.
        """
        survivors, dropped = dict[str, bytes](), dict[str, bytes]()
        for client in self.wanted:
            found = self._rebuilt(client)
            (survivors if client in self._survived else dropped)[client] = found
        return Secrets(survivors, dropped, self.roster.mask_keys)

    def _rebuilt(self, dealer: str) -> bytes:
        """A secret from any of its shares that fit together; a dealer of others is noted as a liar."""
        # The dealer's own share last: no hash of it is known.
        holders = sorted(self._shares[dealer], key=lambda holder: (holder == dealer, holder))
        shares = {self.graph.number(id_): self._shares[dealer][id_] for id_ in holders}
        numbers = [*shares]
        spare = len(numbers) - self.threshold
        for start in range(len(numbers) if spare > 0 else 1):
            # Around the end, so that one bad share is outside of some of them wherever it lies.
            some = (numbers[start:] + numbers[:start])[: self.threshold]
            secret = shamir.to_bytes(
                shamir.rebuild({number: shares[number] for number in some}, self.threshold)
            )
            if self._fits(dealer, secret):
                return secret
            self.liars[dealer] = (
                f"{dealer} dealt shares that do not give the secret it committed to"
            )
        raise MessageError(self.liars[dealer])

    def _fits(self, dealer: str, secret: bytes) -> bool:
        return is_committed(self.roster, self.survivors, dealer, secret)

    def shortage(self) -> str:
        """What is missing, in a sentence; empty when nothing is."""
        for dealer, shares in self._shares.items():
            if len(shares) < self.threshold:
                silent = sorted(set(self.graph.holders(dealer, self._members)) - self.answered)
                who = f"; {', '.join(silent)} did not answer" if silent else ""
                return f"unmasking needs {self.threshold} answers for {dealer}, {len(shares)} came{who}"
        return ""


def is_committed(roster: Roster, survivors: Survivors, dealer: str, secret: bytes) -> bool:
    """Whether a secret is the one that its dealer is bound to: b if it survived, r if it is only in the roster."""
    survivor, context = survivors.of(dealer), roster.context
    if survivor is not None:
        return boxes.commitment(context, dealer, secret) == survivor.commitment
    key = roster.mask_keys.get(dealer)
    return key is not None and masks.is_secret_of(secret, key, context)


def secrets_of(transcript: Transcript) -> Secrets:
    """
    The secrets in a transcript, each held against its commitment.

    Raises:
        MessageError: One is another secret; names its client.
    """
    roster, survivors = transcript.roster, transcript.survivors
    for client, secret in transcript.secrets.items():
        if not is_committed(roster, survivors, client, secret):
            raise MessageError(f"the secret of {client} is not the one that it committed to")
    listed = set(survivors.clients)
    kept = transcript.secrets.items()
    return Secrets(
        {client: secret for client, secret in kept if client in listed},
        {client: secret for client, secret in kept if client not in listed},
        roster.mask_keys,
    )
