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
    """Identity of the content of one node of a data server that is a cluster."""
    return f"{DATA_SERVER}:{number}"


def probe(token: str, mark: str = "") -> str:
    """Key of a test write to a server. Args: ``mark``: a key whose cluster slot it shares."""
    return f"flq:probe:{{{mark}}}:{token}" if mark else f"flq:probe:{token}"


def client_queue(client: str) -> str:
    """RQ queue of a client's jobs."""
    return f"flq-client-{client}"


def run(run: str) -> str:
    """State of a run."""
    return f"flq:{{{run}}}"


def config(run: str) -> str:
    """Config of a run."""
    return f"flq:{{{run}}}:config"


def manifest(run: str) -> str:
    """Model manifest of a run: the tensors of its model."""
    return f"flq:{{{run}}}:manifest"


def versions(run: str) -> str:
    """Model versions of a run."""
    return f"flq:{{{run}}}:versions"


def history(run: str) -> str:
    """Records of a run's ended rounds."""
    return f"flq:{{{run}}}:history"


def late(run: str) -> str:
    """Counts of late updates, by round."""
    return f"flq:{{{run}}}:late"


def accepted(run: str) -> str:
    """Newest accepted update of each client."""
    return f"flq:{{{run}}}:accepted"


def in_backup(client: str) -> str:
    """Field of ``accepted``: the client's newest accepted update in the run's newest backup."""
    return f"{client}:backup"


def evaluations(run: str) -> str:
    """Evaluations of a run's versions."""
    return f"flq:{{{run}}}:evaluations"


def sites(run: str) -> str:
    """Preflight record of each client."""
    return f"flq:{{{run}}}:sites"


def events(run: str) -> str:
    """Event stream of a run."""
    return f"flq:{{{run}}}:events"


def round_(run: str, number: int | str) -> str:
    """State of a round."""
    return f"flq:{{{run}}}:round:{number}"


def round_updates(run: str, number: int) -> str:
    """Receipts of a round's updates."""
    return f"flq:{{{run}}}:round:{number}:updates"


def round_rejected(run: str, number: int) -> str:
    """Rejection counts of a round."""
    return f"flq:{{{run}}}:round:{number}:rejected"


def round_stages(run: str, number: int | str) -> str:
    """What came in each stage of a secure round."""
    return f"flq:{{{run}}}:round:{number}:stages"


def round_jobs(run: str, number: int | str) -> str:
    """Newest job of each client in a round."""
    return f"flq:{{{run}}}:round:{number}:jobs"


def client(client: str) -> str:
    """Status that a client's worker reports."""
    return f"flq:client:{client}"


def client_holder(client: str) -> str:
    """Lease of the one worker that serves a client."""
    return f"flq:client:{client}:holder"


def client_events(client: str) -> str:
    """Event stream of a client."""
    return f"flq:client:{client}:events"


def client_facts(client: str, run: str) -> str:
    """Facts that a client reported about its data for a run."""
    return f"flq:client:{client}:told:{run}"  # codespell:ignore told


def worker(name: str) -> str:
    """Lease of a worker."""
    return f"flq:worker:{name}"


def results(run: str) -> str:
    """Results list of a run: updates that the aggregator has not claimed yet."""
    return f"flq:{{{run}}}:results"


def taken(run: str, fence: int | str) -> str:
    """Taken list of one aggregator incarnation: the messages that it has claimed."""
    return f"flq:{{{run}}}:taken:{fence}"


def owner(run: str, fence: int) -> str:
    """Lease of one aggregator incarnation on its taken list."""
    return f"flq:{{{run}}}:owner:{fence}"


def partial(run: str) -> str:
    """Checkpointed partial sum of a run's open round."""
    return f"flq:{{{run}}}:partial"


def admitted(run: str, client: str) -> str:
    """A client's permission to push an update."""
    return f"flq:{{{run}}}:admitted:{client}"


def turns(run: str, number: int | str) -> str:
    """Number of turns that each client had in a round."""
    return f"flq:{{{run}}}:turns:{number}"


# Prefixes of chunks. The second word names the writer, and a client's id follows directly, so that one ACL
# pattern limits a client to its own chunks.


def model_blob(run: str, digest: str) -> str:
    """Prefix of a model's chunks."""
    return f"flq:chunk:{run}:{digest}"


def update_blob(client: str, run: str, digest: str) -> str:
    """Prefix of an update's chunks."""
    return f"flq:update:{client}:{run}:{digest}"


def partial_blob(run: str, digest: str) -> str:
    """Prefix of a partial sum's chunks."""
    return f"flq:partial:{run}:{digest}"


def secure_record(run: str, digest: str) -> str:
    """Roster, survivors or confirmations of a secure round."""
    return f"flq:roster:{run}:{digest}"


def inbox(client: str, run: str, digest: str) -> str:
    """Boxes for one client. Args: ``digest``: of the roster, or of the survivors, that they go with."""
    return f"flq:inbox:{client}:{run}:{digest}"


def chunk(blob: str, index: int | str) -> str:
    """One chunk of a blob."""
    return f"{blob}:{index}"


def run_of(key: str) -> str | None:
    """Run id in the name of a run's key, or of a key of an RQ job; None for other keys."""
    found = re.match(
        r"flq:\{([^}]*)\}|rq:\w+::?[^_]*_([^_]*)_|flq:(?:chunk|partial|roster):([^:]*):", key
    )
    return next((part for part in found.groups() if part), None) if found else None
