"""Computations of the benchmarks, and a smoke run of each: a benchmark that never runs is soon broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cases import attacks, scaling, transfer_lower_bound
from benchmarks.harness import attackers, document, table
from benchmarks.harness.federation import Timing, timings
from fl_queue.common.safe_json import dumps
from fl_queue.config import loading
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.store import Store, keyspace
from tests.support.checkout import ROOT


def test_floor_moves_thirteen_models_with_four_clients() -> None:
    assert transfer_lower_bound.bytes_moved(1000, 4) == 13_000
    assert transfer_lower_bound.bytes_moved(1000, 1) == 4000


def test_floor_measures_rounds_that_move_bytes(redis_urls: tuple[str, str]) -> None:
    found = transfer_lower_bound.measure(redis_urls[1], 2 * transfer_lower_bound.INLINE, 2, 2)

    assert len(found) == 2
    assert all(0 < seconds < 60 for seconds in found)


def test_percentile_is_a_value_with_that_share_below() -> None:
    values = [float(value) for value in range(100, 0, -1)]

    assert table.percentile(values, 0.99) == 100
    assert table.percentile(values, 0.5) == 51
    assert table.percentile([7.0], 0.99) == 7


def test_markdown_is_a_table() -> None:
    assert table.markdown(("a", "b"), [["x", 1], ["y", 2.5]]) == (
        "| a | b |\n|---|---|\n| x | 1 |\n| y | 2.5 |\n"
    )


def test_spread_is_median_least_most() -> None:
    assert table.spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0-3.0)"


def test_exponent_of_a_power_is_found() -> None:
    sizes = [1.0, 10.0, 100.0]

    fitted, last = scaling.exponents(sizes, [2 * size**1.5 for size in sizes])

    assert fitted == pytest.approx(1.5)
    assert last == pytest.approx(1.5)


def record(store: Store, run: str, *events: tuple[int, str, int]) -> None:
    """Events at given milliseconds: (stamp, what, round)."""
    # Ids whole: Redis 6.2 does not number those of one millisecond by itself.
    for index, (stamp, what, number) in enumerate(events):
        fields = {"event": dumps({"event": what, "round": number})}
        store.control.redis.xadd(keyspace.events(run), fields, id=f"{stamp}-{index}")


def test_timings_are_those_of_the_stamps(store: Store) -> None:
    run = "bench-0a0b0c"
    record(
        store,
        run,
        (1000, "round_opened", 1),
        (1200, "update_received", 1),
        (1500, "update_received", 1),
        (1700, "round_committed", 1),
        (1750, "round_opened", 2),
        (2000, "update_received", 2),
        (2500, "round_committed", 2),
    )

    first, second = timings(store, run)

    assert first == Timing(1, pytest.approx(0.5), pytest.approx(0.7), pytest.approx(0.75))
    # The last one has no next: its period ends with its commit.
    assert second == Timing(2, pytest.approx(0.25), pytest.approx(0.75), pytest.approx(0.75))


def test_a_round_that_did_not_commit_has_no_timing(store: Store) -> None:
    run = "bench-0a0b0d"
    record(store, run, (1000, "round_opened", 1), (1200, "update_received", 1))

    assert timings(store, run) == []


@pytest.mark.parametrize("name", ["exact_sum", "secure_rounds", "startup", "trees"])
def test_benchmark_prints_a_table(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.cases.{name}", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith("|---|")
    assert "nan" not in done.stdout


def test_every_benchmark_exists() -> None:
    missing = [
        benchmark.name
        for benchmark in document.BENCHMARKS
        if not (ROOT / "benchmarks/cases" / f"{benchmark.name}.py").is_file()
    ]

    assert missing == []


def test_a_failing_benchmark_is_reported_in_its_place() -> None:
    good = document.Outcome(document.BENCHMARKS[0], "python -m a", "| 1 |", 2.0, True)
    bad = document.execute(document.Benchmark("nothing", "No such thing"), quick=True, data=None)

    text = document.document([bad, good], quick=False)

    assert not bad.is_good
    assert "No module named" in text
    assert text.index("## No such thing") < text.index("**Failed**") < text.index("| 1 |")


def test_a_benchmark_that_hangs_is_ended() -> None:
    outcome = document.execute(document.Benchmark("exact_sum", ""), True, None, patience_s=0.05)

    assert not outcome.is_good
    assert "ended after 0.05 s" in outcome.text


def attacked(rule: attacks.Rule, attack: str) -> float:
    """What nine honest clients that send 1.0 and two hostile ones make of 0.0."""
    manifest = Manifest((TensorSpec("w", (1,), "parameter"),))
    loaded = loading.load(None, (*rule.settings(2), "aggregation.weighting=uniform"), {})
    act, _ = attackers.ATTACKS[attack]
    rng = np.random.default_rng(1)
    honest = [{"w": np.full(1, 1 + rng.normal(0, 0.01), np.float32)} for _ in range(9)]
    hostile = [act(honest[0], attackers.Round(honest, 2, loaded.aggregation.limit))] * 2
    body = attacks.merged(manifest, loaded, bytes(4), [*hostile, *honest], 1)
    return float(tensor_layout.views(manifest, body)["w"][0])


@pytest.mark.parametrize("attack", ["sign flip", "at the limit", "IPM 10"])
def test_attacks_carry_the_mean_away_and_no_robust_rule(attack: str) -> None:
    mean, *rules = attacks.RULES

    assert attacked(mean, "none") == pytest.approx(1.0, abs=0.05)
    assert abs(attacked(mean, attack) - 1.0) > 1.0
    found = {rule.name: round(attacked(rule, attack), 1) for rule in rules}
    assert found == {rule.name: 1.0 for rule in rules}


def test_a_little_is_enough_uses_the_deviations_of_its_paper() -> None:
    # Its example: 50 workers, 24 of them corrupt, two supporters needed; z = 1.43.
    assert attackers.deviations(50, 24) == pytest.approx(1.43, abs=0.005)
    honest = [{"w": np.array([value, 2.0], np.float32)} for value in (-1.0, 1.0) for _ in range(13)]

    sent = attackers.a_little(honest[0], attackers.Round(honest, 24, 64.0))

    assert sent["w"] == pytest.approx([-1.43, 2.0], abs=0.005)


def test_min_max_goes_as_far_as_it_can_and_stays_among_the_honest() -> None:
    rng = np.random.default_rng(2)
    shapes = {"a": (3, 4), "b": (50,)}
    honest = [
        {name: rng.normal(0.1, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(9)
    ]

    sent = attackers.min_max(honest[0], attackers.Round(honest, 2, 64.0))

    def away(one: attackers.Arrays, other: attackers.Arrays) -> float:
        return float(np.sqrt(sum(np.sum((one[name] - other[name]) ** 2) for name in shapes)))

    assert {name: values.shape for name, values in sent.items()} == shapes
    between = max(away(one, other) for one in honest for other in honest)
    assert max(away(sent, update) for update in honest) == pytest.approx(between, rel=1e-5)
    mean = np.mean([update["b"] for update in honest], axis=0)
    assert (sent["b"] < mean).all()


def test_runs_that_are_done_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[int, str, str]] = []

    class Trainer:
        def __init__(self, partition: str, data: Path | None, seed: int) -> None:
            pass

        def run(self, rule: attacks.Rule, hostile: int, attack: str, rounds: int) -> float:
            ran.append((hostile, rule.name, attack))
            if len(ran) == 4:
                raise KeyboardInterrupt
            return 80.0 if attack == "none" else 60.0 + len(ran)

    monkeypatch.setattr(attacks, "Trainer", Trainer)
    path, names = tmp_path / "done.jsonl", ["none", "ALIE"]
    wanted = attacks.plan(["iid"], attackers.HOSTILE, names, [0], 4)
    with pytest.raises(KeyboardInterrupt):
        attacks.measure(attacks.Results(path), wanted, None)
    attacks.measure(attacks.Results(path), wanted, None)

    # The fourth was interrupted, and is the only one that was begun twice.
    assert ran[3] == ran[4]
    assert len(ran) == len(wanted) + 1 == len(path.read_text().splitlines()) + 1
    assert {rule for hostile, rule, _ in ran if hostile == 4} == {
        rule.name for rule in attacks.RULES if rule.strategy != "bulyan"
    }
    assert f"1 of {len(wanted) - 3}: iid, 2 hostile" in capsys.readouterr().out
    text = attacks.document(attacks.Results(path), ["iid"], attackers.HOSTILE, names, 4, [0])
    assert "| mean (`fedavg`, uniform) | 80.0 | 62.0 |" in text
    assert "| mean (`fedavg`, uniform) | ALIE (-18) |" in text


def test_attackers_train_on_the_data_that_is_named(tmp_path: Path) -> None:
    assert attacks.Trainer("iid", tmp_path, 0).context(1, 2).data_dir == str(tmp_path)


def test_hostile_labels_are_turned_round() -> None:
    loaded = loading.load(None, ("run.task=mnist-2nn",), {})
    flipped = attacks.Flipped(loaded)

    assert flipped.target_of(np.arange(10)).tolist() == list(range(9, -1, -1))


@pytest.mark.slow  # A minute of training on a busy machine.
def test_the_table_of_attacks_is_written(tmp_path: Path) -> None:
    output = tmp_path / "attacks.md"
    command = [sys.executable, "-m", "benchmarks.cases.attacks", "--rounds", "1"]
    command += ["--seeds", "0", "1", "--attacks", "at the limit", "--hostile", "2"]
    subprocess.run([*command, "--output", str(output)], cwd=ROOT, check=True, timeout=300)

    lines = output.read_text().splitlines()
    head = lines.index("| rule | none | at the limit |")
    rows = [line.split("|") for line in lines[head + 2 : head + 2 + len(attacks.RULES)]]
    mean, *others = (float(row[3].split(" ± ")[0]) for row in rows)
    assert all(accuracy > mean for accuracy in others)
    assert "over the seeds 0, 1" in output.read_text()


def test_a_cell_is_the_mean_and_spread_over_seeds() -> None:
    assert attacks.cell([90.0, 91.0, 92.0]) == "91.0 ± 1.0"
    assert attacks.cell([90.04]) == "90.0"
