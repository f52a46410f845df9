"""The part of a round's hash that only a secure round has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fl_queue.common.safe_json import dumps
from fl_queue.protocol import identifiers
from fl_queue.protocol.state_fields import Fields


class Stage(StrEnum):
    """Stage of an open secure round."""

    #: Clients send their mask keys, and train meanwhile.
    keys = "keys"
    #: Those of the roster send their masked updates.
    updates = "updates"
    #: Those of the roster reveal the shares that take the masks off.
    unmask = "unmask"


@dataclass(frozen=True, kw_only=True)
class RoundParty:
    """
    A client of the cohort, as the round recorded it.

    Args:
        key: Public run key, hexadecimal.
        signature: Of ``secure.context.run_key_statement``, hexadecimal.
        signer: Public signing key of its enrolment, base64; empty: the run has no signatures.
    """

    key: str
    signature: str
    signer: str = ""


@dataclass(frozen=True, kw_only=True)
class SecureState:
    """
    What the hash of a secure round has besides.

    Args:
        stage: Of the round.
        bits: Of the ring.
        degree: Neighbours of each client in the cohort's graph.
        threshold: Shares that rebuild a secret.
        min_cohort: Fewest survivors of which the sum may be known.
        parties: Client of the cohort -> what it is known by.
        roster, survivors, confirmations: Digests of the records; empty: not frozen yet.
    """

    stage: Stage
    bits: int
    degree: int
    threshold: int
    min_cohort: int
    parties: Mapping[str, RoundParty] = field(repr=False)
    roster: str = ""
    survivors: str = ""
    confirmations: str = ""

    def fields(self) -> dict[str, str]:
        """As the round's hash has it when it is opened."""
        terms = {
            "bits": self.bits,
            "degree": self.degree,
            "threshold": self.threshold,
            "min_cohort": self.min_cohort,
        }
        parties = {
            client: [party.key, party.signature, party.signer]
            for client, party in self.parties.items()
        }
        return {"stage": self.stage, "secure": dumps(terms), "parties": dumps(parties)}

    @classmethod
    def from_fields(cls, fields: Fields) -> SecureState | None:
        """Read from the fields of a round's hash; None: no secure round. Raises MessageError."""
        if not fields.text("stage", ""):
            return None
        terms = fields.json("secure", dict[str, int])
        found = fields.of_clients("parties", list[str])
        return cls(
            stage=fields.one_of("stage", Stage),
            **{name: terms.get(name, 0) for name in ("bits", "degree", "threshold", "min_cohort")},
            parties={client: _party(parts) for client, parts in found.items()},
            roster=fields.digest("roster", ""),
            survivors=fields.digest("survivors", ""),
            confirmations=fields.digest("confirmations", ""),
        )


def _party(parts: list[str]) -> RoundParty:
    key, signature, signer = (*parts, "", "", "")[:3]
    return RoundParty(key=identifiers.parse_digest(key), signature=signature, signer=signer)
