"""
Small things every worker process needs: dying with its parent, and logging to its console.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal

from fl_queue import logs

_PR_SET_PDEATHSIG = 1
#: Exit status of a worker whose client another one serves.
EXIT_REFUSED = 2


def die_with_parent(parent: int) -> None:
    """
    Be killed by the kernel when the parent process ends, however it ends.

    An orphaned work-horse would train on beside the one that replaces it, and an orphaned worker
    would keep its client's lease.

    Args:
        parent: Pid of the parent, to notice that it ended before this call.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def log_to_console() -> None:
    """Log to standard error, one line each, RQ's job chatter left out; see ``logs``."""
    logs.set_up(logging.INFO, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("rq.worker").setLevel(logging.WARNING)
