"""Duration of login refusals: short when a server has lost its users, permanent when they were removed."""

from __future__ import annotations

import time
from collections.abc import Callable

from fl_queue.errors import StoreUnavailable
from fl_queue.store.error_translation import code_of

#: Longer than the half minute in which a healer restores users that a server has lost.
FOR_GOOD_S = 40.0


def is_login_refused(error: BaseException) -> bool:
    """Whether a server refused the login; False when it only forbids a command (NOPERM)."""
    if isinstance(error, StoreUnavailable):
        return error.__cause__ is not None and is_login_refused(error.__cause__)
    return code_of(error) in ("WRONGPASS", "NOAUTH")


class Login:
    """Calls a function, once, when the login has been refused for ``FOR_GOOD_S``."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._act: Callable[[], None] | None = None

    def when_refused_for_good(self, act: Callable[[], None]) -> None:
        """Set the function; without one, refusals are waited out like outages. Args: ``act``: may raise."""
        self._act = act

    def failed(self, error: Exception) -> None:
        """Record that a command has failed, for any reason."""
        if not is_login_refused(error):
            self._since = None
            return
        now = time.monotonic()
        if self._since is None:
            self._since = now
        act = self._act
        if act is not None and now - self._since >= FOR_GOOD_S:
            self._act = None
            act()

    def accepted(self) -> None:
        """Record that a command was carried out."""
        self._since = None


own_login = Login()
