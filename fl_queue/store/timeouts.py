"""How long a server is waited for, by whoever waits. No connections here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timeouts:
    """
    Args:
        answer_s: For a reply, or for the next bytes of one.
        connect_s: For a connection.
        retries: How often a command that may be repeated is sent again.
        waits_for_slow: Whether big values have the time that a slow line needs for them; see ``pace``.
    """

    answer_s: float
    connect_s: float
    retries: int
    waits_for_slow: bool = False


#: Nobody watches a worker: it rides out what it can.
WORKERS = Timeouts(answer_s=30.0, connect_s=5.0, retries=3, waits_for_slow=True)
#: A person waits for an answer: about 10 s for a silent server, and less than 30 s whatever happens.
PEOPLE = Timeouts(answer_s=5.0, connect_s=3.0, retries=1)
#: A person waits while a model is sent, which takes a slow line a while: about 20 s for a silent server.
UPLOADS = Timeouts(answer_s=20.0, connect_s=5.0, retries=0)
