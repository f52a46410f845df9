"""
The table of all keys: type, writers, lifetime and access. No Redis here.

It is the source of the patterns of access control (``acl``), of the expected types (``wrong_types``), of the
keys that a deletion removes and a backup holds, and of the tables in ``docs/reference/redis.md``.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["hash", "string", "list", "stream", "zset", "set"]
Server = Literal["control", "data"]


@dataclass(frozen=True)
class Key:
    """
    One row of the table.

    Args:
        pattern: Name with placeholders: ``flq:{<run>}:round:<n>``.
        kind: Its type in Redis.
        server: Where it is.
        holds: Its content, Markdown.
        writers: Processes or commands that write it.
        lifetime: How long it is kept.
        expires: Whether it has a lifetime in Redis.
        in_backup: Whether a backup holds it.
        clients: How clients use it: ``own`` (each its own keys), ``inbox`` (each reads its own), ``read``, ``push``;
            empty: not.
        reader: Whether the role ``reader`` may read it.
        removable: Whether a key of a wrong type is removed: clients may write it, or push its content again.
    """

    pattern: str
    kind: Kind
    server: Server
    holds: str
    writers: str
    lifetime: str
    expires: bool = False
    in_backup: bool = False
    clients: tuple[str, ...] = ()
    reader: bool = False
    removable: bool = False

    def regex(self) -> re.Pattern[str]:
        """Return the regular expression that the whole name of such a key matches."""
        parts = re.split(r"(<\w+>)", self.pattern)
        return re.compile("".join(_IN_NAME.get(part, re.escape(part)) for part in parts))

    def glob(self, **values: str) -> str:
        """Return the pattern for Redis: given placeholders replaced, the others ``*``."""
        return re.sub(r"<(\w+)>", lambda found: values.get(found[1], "*"), self.pattern)


#: Placeholder -> regular expression of its values.
_IN_NAME = {
    "<run>": r"(?!restored\})[^:{}]+",
    "<n>": r"\d+",
    "<i>": r"\d+",
    "<fence>": r"\d+",
    "<digest>": r"[^:]+",
    "<id>": r"[^:]+",
    "<client>": r"[^:]+",
    "<name>": r".+",
}

KEYS: tuple[Key, ...] = (
    Key(
        "flq:runs",
        "hash",
        "control",
        "name -> run id of the living run",
        "`start-round`, `restore`, `delete`",
        "a name until its run is deleted",
        reader=True,
    ),
    Key(
        "flq:{<run>}",
        "hash",
        "control",
        (
            "state, reason, reason_at (when the reason was found), version, digest, download, "
            "server_state, round, rounds_wanted, abandoned, segment, config_digest, population, "
            "shares, fence, cleaned, waited_s, created_at; state_since (the newest round in which a "
            "client had lost its state, or the run went back to an older version: clients' states of later "
            "rounds count only); counted_from (the version from which run.patience counts); tags (JSON, name -> version); "
            "metrics (JSON list of those that the task has declared with version 0); panel (JSON: the clients of a fit's "
            "further steps, and those it has lost); restored_from "
            "(JSON list: the run it was restored from, the one before that, ...)"
        ),
        "`start-round`, scripts and transactions of the operator's side",
        "until the run is deleted",
        in_backup=True,
        clients=("read",),
        reader=True,
    ),
    Key(
        "flq:{<run>}:config",
        "string",
        "control",
        (
            "JSON list of config segments, each with the round it began at; where the operator signs "
            "([signatures.md](../guides/signatures.md)) its signature, and initial: digest of the "
            "initial model"
        ),
        "`start-round`",
        "until the run is deleted",
        in_backup=True,
        clients=("read",),
        reader=True,
    ),
    Key(
        "flq:{<run>}:manifest",
        "string",
        "control",
        (
            "JSON: name, shape and kind of each tensor of a version, aliases; private: names of those that "
            "stay on the clients; base: of a model with frozen tensors its base part: digest, nbytes, "
            "is_published, and name, dtype and shape of each tensor (of runs that began before there "
            "were base parts frozen: names of tensors of a version); adapters: of a model of peft's, how "
            "peft saves it"
        ),
        "the commit script",
        "until the run is deleted",
        in_backup=True,
        clients=("read",),
        reader=True,
    ),
    Key(
        "flq:{<run>}:versions",
        "hash",
        "control",
        (
            "version -> JSON digest and round, and download: digest of its encoded body, with "
            "`model.codec`, and server_state: name -> digest of the strategy's state of that version, "
            "with population: clients the run had seen by then; signature: the operator's"
        ),
        "the commit script",
        "until the run is deleted",
        in_backup=True,
        reader=True,
    ),
    Key(
        "flq:{<run>}:history",
        "list",
        "control",
        "one JSON record per ended round",
        "the commit script",
        "until the run is deleted",
        in_backup=True,
        reader=True,
    ),
    Key(
        "flq:{<run>}:late",
        "hash",
        "control",
        "round -> number of updates that arrived after it ended",
        "the aggregator, and the removal of a round's keys",
        "until the run is deleted",
        in_backup=True,
        reader=True,
    ),
    Key(
        "flq:{<run>}:accepted",
        "hash",
        "control",
        (
            "client -> JSON digest of its newest accepted update and the round of that job, where "
            "clients keep state ([strategies.md](strategies.md#what-clients-keep)); client:backup -> "
            "the same in the newest backup"
        ),
        "the commit script, `backup`",
        "until the run is deleted",
        in_backup=True,
        clients=("read",),
    ),
    Key(
        "flq:{<run>}:evaluations",
        "hash",
        "control",
        "version -> JSON: its job, then its test metrics",
        "`advance`, then the evaluator",
        "until the run is deleted",
        in_backup=True,
        reader=True,
    ),
    Key(
        "flq:{<run>}:sites",
        "hash",
        "control",
        (
            "client -> JSON of its part in the comparison before round 1: its job, the worker that "
            "was asked, its report, the result; `:most`: the report of the majority. Only where sites "
            "may differ ([operations.md](../guides/operations.md#sites-that-differ))"
        ),
        "the process that opens a round",
        "until the run is deleted",
        reader=True,
    ),
    Key(
        "flq:{<run>}:events",
        "stream",
        "control",
        "what happened, newest 10,000",
        "all of the operator's side",
        "the oldest first; until the run is deleted",
        reader=True,
    ),
    Key(
        "flq:{<run>}:round:<n>",
        "hash",
        "control",
        (
            "state, purpose, cohort, eligible, groups, quorum, elapsed_s, deadline_s, base version "
            "and digest, failure and failures (why an aggregator could not end it, and how many times "
            "in a row), download (digest of the encoded body that clients fetch; empty: they fetch "
            "the base version itself), server_state (the strategy's state of the base version: name "
            "-> digest), population (clients the run has seen), base_population (the same when that "
            "server_state was made; 0: not known), exponent (clients divide what they send by two to "
            "this power: q-FedAvg), fence, claimed_by (token of the aggregator incarnation that owns "
            "it), scales (quantity -> fractional bits, limit; of float buffers a third: bits of each "
            "digit below, down to the last bit of a float32); mode, and of an asynchronous round "
            "carried (client -> round and version its job began with, of those at work since an "
            "earlier round) and discount (unit and weights by staleness); of a secure round stage (keys, updates, "
            "unmask), secure (bits of the ring, degree and threshold of the graph, min_cohort), parties (client -> "
            "run key, its signature, signing key), and digests of roster, survivors and confirmations; signed (JSON: the statement "
            "that the operator signed, signature, fingerprint of the key; empty: not signed); inputs (digest "
            "of config, shares of the data and all else that decides what clients train, besides number "
            "and base version; an update names those it was made from). Kept "
            "for two rounds, and as long as one of its jobs is at work"
        ),
        "`advance` opens; aggregator and healer",
        ("two rounds after its end; in an asynchronous run also until none of its jobs is at work"),
        clients=("read",),
        reader=True,
    ),
    Key(
        "flq:{<run>}:round:<n>:updates",
        "hash",
        "control",
        (
            "client -> JSON receipt: received, accepted, duplicate, late, stale, invalid, failed; "
            "`<client>:<status>` of a further message, `<client>:forged` of one that the client has "
            "not signed"
        ),
        "aggregator, healer",
        ("two rounds after its end; in an asynchronous run also until none of its jobs is at work"),
        reader=True,
    ),
    Key(
        "flq:{<run>}:round:<n>:rejected",
        "hash",
        "control",
        (
            "sender -> JSON `{count, reason}`: the number of messages of that sender the round has "
            "rejected, and the reason of the last one. `<client>`: proved by its signature; "
            "`<client>:claimed`: named in the message only; `?`: no name; `?others`: senders beyond "
            "64. Written at most once a second"
        ),
        "aggregator",
        ("two rounds after its end; in an asynchronous run also until none of its jobs is at work"),
        reader=True,
    ),
    Key(
        "flq:{<run>}:round:<n>:stages",
        "hash",
        "control",
        (
            "of a secure round: `<client>:keys`, `<client>:confirm` or `<client>:unmask` -> JSON "
            "`{status, reason}` of that message; never a key, a share or a box"
        ),
        "aggregator",
        "two rounds after its end",
        reader=True,
    ),
    Key(
        "flq:{<run>}:round:<n>:jobs",
        "hash",
        "control",
        (
            "client (or `group-<k>`, or aggregator) -> JSON of its newest job; its `number` is the "
            "round it began in"
        ),
        "`advance`, healer",
        ("two rounds after its end; in an asynchronous run also until none of its jobs is at work"),
        clients=("read",),
        reader=True,
    ),
    Key(
        "flq:clients",
        "zset",
        "control",
        "client -> when it was seen last: when its worker's lease was extended",
        "the healer, the process that opens a round",
        "a client until a clean stop of its worker",
        reader=True,
    ),
    Key(
        "flq:client:<id>",
        "hash",
        "control",
        (
            "num_examples; left: its worker was stopped; paused: the reason of a pause, absent "
            "otherwise; awaited: JSON run id -> round, job and start of an answer that waits for the "
            "site's approval, and if the site has decided; data_wait: JSON job, start and reason of a "
            "wait for the data server, absent otherwise"
        ),
        "the client's worker",
        "always",
        clients=("own",),
        reader=True,
        removable=True,
    ),
    Key(
        "flq:client:<id>:holder",
        "hash",
        "control",
        "the one worker that serves the client",
        "the client's worker",
        "until 6 s after the last extension, or a clean stop",
        expires=True,
        clients=("own",),
        reader=True,
        removable=True,
    ),
    Key(
        "flq:client:<id>:events",
        "stream",
        "control",
        "its epochs, newest 1,000",
        "the client's worker",
        "the oldest first",
        clients=("own",),
        reader=True,
        removable=True,
    ),
    Key(
        "flq:client:<id>:told:<run>",  # codespell:ignore told
        "string",
        "control",
        (
            "JSON, the client's report: its job and `facts`, name -> one line: classes, columns, "
            "channels, input, code, or problem"
        ),
        "the client's worker",
        "an hour",
        expires=True,
        clients=("own",),
        reader=True,
        removable=True,
    ),
    Key(
        "flq:worker:<name>",
        "hash",
        "control",
        (
            "a living worker: role, host, pid, `job` (id of the job at work, empty when idle); of a "
            "client its name begins with `<id>_`"
        ),
        "the worker",
        "until 6 s after the last extension, or a clean stop",
        expires=True,
        clients=("own",),
        reader=True,
        removable=True,
    ),
    Key(
        "flq:healer",
        "hash",
        "control",
        "the healer at work",
        "the healer",
        "until 4 s after the last extension, or a clean stop",
        expires=True,
        reader=True,
    ),
    Key(
        "flq:enrolled",
        "hash",
        "control",
        (
            "client -> JSON: its public `key`, `max_examples` (0: any), `enrolled_at`, the names of "
            "its Redis `users` with the hashes of their passwords, `revoked_at` (0: it was not), "
            "`serial` (rises with each change), and the operator's `signature` of all that and the "
            "client's id. A copy: what counts is the pin on the operator's disk, "
            "`enrolled/<client>.json` in the state folder, see [cli.md](cli.md) (Several parties). "
            "The operator writes, aggregator and healer read"
        ),
        "`enroll`, `revoke`",
        "always",
        reader=True,
    ),
    Key(
        "flq:clock",
        "hash",
        "control",
        (
            "when the operator's side last checked which workers are alive; settling_s: time left "
            "until that is known again after an outage or a jump of this server's clock"
        ),
        "the healer, the process that opens a round",
        "always",
        reader=True,
    ),
    Key(
        "flq:deleted",
        "zset",
        "control",
        "run id -> when it was deleted",
        "`delete`",
        "a day; until then the healer removes everything that still arrives for the run",
        clients=("read",),
        reader=True,
    ),
    Key(
        "flq:{restored}",
        "hash",
        "control",
        (
            "run id in a backup -> JSON list of the runs that were restored from it: clients' states "
            "of that id belong to them"
        ),
        "`restore`, `delete`",
        "a run until all that were restored from it are deleted",
    ),
    Key(
        "flq:server",
        "string",
        "data",
        "identity of this server's content",
        "the first process that asks",
        "always",
    ),
    Key(
        "flq:server:<i>",
        "string",
        "data",
        "the same of one node, when the data server is a cluster",
        "the first process that asks",
        "always",
    ),
    Key(
        "flq:{<run>}:results",
        "list",
        "data",
        "updates as they arrive",
        "clients push",
        (
            "until taken by the aggregator; of a run that has ended, recorded as late and removed by "
            "the healer"
        ),
        clients=("push",),
        removable=True,
    ),
    Key(
        "flq:{<run>}:taken:<fence>",
        "list",
        "data",
        "messages that one aggregator incarnation has claimed",
        "the aggregator",
        ("a message until it is rejected, its round has ended, or it is in the partial sum"),
        removable=True,
    ),
    Key(
        "flq:{<run>}:owner:<fence>",
        "string",
        "data",
        "its lease",
        "the aggregator",
        "until 6 s after the last extension",
        expires=True,
        removable=True,
    ),
    Key(
        "flq:{<run>}:partial",
        "hash",
        "data",
        (
            "the open round's partial sum: round, opening (when that round was opened, from "
            "which version), digest, nbytes, weight, divisor, count, and progress: JSON of the "
            "receipts of the updates in it, which are no longer on the server; signature: the "
            "operator's, over all of it"
        ),
        "the aggregator that owns taken",
        "until its round has ended",
        reader=True,
        removable=True,
    ),
    Key(
        "flq:{<run>}:admitted:<client>",
        "string",
        "data",
        (
            "`<token>:<bytes>` of a client's update on the server or on its way (`?` before it while "
            "it asks); see `redis.unmerged_bytes`"
        ),
        "its client; the aggregator removes it",
        (
            "until its update is merged or its round has ended; of a client that died while sending, "
            "120 s"
        ),
        expires=True,
        clients=(
            "own",
            "read",
        ),
        removable=True,
    ),
    Key(
        "flq:{<run>}:turns:<n>",
        "hash",
        "data",
        (
            "client -> how often it had its turn to send in the open round: its update was merged, or "
            "it held its admission for too long and lost it"
        ),
        "the aggregator at a checkpoint, the healer",
        "until its round has ended, at most 24 hours",
        expires=True,
        clients=("read",),
    ),
    Key(
        "flq:chunk:<run>:<digest>:<i>",
        "string",
        "data",
        "a piece of a model, or of the base part of a run",
        "aggregator, healer; `start-round` of an initial model",
        (
            "until superseded; of the two newest versions, of versions that wait for the evaluator or "
            "that clients are at work on always; of a base part until the run is deleted, but a day before "
            "its version 0 is committed; of an "
            "initial model 7 days"
        ),
        clients=("read",),
        removable=True,
    ),
    Key(
        "flq:update:<client>:<run>:<digest>:<i>",
        "string",
        "data",
        (
            "a piece of a client's update (or of an initial model it made) over `redis.inline_bytes`; "
            "of a group of a simulation's clients `group-<k>`, and `evaluator`"
        ),
        "the client",
        "until its round has ended, at most 24 hours",
        expires=True,
        clients=("own",),
        removable=True,
    ),
    Key(
        "flq:roster:<run>:<digest>",
        "string",
        "data",
        (
            "of a secure round, JSON named by its SHA-256: the roster (clients and their mask keys), the "
            "survivors (whose masked update is in), or the signatures over the survivors"
        ),
        "aggregator",
        "until its round has ended, at most 24 hours after an aggregator last took the round over",
        expires=True,
        clients=("read",),
        removable=True,
    ),
    Key(
        "flq:inbox:<client>:<run>:<digest>",
        "string",
        "data",
        (
            "of a secure round: the encrypted shares for one client; digest: of the roster, or of the "
            "survivors, that they go with"
        ),
        "aggregator",
        "until its round has ended, at most 24 hours after an aggregator last took the round over",
        expires=True,
        clients=("inbox",),
        removable=True,
    ),
    Key(
        "flq:partial:<run>:<digest>:<i>",
        "string",
        "data",
        "a piece of the partial sum",
        "the aggregator that owns taken",
        "until its round has ended; remains of a killed one, an hour",
        removable=True,
    ),
)

#: Keys of RQ that clients may write: regular expression -> type. RQ's own code writes and removes them.
RQ_PATTERNS: tuple[tuple[str, Kind], ...] = (
    (r"rq:queue:.*", "list"),
    (r"rq:results:.*", "stream"),
    (r"rq:(wip|finished|failed|executions):.*", "zset"),
    (r"rq:job:.*:depend\w+|rq:worker:.*:executions", "set"),
    (r"rq:(job|execution|worker):.*", "hash"),
)


def on(server: Server) -> Iterator[Key]:
    """The rows of one server."""
    return (key for key in KEYS if key.server == server)


def without_covered(patterns: Iterable[str]) -> list[str]:
    """Return glob patterns without those that another one of them covers."""
    found = list(dict.fromkeys(patterns))
    return [
        one
        for one in found
        if not any(other != one and fnmatch.fnmatchcase(one, other) for other in found)
    ]


def patterns_of_run(run: str, server: Server) -> list[str]:
    """Return patterns of all keys of a run on a server, but its hash."""
    own = f"flq:{{{run}}}:"
    found = [key.glob(run=run) for key in on(server) if "<run>" in key.pattern]
    wide = [f"{own}*"]  # Also keys of other releases.
    apart = [pattern for pattern in found if not pattern.startswith(f"flq:{{{run}}}")]
    return [*wide, *apart, *([f"rq:*:*_{run}_*"] if server == "control" else [])]
