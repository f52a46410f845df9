"""
End an enrolled worker whose login is refused for good.

Its job ends, and the process. The supervisor starts another one a minute later: an operator may have
enrolled the site again, under a file of the same name.
"""

from __future__ import annotations

import logging
import os
import sys
import threading

from fl_queue.client.site import WorkerSettings
from fl_queue.protocol.identifiers import EVALUATOR

log = logging.getLogger(__name__)

#: Exit status of a worker whose login is refused for good; its supervisor goes on.
EXIT_REVOKED = 77


def sentence(site: WorkerSettings) -> str:
    """The reason, for the log."""
    return (
        f"{site.client or EVALUATOR} was revoked, or its password was changed: ask the operator"
        f" (Redis refuses the login of {site.credentials})"
    )


def warn_if_unchecked(site: WorkerSettings) -> None:
    """Warn of credentials without an operator's key: nothing that comes from Redis can be checked."""
    if site.secrets is not None and not site.secrets.operator_key:
        log.warning(
            "%s has no operator_key: what comes from Redis is not checked; have the operator enrol %s again",
            site.credentials,
            site.secrets.client,
        )


def end_when_revoked(site: WorkerSettings) -> None:
    """End this process, which is to have credentials, once its login is refused for good."""
    from fl_queue.store import own_login

    own, reported = os.getpid(), threading.Event()

    def end() -> None:
        # A forked job is ended by its worker, which is refused at the same time.
        if os.getpid() != own:
            return
        if not reported.is_set():
            reported.set()
            log.error("%s", sentence(site))
        if threading.current_thread() is not threading.main_thread():
            os._exit(
                EXIT_REVOKED
            )  # A thread cannot end its process otherwise; all below end with it.
        sys.exit(EXIT_REVOKED)

    own_login.when_refused_for_good(end)
