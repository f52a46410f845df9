"""
A site's answers in a secure round: each demand is checked and each secret noted on disk before anything is returned.

What is returned may leave the site at once. Called again after the process has died, each answer is the same, but
for a masked vector, which has another self secret. No Redis here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fl_queue.errors import RoundRefused
from fl_queue.secure import shamir
from fl_queue.secure.bodies import ConfirmBody, KeysBody, UnmaskBody, UpdateTrailer
from fl_queue.secure.boxes import Kind
from fl_queue.secure.context import confirm_statement
from fl_queue.secure.member import Member
from fl_queue.secure.policy import RoundPolicy
from fl_queue.secure.records import Confirmations, Inbox, Roster, SignedRunKey, Survivors
from fl_queue.secure.ring import Words
from fl_queue.secure.vault import RoundSecrets, RunSecrets, Vault, no_run_key


class SitePart:
    """
    A client's part in one round.

    Args:
        vault: Of the client; it has begun the run.
        policy: The site's demands of the round, made from what the site has fetched itself.
        sign: The client's signature of some bytes, 64 bytes; the same for the same bytes.
    """

    def __init__(self, vault: Vault, policy: RoundPolicy, sign: Callable[[bytes], bytes]) -> None:
        self._vault, self._policy, self._sign = vault, policy, sign
        self._view = policy.view
        self._context = policy.view.digest()

    def keys(self, run_keys: Mapping[str, SignedRunKey], has_roster: bool) -> KeysBody:
        """
        The body of ``keys``.

        Args:
            run_keys: Client -> run key and signature, as the round recorded them.
            has_roster: Whether the round has a roster.

        Raises:
            RoundRefused: A demand of the site failed, or it may have no part in the round any more.
            MessageError: The run key of a neighbour is of low order; names it.
            LocalStorageError: What it keeps is damaged, or cannot be written.
        """
        view, run = self._view, self._run()
        _demand(self._policy.of_cohort(run_keys, run.public, run.closed))
        own = self._vault.enter(view.run, view.number, self._context, view.threshold, has_roster)
        return self._member(run).keys(own.polynomial, self._sign)

    def mask(self, roster: Roster, words: Words) -> UpdateTrailer:
        """
        Mask a vector in place under a self secret of its own, which is forgotten.

        Args:
            roster: As fetched.
            words: The vector; masked when this returns.

        Raises:
            RoundRefused, MessageError, LocalStorageError: As of ``keys``.
        """
        view, run = self._view, self._run()
        own = self._of_roster(roster)
        member = self._member(run)
        polynomial = shamir.random_polynomial(shamir.random_element(), view.threshold)
        trailer = member.mask(words, own.polynomial, roster, polynomial)
        share = member.own_share(polynomial)
        self._vault.note_share(view.run, view.number, trailer.commitment, share)
        return trailer

    def confirm(self, roster: Roster, survivors: Survivors, own_body: str) -> ConfirmBody:
        """
        The body of ``confirm``.

        Args:
            roster, survivors: As fetched.
            own_body: Digest of the masked update that this site has sent; empty: it has sent none.

        Raises:
            RoundRefused, LocalStorageError: As of ``keys``.
        """
        self._of_survivors(roster, survivors, own_body)
        self._note(survivors)
        return ConfirmBody(self._sign(confirm_statement(self._context, survivors.digest)))

    def reveal(
        self,
        roster: Roster,
        survivors: Survivors,
        own_body: str,
        confirmations: Confirmations,
        inboxes: Mapping[Kind, Inbox],
    ) -> UnmaskBody:
        """
        The body of ``unmask``.

        Args:
            roster, survivors, own_body: As of ``confirm``.
            confirmations: Signatures over the survivors, as fetched.
            inboxes: The boxes for this client, as fetched.

        Raises:
            RoundRefused, LocalStorageError: As of ``keys``.
        """
        own, run = self._of_survivors(roster, survivors, own_body), self._run()
        _demand(self._policy.of_confirmations(confirmations, survivors, roster))
        self._note(survivors)
        member = self._member(run)
        shares = {bytes.fromhex(own.mask_key): member.own_share(own.polynomial), **own.own_shares}
        return member.shares(roster, survivors, inboxes, shares)

    def _of_roster(self, roster: Roster) -> RoundSecrets:
        """The round's secrets, once its roster is checked and noted."""
        view = self._view
        own = self._vault.round(view.run, view.number)
        if own is not None and own.context != self._context.hex():
            raise RoundRefused(f"round {view.number} was changed after this site had made its keys")
        mask_key = bytes.fromhex(own.mask_key) if own is not None else None
        _demand(self._policy.of_roster(roster, mask_key, own.roster if own is not None else ""))
        return self._vault.note_roster(view.run, view.number, roster.digest)

    def _of_survivors(self, roster: Roster, survivors: Survivors, own_body: str) -> RoundSecrets:
        own = self._of_roster(roster)
        _demand(self._policy.of_survivors(survivors, roster, own_body, own.revealed))
        return own

    def _note(self, survivors: Survivors) -> None:
        self._vault.note_reveal(self._view.run, self._view.number, survivors.digest)

    def _run(self) -> RunSecrets:
        found = self._vault.run(self._view.run)
        if found is None:
            raise no_run_key(self._view.run)
        return found

    def _member(self, run: RunSecrets) -> Member:
        return Member(self._policy.demands.client, run.secret, self._view)


def _demand(failed: list[str]) -> None:
    """Refuse the round for the first demand that failed. Raises RoundRefused."""
    if failed:
        raise RoundRefused(failed[0])
