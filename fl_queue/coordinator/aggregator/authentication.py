"""
Who an element is from: its signature is checked before anything else of it is believed.

The key of an enrolled client is on the control server, where only the operator's side writes. An
element that is not what it claims raises ``ForgedMessage``: it says nothing about the client it names.
"""

from __future__ import annotations

from typing import NamedTuple

from fl_queue.errors import ForgedMessage
from fl_queue.protocol import message, operator_key, signing
from fl_queue.protocol.header import MAX_HEADER_BYTES, Header
from fl_queue.protocol.records import Enrolment
from fl_queue.protocol.signing import SignedMessage
from fl_queue.store import Control

LARGEST_MODEL_BYTES = 64 * 1024**3
#: Of an element that is refused anyway, no larger header is read for the name in it.
_GLANCE_BYTES = 64 * 1024


class AuthenticatedMessage(NamedTuple):
    """
    An element whose sender is who it says.

    Args:
        enrolment: The sender's; None when it is not enrolled.
        sealed: The envelope, which is signed with the key of the enrolment; None without one.
    """

    header: Header
    body: memoryview
    enrolment: Enrolment | None
    sealed: SignedMessage | None = None

    @property
    def key(self) -> str:
        """Fingerprint of the key that signed it; empty: it is not signed."""
        return operator_key.fingerprint(self.enrolment.key) if self.enrolment is not None else ""


class MessageAuthenticator:
    """
    Opens elements of a run.

    Args:
        control: Knows who is enrolled; asked once between two calls of ``forget``, so that revoking has
            effect at once, and who floods us does not have us ask without end.
        run: Run id.
        required: Whether nobody else's elements are accepted (``security.require_enrolment``).
    """

    def __init__(self, control: Control, run: str, required: bool) -> None:
        self._control, self._run, self._required = control, run, required
        self._enrolled: dict[str, Enrolment | None] = {}

    def forget(self) -> None:
        """Ask anew who is enrolled."""
        self._enrolled.clear()

    def _enrolment(self, client: str) -> Enrolment | None:
        if client not in self._enrolled:
            self._enrolled[client] = self._control.enrolments.get(client)
        return self._enrolled[client]

    def open(self, element: bytes) -> AuthenticatedMessage:
        """
        Decode an element up to its body, from whoever may have sent it.

        Raises:
            Forged: Its sender is not who it says.
            MessageError: It is malformed, and does not tell whose it is.
        """
        sealed = signing.opened(element)
        if sealed is None:
            return self._unsigned(element)
        signer = sealed.signer
        enrolment = self._enrolment(signer)
        if enrolment is None or enrolment.revoked_at:
            why = "is not enrolled" if enrolment is None else "is not enrolled any more"
            raise ForgedMessage(signer, f"{signer} {why}")
        if not signing.is_signed_by(sealed, enrolment.key):
            raise ForgedMessage(signer, f"not signed with the key of {signer}")
        header, body = message.unpack(sealed.element, max_body_bytes=LARGEST_MODEL_BYTES)
        if header.client != signer:
            reason = f"signed by {signer}, in the name of {header.client}"
            raise ForgedMessage(header.client, reason, signer)
        if header.run != self._run:
            raise ForgedMessage(signer, f"it is of run {header.run}", signer)
        return AuthenticatedMessage(header, body, enrolment, sealed)

    def _unsigned(self, element: bytes) -> AuthenticatedMessage:
        longest = _GLANCE_BYTES if self._required else MAX_HEADER_BYTES
        header, body = message.unpack(
            element, max_header_bytes=longest, max_body_bytes=LARGEST_MODEL_BYTES
        )
        if self._required or self._enrolment(header.client) is not None:
            raise ForgedMessage(header.client, f"not signed, in the name of {header.client}")
        return AuthenticatedMessage(header, body, None)
