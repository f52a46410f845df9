"""
Small things every worker process needs: an exit status, and logging to its console.
"""

from __future__ import annotations

import logging

from fl_queue.common import logs

#: Exit status of a worker whose client another one serves.
EXIT_REFUSED = 2
#: Exit status of a worker whose login is refused for good; its supervisor goes on.
EXIT_REVOKED = 77


def log_to_console() -> None:
    """Log to standard error, one line each, RQ's job chatter left out; see ``logs``."""
    logs.set_up(logging.INFO, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("rq.worker").setLevel(logging.WARNING)
