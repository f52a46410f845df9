"""
Named points at which a test lets a process be killed or stopped, between any two steps of a round.

Off unless ``FLQ_FAULTS`` names a folder, which only tests set. A test arms a point by writing a file
of its name there, ``<action> [<begin of a worker's name>]``; the first such process to reach the
point takes the file, writes its pid into it, and does it: ``kill`` (itself), ``kill-parent`` (a trainer's
fork server, an aggregator's worker), ``kill-worker`` (the worker, from whatever is below it), each with
itself; ``kill-supervisor`` (supervisor, worker and itself), or ``stop`` (SIGSTOP).
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

#: Point -> what comes next when it is reached.
POINTS = {
    "run.created": "start-round opens the first round",
    "round.opened": "the process that opened a round goes on",
    "job.popped": "a worker has a job from its queue and marks it as started",
    "trainer.forked": "a fork server hands a new trainer to its worker",
    "trainer.asked": "a worker waits for its trainer's answer",
    "trainer.answered": "a worker looks at its trainer's answer",
    "trainer.tidied": "a trainer that has answered looks what its job has changed",
    "client.started": "a client reads the model",
    "rows.read": "a client adds up the rows of its table",
    "ledger.noted": "a client writes the sums of its rows to the outbox",
    "client.trained": "a client writes its update to the outbox",
    "outbox.written": "a client pushes its update",
    "runkey.made": "a client has made its run key, and sends it",
    "round.noted": "a client has made its secrets for a secure round, and writes its keys",
    "keys.written": "a client pushes its keys",
    "keys.pushed": "a client trains for a secure round",
    "roster.noted": "a client masks its update",
    "share.noted": "a client writes its masked update",
    "update.masked": "a client pushes its masked update",
    "reveal.noted": "a client writes what it signs or reveals",
    "confirm.pushed": "a client waits for the others' signatures",
    "shares.pushed": "a client's job is marked as finished, with its shares sent",
    "closed.noted": "a client removes the secrets of a round that has ended",
    "runkey.deleted": "a client removes the rest of a run that is over",
    "chunks.pushed": "a client pushes the element that names its chunks",
    "update.pushed": "a client's job is marked as finished",
    "aggregator.claimed": "an aggregator with a new fence takes ownership",
    "update.taken": "an aggregator looks at an element it has taken",
    "update.received": "an aggregator takes the next element",
    "update.refused": "an aggregator removes what it has refused from its taken list",
    "refused.removed": "an aggregator takes the next elements",
    "partial.stored": "an aggregator records the sum and removes its updates",
    "partial.saved": "an aggregator removes what a partial sum replaced",
    "base.written": "an aggregator publishes the base part of a run",
    "base.published": "an aggregator makes version 0",
    "base.fetched": "a host has the base part, and goes on with its job",
    "round.decided": "an aggregator makes the next model",
    "model.published": "an aggregator writes the checkpoint",
    "checkpoint.written": "an aggregator runs the commit script",
    "roster.stored": "an aggregator freezes the roster of a secure round",
    "roster.frozen": "an aggregator takes masked updates",
    "survivors.stored": "an aggregator freezes whose masked updates are in the sum",
    "survivors.frozen": "an aggregator takes the shares that unmask the sum",
    "sum.unmasked": "an aggregator makes the next model of a sum without masks",
    "panel.shrunk": "an aggregator advances the run, whose panel has lost a client",
    "round.committed": "an aggregator advances the run",
    "round.advanced": "an aggregator removes what it has taken",
    "round.discarded": "an aggregator removes the round's other leftovers",
    "version.scored": "the evaluator records a version's test metrics",
    "heal.given-back": "the healer restores models",
    "heal.replaced": "the healer forgets the old attempt of a job",
    "heal.healed": "the healer advances the run",
}
_FOLDER = os.environ.get("FLQ_FAULTS")


def failpoint(point: str) -> None:
    """Do what a test armed this point with; nothing in production."""
    if _FOLDER is None:
        return
    if point not in POINTS:
        raise KeyError(point)
    armed = Path(_FOLDER) / point
    try:
        action, _, whose = armed.read_text().partition(" ")
        if not os.environ.get("FLQ_SITE_WORKER", "").startswith(whose):
            return
        taken = armed.rename(f"{armed}.{os.getpid()}")  # Only one process can.
    except FileNotFoundError:
        return
    taken.write_text(str(os.getpid()))
    taken.rename(f"{armed}.fired")
    _act(action)


def _act(action: str) -> None:
    if action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    if action == "kill-parent":
        os.kill(os.getppid(), signal.SIGKILL)
    if action == "kill-worker":
        os.kill(int(os.environ.get("FLQ_SITE_WORKER_PID") or os.getpid()), signal.SIGKILL)
    if action == "kill-supervisor":
        os.kill(int(os.environ["FLQ_SITE_SUPERVISOR"]), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
