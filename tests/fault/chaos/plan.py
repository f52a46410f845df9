"""
What a chaos run does, as a function of its seed: whom it hits, how, how hard, and what it sends.

No process is touched here. The sequence is the same for a seed; when its steps happen, and what
their victims are doing then, is not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

#: (role, part) -> how often it is hit, relative to the others. ``all`` is a whole machine that
#: freezes: supervisor, worker and all below it.
WEIGHTS = {
    ("client", "trainer"): 4.0,
    ("client", "fork server"): 2.0,
    ("client", "worker"): 3.0,
    ("client", "supervisor"): 2.0,
    ("client", "all"): 1.5,
    ("aggregator", "horse"): 4.0,
    ("aggregator", "worker"): 2.0,
    ("aggregator", "supervisor"): 1.5,
    ("aggregator", "all"): 2.0,
    ("evaluator", "trainer"): 1.0,
    ("evaluator", "fork server"): 0.5,
    ("evaluator", "worker"): 1.0,
    ("evaluator", "supervisor"): 0.7,
    ("console", "process"): 1.5,
    ("control", "server"): 1.5,
    ("data", "server"): 1.5,
}
#: Role -> moments a step may wait for before it hits; ``now`` does not wait.
AIMS = {
    "client": ("now", "training", "pushing", "received"),
    "aggregator": ("now", "collecting", "committing", "between rounds"),
    "evaluator": ("now",),
    "console": ("now",),
    "control": ("now", "pushing", "committing"),
    "data": ("now", "pushing", "collecting"),
}
#: What may be pushed into the results list along with a step; mostly nothing.
SENT = ("duplicate", "late", "stale", "rubbish", "stranger")
KILL_SHARE = 0.65
SEND_SHARE = 0.5
#: Pauses of a stopped process, seconds: below and above the 6 s leases, half of them each.
SHORT_S = (0.3, 4.0)
LONG_S = (6.5, 11.0)
#: Time a server is away or frozen, seconds.
OUTAGE_S = (0.1, 4.0)


@dataclass(frozen=True)
class Step:
    """
    One step of the walk.

    Args:
        wait_s: Seconds since the last step.
        role, part: A key of ``WEIGHTS``.
        which: 0 to 1; picks one of the role's instances.
        action: ``kill`` or ``stop``.
        pause_s: Seconds until SIGCONT, or until a killed server is started again.
        aim: The moment to wait for (``AIMS``), for a while.
        send: One of ``SENT``, or empty.
        pick: 0 to 1; picks the element to send.
    """

    wait_s: float
    role: str
    part: str
    which: float
    action: str
    pause_s: float
    aim: str
    send: str
    pick: float


def steps(seed: int) -> Iterator[Step]:
    """The endless walk of a seed."""
    draw = random.Random(seed)
    targets, weights = list(WEIGHTS), list(WEIGHTS.values())
    while True:
        role, part = draw.choices(targets, weights)[0]
        # Everything is drawn in every step, so that a changed weight changes no later draw's place.
        wait_s, which, pick = draw.uniform(0.5, 3.5), draw.random(), draw.random()
        killed, long, sends = draw.random() < KILL_SHARE, draw.random() < 0.5, draw.random()
        pause_s = draw.uniform(*(LONG_S if long else SHORT_S))
        outage_s, aim, sent = draw.uniform(*OUTAGE_S), draw.choice(AIMS[role]), draw.choice(SENT)
        yield Step(
            wait_s=wait_s,
            role=role,
            part=part,
            which=which,
            action="kill" if killed and part != "all" else "stop",
            pause_s=outage_s if part == "server" else pause_s,
            aim=aim,
            send=sent if sends < SEND_SHARE else "",
            pick=pick,
        )


def start_kills(seed: int) -> Iterator[float | None]:
    """For each ``start-round`` of a chaos run: seconds after which it is killed, or None."""
    draw = random.Random(f"{seed} start-round")
    while True:
        killed, after_s = draw.random() < 0.5, draw.uniform(0.3, 4.0)
        yield after_s if killed else None
