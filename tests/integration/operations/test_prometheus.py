"""What Prometheus reads, by its own parser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from fl_queue.protocol.events import Healed

pytest.importorskip("prometheus_client", reason="an extra")

from prometheus_client.parser import text_string_to_metric_families

from fl_queue.config import loading
from fl_queue.coordinator.rounds import runs
from fl_queue.metrics import merge_clients
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.reporting.exporters import prometheus
from fl_queue.store import Store, keyspace
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from tests.support.checkout import ROOT
from tests.support.recorded_rounds import abandoned, add_rounds, add_score, record, sums

DASHBOARD = ROOT / "config/grafana/fl-queue.json"
MANIFEST = Manifest((TensorSpec("weight", (10, 3), "parameter"),))


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of their names) -> value."""
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.fixture
def run(store: Store) -> str:
    """A run of two rounds, in a federation of one client that lives and one that is gone."""
    loaded = loading.load("mnist-3v7", ("update.codec=bfloat16",), {})
    state = runs.start_run(store, "scraped", loaded, 3)
    rejected = {"hospital-c": "invalid: NaN", "hospital-d": "stale: 2"}
    merged = merge_clients({"a": sums(6, 4), "b": {"num_examples": 2, "loss_sum": 1.0}})
    add_rounds(
        store,
        state.run_id,
        record(1, 0, rejected=rejected, validation=merged),
        abandoned(2, 1, missing=["b"], validation={}),
    )
    add_score(store, state.run_id, 1, 0.75)
    store.control.redis.hset(keyspace.run(state.run_id), "version", "1")
    store.control.redis.set(keyspace.manifest(state.run_id), MANIFEST.to_json())
    for number in range(2):
        store.control.events.add(state.run_id, Healed(round=1, what=f"{number}"))
    store.control.leases.hold(keyspace.client_holder("here"), "t", 60, {})
    store.control.clients.record_heartbeats()
    store.control.redis.zadd(keyspace.CLIENTS, {"gone": 1.0})
    store.data.redis.rpush(keyspace.results(state.run_id), b"x")
    store.control.redis.rpush(f"rq:queue:{keyspace.client_queue('gone')}", "a-job")
    return state.run_id


def test_everything_an_alarm_needs_is_there(store: Store, run: str) -> None:
    found = samples(prometheus.text(prometheus.registry(store)))

    assert found["flq_up",] == 1
    assert found["flq_rounds_total", "committed", "scraped"] == 1
    assert found["flq_rounds_total", "abandoned", "scraped"] == 1
    assert found["flq_updates_total", "scraped", "accepted"] == 3
    assert found["flq_updates_total", "scraped", "invalid"] == 1
    assert found["flq_updates_total", "scraped", "stale"] == 1
    assert found["flq_updates_total", "scraped", "missing"] == 1
    assert found["flq_updates_total", "scraped", "duplicate"] == 0
    size = codec.encoded_nbytes("bfloat16", MANIFEST)
    assert found["flq_update_bytes_total", "scraped"] == 3 * size == 3 * 60
    assert found["flq_healer_actions_total", "scraped"] == 2
    assert found["flq_round_seconds_count", "scraped"] == 2
    assert found["flq_round_seconds_sum", "scraped"] == pytest.approx(24.68)
    assert found["flq_round_seconds_bucket", "10", "scraped"] == 0
    assert found["flq_round_seconds_bucket", "30", "scraped"] == 2
    assert found["flq_clients", "alive"] == found["flq_clients", "gone"] == 1
    assert found["flq_queue_jobs", "flq-client-*"] == found["flq_results_waiting", "scraped"] == 1
    assert found["flq_run_state", "scraped", "training"] == 1
    assert found["flq_test_metric", "accuracy", "scraped"] == 0.75
    assert found["flq_validation_metric", "loss", "scraped"] == 0.5
    assert found["flq_validation_clients", "loss", "scraped"] == 2
    assert found["flq_validation_examples", "accuracy", "scraped"] == 10
    assert found["flq_redis_used_bytes", "data"] > 0
    assert found["flq_workers", "aggregator"] == found["flq_healer_alive",] == 0


def test_a_kept_registry_counts_what_is_new_and_nothing_twice(store: Store, run: str) -> None:
    kept = prometheus.registry(store)
    first = samples(prometheus.text(kept))
    assert samples(prometheus.text(kept)).items() >= {
        (key, value) for key, value in first.items() if key[0].endswith("_total")
    }

    add_rounds(store, run, record(3, 1))
    store.control.events.add(run, Healed(round=1, what="again"))

    assert samples(prometheus.text(kept)) == pytest.approx(
        samples(prometheus.text(prometheus.registry(store))), rel=0.2
    )
    assert samples(prometheus.text(kept))["flq_rounds_total", "committed", "scraped"] == 2
    assert samples(prometheus.text(kept))["flq_healer_actions_total", "scraped"] == 3


def test_the_dashboard_asks_for_metrics_there_are(store: Store, run: str) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
        for name in re.findall(r"flq_\w+", target["expr"])
    }

    assert len(asked) > 8
    assert asked <= {key[0] for key in samples(prometheus.text(prometheus.registry(store)))}


def test_the_command_answers_and_shows_when_redis_is_gone(
    private_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "fl_queue", "prometheus", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--state-dir", str(private_redis.state_dir)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.endswith("/metrics")

        def scraped() -> dict[tuple[str, ...], float]:
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert answer.headers["Content-Type"].startswith("text/plain")
                return samples(answer.read())

        assert scraped()["flq_up",] == 1
        private_redis.stop()
        assert scraped()["flq_up",] == 0
    finally:
        process.terminate()
        assert process.wait(20) == 130
