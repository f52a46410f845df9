"""
What a secure round agrees on, each named by the SHA-256 of its bytes: roster, survivors, confirmations, inboxes.

JSON with sorted keys and no spaces; keys, signatures and digests in lower-case hexadecimal; lists sorted by client,
each of them once. Bytes of anything else, or laid out otherwise, are a ``MessageError``, so a record has one digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

from fl_queue.common import safe_json
from fl_queue.errors import MessageError
from fl_queue.protocol import identifiers
from fl_queue.protocol.tensor_layout import Bytes
from fl_queue.secure.boxes import BOX_BYTES, HASH_BYTES, Kind

#: Room for a roster of 16,384 clients with the longest names.
MAX_BYTES = 6 * 1024 * 1024
SIGNATURE_BYTES = 64
_KEY_BYTES = 32


class _Record:
    """One kind of record: its bytes and back."""

    #: In errors.
    _what: ClassVar[str]

    def to_bytes(self) -> bytes:
        """The record's bytes; the same for equal records."""
        return safe_json.dumps(self._to_json()).encode()

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes, hexadecimal: the record's name."""
        return record_digest(self.to_bytes())

    @classmethod
    def from_bytes(cls, raw: Bytes, digest: str | None = None) -> Self:
        """
        A record from bytes of any origin.

        Args:
            raw: The bytes.
            digest: The name under which they were asked for; None: it is not checked here.

        Raises:
            MessageError: They are too many, have another digest, or are no such record.
        """
        if len(raw) > MAX_BYTES:
            raise MessageError(f"{cls._what} has {len(raw)} bytes, more than {MAX_BYTES}")
        if digest is not None and record_digest(raw) != digest:
            raise MessageError(f"{cls._what} has another digest than {digest[:12]}")
        found = safe_json.loads(bytes(raw), cls._what)
        if not isinstance(found, dict):
            raise MessageError(f"not {cls._what}: it is no object")
        made = cls._of_json(_Fields(found, cls._what))
        if made.to_bytes() != bytes(raw):
            raise MessageError(
                f"not {cls._what}: it is laid out otherwise, or holds something else"
            )
        return made

    def _to_json(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def _of_json(cls, fields: _Fields) -> Self:
        raise NotImplementedError


def record_digest(raw: Bytes) -> str:
    """SHA-256 of a record's bytes, hexadecimal."""
    return hashlib.sha256(raw).hexdigest()


class SignedRunKey(NamedTuple):
    """
    A client's public run key.

    Args:
        key: 32 bytes.
        signature: Of ``context.run_key_statement``, 64 bytes.
    """

    key: bytes
    signature: bytes

    def to_json(self) -> str:
        """JSON, keys sorted, hexadecimal."""
        return safe_json.dumps({"key": self.key.hex(), "signature": self.signature.hex()})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """A run key from its JSON. Raises MessageError."""
        found = safe_json.loads(text, "a run key")
        if not isinstance(found, dict) or found.keys() != {"key", "signature"}:
            raise MessageError("not a run key: it is not an object of key and signature")
        return cls(_hex(_KEY_BYTES)(found["key"]), _hex(SIGNATURE_BYTES)(found["signature"]))


class Party(NamedTuple):
    """Args: ``key``: public mask key, 32 bytes; ``signature``: of ``context.mask_key_statement``, 64 bytes."""

    client: str
    key: bytes
    signature: bytes


@dataclass(frozen=True)
class Roster(_Record):
    """
    Who is in a secure round with keys.

    Args:
        context: Of the round, 32 bytes.
        parties: Sorted by client.
    """

    context: bytes
    parties: tuple[Party, ...]
    _what: ClassVar[str] = "a roster"

    @property
    def clients(self) -> tuple[str, ...]:
        """Ids, sorted."""
        return tuple(party.client for party in self.parties)

    @property
    def mask_keys(self) -> dict[str, bytes]:
        """Client -> public mask key."""
        return {party.client: party.key for party in self.parties}

    def _to_json(self) -> dict[str, Any]:
        rows = [[one.client, one.key.hex(), one.signature.hex()] for one in self.parties]
        return {"context": self.context.hex(), "parties": rows}

    @classmethod
    def _of_json(cls, fields: _Fields) -> Self:
        rows = fields.rows("parties", (str, _hex(_KEY_BYTES), _hex(SIGNATURE_BYTES)))
        return cls(fields.hex("context"), tuple(Party(*row) for row in rows))


class Survivor(NamedTuple):
    """Args: ``body``: BLAKE3 of the whole masked body, hexadecimal; ``commitment``: to its self secret, 32 bytes."""

    client: str
    body: str
    commitment: bytes


@dataclass(frozen=True)
class Survivors(_Record):
    """
    Whose masked updates are in: frozen before any site reveals a share.

    Args:
        context: Of the round, 32 bytes.
        roster: Digest of the roster, hexadecimal.
        survivors: Sorted by client.
    """

    context: bytes
    roster: str
    survivors: tuple[Survivor, ...]
    _what: ClassVar[str] = "a list of survivors"

    @property
    def clients(self) -> tuple[str, ...]:
        """Ids, sorted."""
        return tuple(one.client for one in self.survivors)

    def of(self, client: str) -> Survivor | None:
        """A client's entry; None: it is no survivor."""
        return next((one for one in self.survivors if one.client == client), None)

    def _to_json(self) -> dict[str, Any]:
        rows = [[one.client, one.body, one.commitment.hex()] for one in self.survivors]
        return {"context": self.context.hex(), "roster": self.roster, "survivors": rows}

    @classmethod
    def _of_json(cls, fields: _Fields) -> Self:
        rows = fields.rows("survivors", (str, identifiers.parse_digest, _hex(HASH_BYTES)))
        found = tuple(Survivor(*row) for row in rows)
        return cls(fields.hex("context"), fields.hex("roster").hex(), found)


@dataclass(frozen=True)
class Confirmations(_Record):
    """
    Signatures of clients over one list of survivors.

    Args:
        survivors: Digest of the list, hexadecimal.
        signatures: Client -> signature of ``context.confirm_statement``, 64 bytes.
    """

    survivors: str
    signatures: Mapping[str, bytes]
    _what: ClassVar[str] = "a list of confirmations"

    def _to_json(self) -> dict[str, Any]:
        rows = [[client, self.signatures[client].hex()] for client in sorted(self.signatures)]
        return {"signatures": rows, "survivors": self.survivors}

    @classmethod
    def _of_json(cls, fields: _Fields) -> Self:
        rows = fields.rows("signatures", (str, _hex(SIGNATURE_BYTES)))
        return cls(fields.hex("survivors").hex(), dict(rows))


@dataclass(frozen=True)
class Transcript(_Record):
    """
    What takes the masks off the sum of a round that has ended: with the masked updates, it gives the version again.

    Args:
        roster, survivors: The frozen records.
        degree: Neighbours of each client in the cohort's graph.
        secrets: Client -> its self secret if it survived, else its mask secret, where that is needed; 32 bytes.
    """

    roster: Roster
    survivors: Survivors
    degree: int
    secrets: Mapping[str, bytes]
    _what: ClassVar[str] = "a transcript"

    def _to_json(self) -> dict[str, Any]:
        return {
            "roster": self.roster._to_json(),
            "survivors": self.survivors._to_json(),
            "degree": self.degree,
            "secrets": [[client, self.secrets[client].hex()] for client in sorted(self.secrets)],
        }

    @classmethod
    def _of_json(cls, fields: _Fields) -> Self:
        degree = fields.take("degree")
        if type(degree) is not int:
            raise MessageError(f"not {cls._what}: degree is no number")
        rows = fields.rows("secrets", (str, _hex(_KEY_BYTES)))
        roster = Roster._of_json(fields.inner("roster"))
        return cls(roster, Survivors._of_json(fields.inner("survivors")), degree, dict(rows))


class Parcel(NamedTuple):
    """
    A box for a reader.

    Args:
        dealer: Client id.
        box: 48 bytes.
        share_hash: Hash of the share in it as the dealer gave it, 32 bytes.
        commitment: Of the dealer's self secret, 32 bytes; empty in an inbox of kind ``key``.
    """

    dealer: str
    box: bytes
    share_hash: bytes
    commitment: bytes = b""


@dataclass(frozen=True)
class Inbox(_Record):
    """
    The boxes for one client, of its neighbours only.

    Args:
        context: Of the round, 32 bytes.
        kind: Of the secrets, ``key`` or ``self``.
        reader: The client.
        parcels: Sorted by dealer.
    """

    context: bytes
    kind: Kind
    reader: str
    parcels: tuple[Parcel, ...]
    _what: ClassVar[str] = "an inbox"

    def of(self, dealer: str) -> Parcel | None:
        """A dealer's parcel; None: there is none."""
        return next((one for one in self.parcels if one.dealer == dealer), None)

    def _to_json(self) -> dict[str, Any]:
        rows = [[one.dealer, *(part.hex() for part in one[1:] if part)] for one in self.parcels]
        return {
            "boxes": rows, "context": self.context.hex(), "kind": self.kind, "reader": self.reader,
        }  # fmt: skip

    @classmethod
    def _of_json(cls, fields: _Fields) -> Self:
        kind = fields.take("kind")
        if kind not in ("key", "self"):
            raise MessageError("not an inbox: kind is not key or self")
        parts = [_hex(BOX_BYTES), _hex(HASH_BYTES), *([_hex(HASH_BYTES)] if kind == "self" else [])]
        rows = fields.rows("boxes", (str, *parts))
        reader = identifiers.parse_name(fields.take("reader"))
        return cls(fields.hex("context"), kind, reader, tuple(Parcel(*row) for row in rows))


class _Fields:
    """The members of a record's object, each read once."""

    def __init__(self, found: dict[str, Any], what: str) -> None:
        self._found = found
        self._what = what

    def take(self, name: str) -> Any:
        """A member. Raises MessageError when it is missing."""
        if name not in self._found:
            raise MessageError(f"not {self._what}: {name} is missing")
        return self._found.pop(name)

    def inner(self, name: str) -> _Fields:
        """A member that is an object."""
        found = self.take(name)
        if not isinstance(found, dict):
            raise MessageError(f"not {self._what}: {name} is no object")
        return _Fields(found, self._what)

    def hex(self, name: str) -> bytes:
        """A member of 32 bytes."""
        return _hex(HASH_BYTES)(self.take(name))

    def rows(self, name: str, columns: Sequence[Callable[[Any], Any]]) -> list[list[Any]]:
        """A list of rows, sorted by the client in the first column, each client once."""
        found = self.take(name)
        if not isinstance(found, list):
            raise MessageError(f"not {self._what}: {name} is no list")
        rows: list[list[Any]] = []
        for raw in found:
            if not isinstance(raw, list) or len(raw) != len(columns):
                raise MessageError(f"not {self._what}: {name} has another form")
            client = identifiers.parse_name(raw[0])
            if rows and client <= rows[-1][0]:
                raise MessageError(
                    f"not {self._what}: {name} is not sorted, or names a client twice"
                )
            parsed = [read(value) for read, value in zip(columns[1:], raw[1:], strict=True)]
            rows.append([client, *parsed])
        return rows


def _hex(nbytes: int) -> Callable[[Any], bytes]:
    """Read lower-case hexadecimal of so many bytes."""

    def read(value: Any) -> bytes:
        if type(value) is not str or len(value) != 2 * nbytes:
            raise MessageError(f"not {nbytes} bytes in hexadecimal")
        try:
            found = bytes.fromhex(value)
        except ValueError:
            found = b""
        if found.hex() != value:
            raise MessageError(f"not {nbytes} bytes in lower-case hexadecimal")
        return found

    return read
