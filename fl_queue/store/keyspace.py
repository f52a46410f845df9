"""
Names of all keys and queues. No Redis here.

``store/key_table.py`` describes each. ``run`` is always a run id (``demo-3f2a9c``), never a run's name.
"""

from __future__ import annotations

import re

RUNS = "flq:runs"
CLIENTS = "flq:clients"
HEALER = "flq:healer"
CLOCK = "flq:clock"
ENROLLED = "flq:enrolled"
DELETED = "flq:deleted"
#: In braces, as no run id is without a dash: what clients may read of runs has that form.
RESTORED = "flq:{restored}"
DATA_SERVER = "flq:server"
#: Pub/sub channel of the data server: run id of an element that has just been pushed.
ARRIVALS = "flq:arrivals"

AGGREGATE_QUEUE = "flq-aggregate"
EVALUATE_QUEUE = "flq-evaluate"
POOL_QUEUE = "flq-pool"


def data_server_node(number: int) -> str:
    return f"{DATA_SERVER}:{number}"


def probe(token: str, mark: str = "") -> str:
    """A key that is written to see whether a server takes writes. Args: ``mark``: it lies beside that key."""
    return f"flq:probe:{{{mark}}}:{token}" if mark else f"flq:probe:{token}"


def client_queue(client: str) -> str:
    return f"flq-client-{client}"


def run(run: str) -> str:
    return f"flq:{{{run}}}"


def config(run: str) -> str:
    return f"flq:{{{run}}}:config"


def manifest(run: str) -> str:
    return f"flq:{{{run}}}:manifest"


def versions(run: str) -> str:
    return f"flq:{{{run}}}:versions"


def history(run: str) -> str:
    return f"flq:{{{run}}}:history"


def late(run: str) -> str:
    return f"flq:{{{run}}}:late"


def accepted(run: str) -> str:
    return f"flq:{{{run}}}:accepted"


def in_backup(client: str) -> str:
    """Field of ``accepted``: what was a client's newest accepted update in the run's newest backup."""
    return f"{client}:backup"


def evaluations(run: str) -> str:
    return f"flq:{{{run}}}:evaluations"


def sites(run: str) -> str:
    return f"flq:{{{run}}}:sites"


def events(run: str) -> str:
    return f"flq:{{{run}}}:events"


def round_(run: str, number: int | str) -> str:
    return f"flq:{{{run}}}:round:{number}"


def round_updates(run: str, number: int) -> str:
    return f"flq:{{{run}}}:round:{number}:updates"


def round_rejected(run: str, number: int) -> str:
    return f"flq:{{{run}}}:round:{number}:rejected"


def round_jobs(run: str, number: int | str) -> str:
    return f"flq:{{{run}}}:round:{number}:jobs"


def client(client: str) -> str:
    return f"flq:client:{client}"


def client_holder(client: str) -> str:
    return f"flq:client:{client}:holder"


def client_events(client: str) -> str:
    return f"flq:client:{client}:events"


def client_told(client: str, run: str) -> str:
    return f"flq:client:{client}:told:{run}"


def worker(name: str) -> str:
    return f"flq:worker:{name}"


def results(run: str) -> str:
    return f"flq:{{{run}}}:results"


def taken(run: str, fence: int | str) -> str:
    return f"flq:{{{run}}}:taken:{fence}"


def owner(run: str, fence: int) -> str:
    return f"flq:{{{run}}}:owner:{fence}"


def partial(run: str) -> str:
    return f"flq:{{{run}}}:partial"


def admitted(run: str, client: str) -> str:
    return f"flq:{{{run}}}:admitted:{client}"


def turns(run: str, number: int | str) -> str:
    return f"flq:{{{run}}}:turns:{number}"


# What chunks are pieces of. The first word tells who may write, and a client's id follows at once,
# so that an ACL pattern keeps each client to its own.


def model_blob(run: str, digest: str) -> str:
    return f"flq:chunk:{run}:{digest}"


def update_blob(client: str, run: str, digest: str) -> str:
    return f"flq:update:{client}:{run}:{digest}"


def partial_blob(run: str, digest: str) -> str:
    return f"flq:partial:{run}:{digest}"


def chunk(blob: str, index: int | str) -> str:
    return f"{blob}:{index}"


def run_of(key: str) -> str | None:
    """Run id that a key of a run, or of a job of RQ's, is of; None of other keys."""
    found = re.match(r"flq:\{([^}]*)\}|rq:\w+::?[^_]*_([^_]*)_|flq:(?:chunk|partial):([^:]*):", key)
    return next((part for part in found.groups() if part), None) if found else None
