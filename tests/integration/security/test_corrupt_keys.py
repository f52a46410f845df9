"""Whatever a client writes into what it may write, readers, healer and aggregator go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from fl_queue.cli import cli
from fl_queue.common import processes
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.errors import MachineUnfit
from fl_queue.protocol import identifiers
from fl_queue.reporting import doctor, live_view, progress, run_status
from fl_queue.reporting.exporters import prometheus
from fl_queue.store import Store, acl, keyspace
from fl_queue.store.jobs import dispatch
from fl_queue.web import view_model
from tests.support.manual_run import ManualRun

pytestmark = pytest.mark.timeout(170)

ESCAPES = "\x1b[2J\x1b]0;owned\x07 [/] [red] \u202e <script>alert(1)</script>"
BYTES = [
    b"", b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 2000, b"NaN", b"1e999", b"9" * 5000, b"null", b"[]", b"0",
    b'"\\ud800"', ESCAPES.encode(), "²".encode(), b"x" * 1_000_000,
]  # fmt: skip
#: Value in an honest event -> values that a client could write instead.
VALUES: list[Any] = [
    None, True, -1, 2**70, 1e300, "", "x" * 5000, ESCAPES, [], [[[[[[[[[[1]]]]]]]]]], {}, {"a": {"b": []}},
]  # fmt: skip
EPOCH = {"event": "epoch", "epoch": 1, "epochs": 2, "accuracy": 0.5, "loss": 0.5}


def hostile_events(run: str) -> list[dict[bytes, bytes]]:
    """Entries that a client could add to its event stream."""
    honest = EPOCH | {"run": run, "round": 1}
    found: list[dict[Any, Any]] = [{b"event": value} for value in BYTES]
    found += [{b"another": b"field"}, {b"event": json.dumps(VALUES).encode()}]
    for name in honest:
        found += [{b"event": json.dumps(honest | {name: value}).encode()} for value in VALUES]
        found.append(
            {b"event": json.dumps({k: v for k, v in honest.items() if k != name}).encode()}
        )
    return found


#: Fields of a hash: its client's, its lease, its worker's.
FIELDS = (
    "role",
    "token",
    "process",
    "pid",
    "host",
    "worker",
    "num_examples",
    "left",
    "client",
    "lease",
    b"\xff",
)


def spoken(value: bytes) -> dict[Any, Any]:
    return dict.fromkeys(FIELDS, value)


def read_everything(hand: ManualRun) -> str:
    """All that readers and repairers do, once; what a person saw of it."""
    store = hand.store
    state = hand.state
    shown = [json.dumps(view_model.parts(store, ""), allow_nan=False)]
    shown += [line for _, line in view_model.log(store, hand.run, "")]
    shown.append(
        json.dumps([vars_of(status) for status in run_status.clients(store)], allow_nan=False)
    )
    out = StringIO()
    console = Console(
        file=out, force_terminal=True, width=200, color_system=None, legacy_windows=False
    )
    follower = progress._EventFollower(store, hand.run, console, tick=True, since="0-0")
    follower.step()
    console.print(live_view.render(follower.snapshot))
    shown.append(out.getvalue())
    findings = doctor.clients.examine_workers(store) + doctor.clients.examine_queues(store)
    shown += [finding.what for finding in findings]
    shown.append(prometheus.text(prometheus.registry(store)).decode())
    Healer(store, hand.folder).heal(hand.run)
    store.control.clients.record_heartbeats()
    assert state.active
    return "\n".join(shown)


def vars_of(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def commands(hand: ManualRun) -> str:
    """What the reading commands print."""
    servers, shown = hand.store.servers, []
    where = [
        "--redis-url",
        servers.url,
        "--blob-url",
        servers.blob_url,
        "--state-dir",
        str(hand.folder),
    ]
    for words in (
        ["status"],
        ["status", "by-hand"],
        ["clients"],
        ["events", "by-hand"],
        ["doctor"],
    ):
        for form in ([], ["--json"]):
            done = CliRunner().invoke(cli, [*words, *form, *where], standalone_mode=False)
            assert done.exception is None or isinstance(done.exception, (MachineUnfit, click.ClickException)), done.exception  # fmt: skip
            shown.append(done.output)
    return "\n".join(shown)


def harmless(shown: str) -> bool:
    """Whether nothing in it is obeyed by a terminal, but what our own table draws."""
    return "\x1b[2J" not in shown and "\x07" not in shown and "\u202e" not in shown


@pytest.fixture
def hand(store: Store, tmp_path: Path) -> ManualRun:
    return ManualRun(store, tmp_path, "ab", 1000, "round.quorum=1")


def as_client(hand: ManualRun) -> None:
    """See that these keys are what a client's Redis user may write."""
    allowed = " ".join(acl.users("client", "a")[0].rules)
    for key in (
        keyspace.client("a"),
        keyspace.client_holder("a"),
        keyspace.client_events("a"),
        keyspace.worker("a_*"),
    ):
        assert f"~{key} " in allowed


def test_garbage_in_events_stops_no_process(hand: ManualRun) -> None:
    as_client(hand)
    redis = hand.store.control.redis
    for entry in hostile_events(hand.run):
        redis.xadd(keyspace.client_events("a"), entry)  # type: ignore[arg-type]
        last = hand.store.control.events.last(keyspace.client_events("a"))
        assert last is not None
        shown = json.dumps(view_model.parts(hand.store, ""), allow_nan=False)
        assert harmless(shown + run_status._doing(last))
    shown = read_everything(hand)
    assert harmless(shown)
    redis.xadd(keyspace.client_events("a"), {"event": json.dumps(EPOCH | {"run": hand.run, "round": 1, "event": ESCAPES})})  # fmt: skip
    assert harmless(commands(hand))
    redis.xadd(keyspace.client_events("a"), {"event": "{}"}, id=f"{2**64 - 1}-1")
    read_everything(hand)
    events = hand.store.control.events.newest(keyspace.client_events("a"), 1000)
    assert sum(event["event"] == "unreadable" for _, event in events) > 20


@pytest.mark.parametrize(
    "key", [keyspace.client("a"), keyspace.client_holder("a"), keyspace.worker("a_00")]
)
def test_garbage_in_a_hash_stops_no_process(hand: ManualRun, key: str) -> None:
    redis = hand.store.control.redis
    for number, value in enumerate(BYTES):
        redis.delete(key)
        redis.hset(key, mapping=spoken(value))
        shown = read_everything(hand)
        assert harmless(shown)
        if number % 6 == 5:
            assert harmless(commands(hand))
    mine = processes.process_identity().rpartition(":pid:")[0]
    redis.hset(key, "process", f"{mine}:pid:²:1")
    read_everything(hand)
    redis.hset(b"flq:worker:a_\xff", mapping={"role": "aggregator", "process": ""})
    read_everything(hand)


def test_a_clients_lease_is_no_aggregators(hand: ManualRun) -> None:
    control = hand.store.control
    control.redis.hset(
        keyspace.worker("a_00"), mapping={"role": "aggregator", "client": "b", "name": "x"}
    )

    assert not control.workers.is_role_alive(identifiers.AGGREGATOR)
    (worker,) = control.workers.living()
    assert (worker["name"], worker["role"], worker["client"]) == ("a_00", "client", "a")


@pytest.mark.parametrize(
    "part", ["rq:job", "rq:results", "rq:queue", "admitted", "chunk", "rq:executions"]
)
def test_garbage_in_jobs_results_admissions_and_chunks_stops_no_process(
    hand: ManualRun, part: str
) -> None:
    control, data = hand.store.control.redis, hand.store.data.redis
    ticket = dispatch.tickets(hand.store, hand.run, 1)["a"]
    writes: dict[str, Callable[[bytes], Any]] = {
        "rq:job": lambda value: control.hset(f"rq:job:{ticket.job}", mapping=dict.fromkeys(("status", "worker_name", "data", "origin"), value)),
        "rq:results": lambda value: control.xadd(f"rq:results:{ticket.job}", {"exc_string": value, "type": "2"}),
        "rq:queue": lambda value: control.rpush(f"rq:queue:{ticket.queue}", value),
        "rq:executions": lambda value: control.zadd(f"rq:wip:{ticket.queue}", {value: 1}),
        "admitted": lambda value: data.set(keyspace.admitted(hand.run, "a"), value),
        "chunk": lambda value: data.set(keyspace.chunk(keyspace.update_blob("a", hand.run, "d"), 0), value),
    }  # fmt: skip
    if part == "rq:results":
        control.hset(f"rq:job:{ticket.job}", "status", "failed")
    for value in BYTES[::2]:
        writes[part](value)
        assert harmless(read_everything(hand))
    assert harmless(commands(hand))
    hand.update("b", bound=8000)  # Less than both: it has to ask.
    hand.update("a")
    assert hand.work().startswith("committed: ")
