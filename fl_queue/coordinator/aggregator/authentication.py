"""
Authenticate incoming messages: verify the Ed25519 signature before anything else of them is used.

The key of an enrolled client is on the control server, where only the operator's side writes. A message
that is not what it claims raises ``ForgedMessage``: it is no evidence against the client that it names.
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
#: Longest header that is parsed of a message that is refused anyway, for the name in it.
_MAX_REFUSED_HEADER_BYTES = 64 * 1024


class AuthenticatedMessage(NamedTuple):
    """
    A message whose sender is proven, or need not be proven.

    Args:
        enrolment: The sender's; None when it is not enrolled.
        sealed: The envelope, signed with the key of the enrolment; None without one.
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
    Opens the messages of a run, after checking sender and signature.

    Args:
        control: Has the enrolments. Each is read once between two calls of ``forget``: a revocation has
            effect at once, and a flood of messages does not cause a flood of reads.
        run: Run id.
        required: Whether only messages of enrolled clients are accepted (``security.require_enrolment``).
    """

    def __init__(self, control: Control, run: str, required: bool) -> None:
        self._control, self._run, self._required = control, run, required
        self._enrolled: dict[str, Enrolment | None] = {}

    def forget(self) -> None:
        """Read the enrolments anew from now on."""
        self._enrolled.clear()

    def open(self, element: bytes) -> AuthenticatedMessage:
        """
        Check the sender, the signature and the form of a message, in this order, up to its body.

        Raises:
            ForgedMessage: Its sender is not the client that it names.
            MessageError: It is malformed, and names no sender.
        """
        sealed = signing.opened(element)
        if sealed is None:
            return self._open_unsigned(element)
        enrolment = self._check_sender(sealed.signer)
        self._check_signature(sealed, enrolment)
        header, body = message.unpack(sealed.element, max_body_bytes=LARGEST_MODEL_BYTES)
        self._check_claims(header, sealed.signer)
        return AuthenticatedMessage(header, body, enrolment, sealed)

    def _open_unsigned(self, element: bytes) -> AuthenticatedMessage:
        longest = _MAX_REFUSED_HEADER_BYTES if self._required else MAX_HEADER_BYTES
        header, body = message.unpack(
            element, max_header_bytes=longest, max_body_bytes=LARGEST_MODEL_BYTES
        )
        if self._required or self._enrolment(header.client) is not None:
            raise ForgedMessage(header.client, f"not signed, in the name of {header.client}")
        return AuthenticatedMessage(header, body, None)

    def _check_sender(self, signer: str) -> Enrolment:
        enrolment = self._enrolment(signer)
        if enrolment is None:
            raise ForgedMessage(signer, f"{signer} is not enrolled")
        if enrolment.revoked_at:
            raise ForgedMessage(signer, f"{signer} is not enrolled any more")
        return enrolment

    def _enrolment(self, client: str) -> Enrolment | None:
        if client not in self._enrolled:
            self._enrolled[client] = self._control.enrolments.get(client)
        return self._enrolled[client]

    @staticmethod
    def _check_signature(sealed: SignedMessage, enrolment: Enrolment) -> None:
        if not signing.is_signed_by(sealed, enrolment.key):
            raise ForgedMessage(sealed.signer, f"not signed with the key of {sealed.signer}")

    def _check_claims(self, header: Header, signer: str) -> None:
        if header.client != signer:
            reason = f"signed by {signer}, in the name of {header.client}"
            raise ForgedMessage(header.client, reason, signer)
        if header.run != self._run:
            raise ForgedMessage(signer, f"it is of run {header.run}", signer)
