"""Everything that shows a run, of a Redis in which an attacker wrote the names, reasons and events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fl_queue.cli import cli
from fl_queue.store import Store, keyspace
from tests.integration.conftest import run
from tests.support.hostile_text import EVIL, OBEYED
from tests.support.recorded_rounds import add_rounds, add_score, record

__all__ = ["run"]  # A fixture.


@pytest.fixture
def hostile(run: str, store: Store) -> str:
    """A run whose every word is an attack, as an older version or a stranger left it."""
    for number, evil in enumerate(EVIL, 1):
        made = record(number, number - 1)
        sums = {"num_examples": 10, **made.train, f"{evil}_sum": 1.0}
        validation = {"num_examples": 10, **made.validation, f"{evil}_sum": 1.0}
        per_client = {"a": {"loss": 0.5, evil: 0.5}, evil: {"loss": 0.5}}
        add_rounds(
            store, run, replace(
                made, train=sums, validation=validation, reason=evil, client_validation=per_client,
                rejected={evil: f"{evil}: {evil}"},
            ),
        )  # fmt: skip
        add_score(store, run, number, 0.5)
        store.control.evaluations.set(
            run, number, {"state": "done", "finished": {"loss": 0.5, evil: 0.5}}
        )
        for kind in ("healed", "update_rejected", "round_abandoned", "site_differs", evil):
            event = {"event": kind, "round": 1, "client": evil, "what": evil, "reason": evil}
            store.control.redis.xadd(keyspace.events(run), {"event": json.dumps(event)})
        store.control.redis.xadd(
            keyspace.client_events("a"), {"event": json.dumps({"event": evil})}
        )
        for field in ("num_examples", "host", "pid", "worker", "paused"):
            store.control.redis.hset(keyspace.client("a"), field, evil)
    store.control.redis.hset(keyspace.run(run), "reason", EVIL[2] + EVIL[0])
    return "lawful"


def commands(run: str, folder: Path) -> Iterator[list[str]]:
    """Each command that shows something of a run."""
    for name in ("status", "history", "events", "compare"):
        yield [name, run]
        yield [name, run, "--json"]
    yield ["history", run, "--csv"]
    yield ["clients"]
    yield ["clients", "--json"]
    yield ["status"]
    yield ["compare", run, "--metric", EVIL[0]]
    yield ["plot", run, "-o", str(folder / "curve.png")]
    for kind in ("csv", "jsonl", "tensorboard", "mlflow"):
        yield ["metrics", run, str(folder / kind), "--to", kind]
    yield ["inspect", run, "1", "a"]
    yield ["export", run, "-o", EVIL[2]]
    yield ["cancel", run]
    yield ["watch", run]


def test_no_command_fails_or_hands_on_what_a_terminal_obeys(
    hostile: str, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    where = {"FLQ_REDIS_URL": redis_urls[0], "FLQ_REDIS_BLOB_URL": redis_urls[1]}
    runner = CliRunner(env={**where, "FLQ_STATE_DIR": str(tmp_path / "state")})
    output = ""
    for line in commands(hostile, tmp_path):
        found = runner.invoke(cli, line)
        expected = {"export": 1, "inspect": 1, "watch": 1}.get(line[0], 0)
        assert found.exit_code == expected, (line, found.exception)
        text = found.output + str(found.exception if expected else "")
        if not expected:
            assert not any(sequence in found.output for sequence in OBEYED), line
        output += text
        if line[-1] == "--json" and line[0] != "events":
            json.loads(found.stdout)
    assert "\\x1b]0;pwned" in output
    assert "\\u202edrowssap" in output
