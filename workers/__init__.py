"""The processes: thin RQ workers around ``fl_queue``, and the supervisor that keeps them running."""

import sys

from fl_queue.common import collector, telemetry

# As `python -m workers.NAME` a module is the whole process, and imports everything right after this package.
if sys.argv[:1] == ["-m"]:
    collector.start_process()
    telemetry.leave_out()

#: Variable with the descriptor at which a worker waits until its supervisor has seen the servers; empty: it does not.
HELD = "FLQ_SITE_HELD"
#: Exit status of a worker whose client another worker serves.
EXIT_REFUSED = 2
