"""Timeouts of connections, by their use. No connections here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timeouts:
    """
    Timeouts of the connections to one server.

    Args:
        answer_s: For a reply, or for the next bytes of one.
        connect_s: For a connection.
        retries: Number of times that a repeatable command is sent again.
        waits_for_slow: Whether large values get the time that a slow line needs for them; see ``pace``.
    """

    answer_s: float
    connect_s: float
    retries: int
    waits_for_slow: bool = False


#: Of workers, which run unattended and outlast short outages.
WORKERS = Timeouts(answer_s=30.0, connect_s=5.0, retries=3, waits_for_slow=True)
#: Of commands with a user who waits: about 10 s for a silent server, and less than 30 s in any case.
INTERACTIVE = Timeouts(answer_s=5.0, connect_s=3.0, retries=1)
#: Of commands that send a model, perhaps over a slow line: about 20 s for a silent server.
UPLOADS = Timeouts(answer_s=20.0, connect_s=5.0, retries=0)
