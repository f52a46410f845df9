"""
Every key and queue name, written once. No Redis here.

``docs/reference/redis.md`` documents the schema as a public contract; a test compares the two.
``run`` is always a run id (``demo-3f2a9c``), never the name people give.

control server
    flq:runs                           hash    name -> run id of the living run
    flq:{<run>}                        hash    state, round, version, ...
    flq:{<run>}:config                 string  JSON list of config segments
    flq:{<run>}:manifest               string  JSON manifest of the model
    flq:{<run>}:versions               hash    version -> JSON {digest, round}
    flq:{<run>}:history                list    JSON RoundRecord, one per ended round
    flq:{<run>}:late                   hash    round -> updates that came after it ended
    flq:{<run>}:accepted               hash    client -> digest of its newest accepted update, and the round of that job;
                                               client:backup -> the same in the newest backup
    flq:{<run>}:evaluations            hash    version -> JSON test metrics
    flq:{<run>}:sites                  hash    client -> JSON of what it told before its first round
    flq:{<run>}:events                 stream  what happened, capped
    flq:{<run>}:round:<n>              hash    state, cohort, quorum, elapsed_s, ...
    flq:{<run>}:round:<n>:updates      hash    client -> JSON receipt
    flq:{<run>}:round:<n>:rejected     hash    who -> JSON of how many of its elements were refused
    flq:{<run>}:round:<n>:jobs         hash    client -> JSON of its newest job
    flq:clients                        zset    client -> last heartbeat (server clock, s)
    flq:client:<id>                    hash    what the client's worker says of itself
    flq:client:<id>:holder             hash    the one worker that serves it (lease)
    flq:client:<id>:events             stream  its epochs, capped
    flq:client:<id>:told:<run>         string  JSON of what it would train on, expires
    flq:worker:<name>                  hash    a living RQ worker (lease)
    flq:healer                         hash    the one healer at work (lease)
    flq:enrolled                       hash    client -> JSON {key, max_examples, users, ...}
    flq:clock                          hash    when somebody was heard last; settling after an outage
    flq:deleted                        zset    run id -> when it was deleted, for a day
    flq:{restored}                     hash    run id in a backup -> JSON list of the runs restored from it
data server
    flq:server                         string  identity of this data server's content
    flq:server:<i>                     string  the same of one node of a cluster
    flq:{<run>}:results                list    update blobs as they arrive
    flq:{<run>}:taken:<fence>          list    what one aggregator incarnation holds
    flq:{<run>}:owner:<fence>          string  that incarnation's lease
    flq:{<run>}:partial                hash    the checkpointed partial sum of the open round
    flq:{<run>}:admitted:<client>      string  its update on the server or on its way, expires
    flq:{<run>}:turns:<n>              hash    client -> how often it had its turn to send in a round
    flq:chunk:<run>:<digest>:<i>       string  a piece of a model
    flq:update:<client>:<run>:<digest>:<i>  string  a piece of a client's big update
    flq:partial:<run>:<digest>:<i>     string  a piece of the checkpointed partial sum
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


def control_keys(run: str) -> list[str]:
    """Patterns of all keys of a run on the control server but its hash."""
    return [f"flq:{{{run}}}:*", client_told("*", run), f"rq:*:*_{run}_*"]


def data_keys(run: str) -> list[str]:
    """Patterns of all keys of a run on the data server."""
    return [
        f"flq:{{{run}}}:*",
        model_blob(run, "*"),
        update_blob("*", run, "*"),
        partial_blob(run, "*"),
    ]


def run_of(key: str) -> str | None:
    """Run id that a key of a run, or of a job of RQ's, is of; None of other keys."""
    found = re.match(r"flq:\{([^}]*)\}|rq:\w+::?[^_]*_([^_]*)_|flq:(?:chunk|partial):([^:]*):", key)
    return next((part for part in found.groups() if part), None) if found else None
