"""The harness of ``make reproduce``: the metric, what is measured when, and the table. Few runs here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.reproduce import document
from benchmarks.reproduce.__main__ import measure, next_job
from benchmarks.reproduce.bench import Bench, check_data
from benchmarks.reproduce.crossing import rounds_to
from benchmarks.reproduce.jobs import Job, Measured, Results
from benchmarks.reproduce.plan import ALGORITHMS, FULL, QUICK, TARGETS, Target, all_jobs
from fl_queue.errors import DataError

TARGET = Target("t", "2NN", {"train.learning_rate": 0.1}, 0.97, 87, "92 in table 4", (0,))


def curve(*accuracies: float) -> Measured:
    """Versions from 0, ten seconds each."""
    by_version = dict(enumerate(accuracies))
    seconds = {version: 10.0 * version for version in by_version if version}
    return Measured(by_version, by_version, seconds, load=2.6)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results")


def put_all(results: Results, quick: bool, accuracy: float) -> None:
    for job in all_jobs(results, quick):
        versions = dict.fromkeys(
            range(0, job.rounds + 1, job.settings["run.evaluate_every"]), accuracy
        )
        results.put(job, Measured(versions, versions, {v: 2.0 * v for v in versions}))


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        ({0: 0.1, 1: 0.5, 2: 0.9, 3: 0.95}, 1.5),
        # Best so far: the fall to 0.5 is none, and 0.7 is half way from 0.6 to 0.8.
        ({0: 0.1, 1: 0.6, 2: 0.5, 3: 0.8}, 2.5),
        ({1: 0.4, 2: 0.7}, 2.0),
        # The rounds between were not tested.
        ({10: 0.6, 20: 0.8}, 15.0),
        ({5: 0.9}, 5.0),
        ({1: 0.6, 2: 0.69}, None),
        ({}, None),
    ],
)
def test_rounds_by_linear_interpolation_of_the_best_so_far(
    accuracy: dict[int, float], expected: float | None
) -> None:
    assert rounds_to(accuracy, 0.7) == (None if expected is None else pytest.approx(expected))


def test_no_row_gets_more_rounds_than_were_published() -> None:
    assert [(t.accuracy, t.jobs[0].rounds) for t in TARGETS if t.jobs] == [
        (0.97, 34), (0.97, 87), (0.97, 664), (0.99, 20),
    ]  # fmt: skip


def test_a_half_finished_table_is_gone_on_with(results: Results) -> None:
    first, second = TARGETS[0].jobs[0], TARGETS[1].jobs[0]
    assert next_job(results, False) == first
    results.put(first, curve(0.1, 0.98))
    assert next_job(results, False) == second
    assert results.get(first) == curve(0.1, 0.98)
    # A file that is damaged has not been measured.
    (file,) = (path for path in results._folder.iterdir() if path.name.startswith(first.name))
    file.write_text(file.read_text()[:-20])
    assert next_job(results, False) == first


def test_a_job_with_other_settings_is_another_job(results: Results) -> None:
    job = Job("a", {"train.epochs": 1}, 5, 0.9)
    results.put(job, curve(0.9))
    for other in (
        Job("a", {"train.epochs": 2}, 5, 0.9),
        Job("a", {"train.epochs": 1}, 6, 0.9),
        Job("a", {"train.epochs": 1}, 5),
    ):
        assert results.get(other) is None


def test_learning_rates_are_chosen_by_validation_alone(results: Results) -> None:
    fedavg, fedadam = ALGORITHMS[0], ALGORITHMS[4]
    assert (
        FULL.tuning(results, fedadam) == {}
    )  # The clients' rate is FedAvg's, and there is none yet.
    for value, job in FULL.tuning(results, fedavg).items():
        assert FULL.choose(results, fedavg) is None
        assert FULL.jobs(results, fedavg) == []
        validation = {10: 0.8 if value == 0.215 else 0.9}  # Two are as good.
        results.put(job, Measured({10: 1.0 - 0.1 * value}, validation, {10: 1.0}))
    assert FULL.choose(results, fedavg) == 0.464
    results.put(FULL.tuning(results, fedavg)[1.0], Measured({}, {1: 0.99}, {}))  # It diverged.
    assert FULL.choose(results, fedavg) == 0.464
    assert {job.settings["train.learning_rate"] for job in FULL.jobs(results, fedavg)} == {0.464}
    assert {job.settings["run.seed"] for job in FULL.jobs(results, fedavg)} == {1, 2, 3}
    tuned = FULL.tuning(results, fedadam)
    assert [job.settings["train.learning_rate"] for job in tuned.values()] == [0.464] * 3
    assert [job.settings["strategy.server_learning_rate"] for job in tuned.values()] == list(tuned)


def test_the_paper_comes_first_and_further_seeds_last(results: Results) -> None:
    put_all(results, False, 0.5)
    order = [job.name for job in all_jobs(results, False)]
    assert order[:4] == [target.jobs[0].name for target in TARGETS if target.jobs]
    assert order[4:8] == ["tune-fedavg"] * 3 + ["fedavg-s1"]
    assert order[-1] == TARGETS[1].jobs[2].name
    assert len({job.key for job in all_jobs(results, False)}) == len(order)


def test_what_does_not_fit_into_the_hour_is_measured_when_asked_for(results: Results) -> None:
    put_all(results, False, 0.5)
    assert next_job(results, False) is None
    cnn = TARGETS[3]
    assert next_job(results, False, more=True) == cnn.job(1)
    rows = document.targets_table(results, [cnn]).count("CNN")
    results.put(cnn.job(1), curve(0.1, 0.98))
    assert document.targets_table(results, [cnn]).count("CNN") == rows + 1


def test_a_row_has_the_outcome(results: Results) -> None:
    (job,) = TARGET.jobs
    assert "| | not measured yet | | |" in table(results)
    results.put(job, curve(0.1, 0.96, 0.98))
    assert "| 2NN | 97 % | 0.1 | 0 | 87 (92 in table 4) | 1.5 | reached | 20 | 3 |" in table(
        results
    )
    results.put(job, curve(0.1, 0.96, 0.95))
    assert "| | not reached: 96.00 % after 2 | 20 | 3 |" in table(results)
    assert document.missed(results, [TARGET]) == ["2NN"]


def table(results: Results) -> str:
    return document.targets_table(results, [TARGET]).replace("|  ", "| ")


def test_algorithms_have_mean_and_spread(results: Results) -> None:
    put_all(results, False, 0.9)
    jobs = FULL.jobs(results, ALGORITHMS[0])
    for job, last in zip(jobs, (0.97, 0.98, 0.99), strict=True):
        results.put(job, Measured({10: 0.96, 20: last}, {}, {20: 30.0}))
    row = next(
        line for line in document.render(results).splitlines() if line.startswith("| FedAvg |")
    )
    assert row.endswith("| 0.215, 0.464, 1 |  | 1, 2, 3 | 96.00 ± 0.00 | 98.00 ± 1.00 | 30 |  |")


def test_what_is_complete_is_rendered_without_any_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_all(Results(tmp_path / "results"), True, 0.98)
    assert measure(tmp_path, "/nowhere", True, None) == 0
    text = capsys.readouterr().out
    assert "| reached |" in text
    assert "not measured yet" not in text
    assert "| FedYogi | 0.464 | 0.03 |" in text
    put_all(Results(tmp_path / "other/results"), True, 0.5)
    assert measure(tmp_path / "other", "", True, tmp_path / "out.md") == 1
    assert "not reached: 50.00 % after 87" in (tmp_path / "out.md").read_text()


def test_quick_measures_what_full_measures_too(results: Results) -> None:
    assert next_job(results, True) in [job for target in TARGETS for job in target.jobs]
    assert [QUICK.choose(results, each) for each in ALGORITHMS[:5]] == [
        0.464, 0.464, 0.215, 0.464, 0.03,
    ]  # fmt: skip


def test_data_that_is_not_there_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        check_data(str(tmp_path / "none"), "full")
    check_data("", "excerpt")


@pytest.mark.slow  # Real workers, started twice.
def test_a_run_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    settings = {"data.source": "excerpt", "run.evaluate_every": 1, "train.batch_size": 50}
    job = Job("interrupted", settings, 6)
    with Bench(tmp_path, "") as bench:
        run = bench._begin(job, None)
        assert any(run.state.version and run.state.version >= 2 for _ in patiently())
    with Bench(tmp_path, "") as bench:
        before = bench._known(job)
        assert before is not None
        assert before.active
        measured = bench.measure(job)
        after = bench._known(job)
        assert after is not None
        assert after.run_id == before.run_id
        bench.forget(job)
        assert bench._known(job) is None
    assert sorted(measured.accuracy) == list(range(7))
    assert sorted(measured.seconds) == list(range(1, 7))
    with Bench(tmp_path / "whole", "") as bench:
        assert bench.measure(job).accuracy == measured.accuracy


def patiently(seconds: float = 60.0) -> Iterator[None]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield
        time.sleep(0.1)


@pytest.mark.slow  # Real workers.
def test_a_run_ends_when_it_crosses_its_target(tmp_path: Path) -> None:
    settings = {"data.source": "excerpt", "run.evaluate_every": 1, "train.learning_rate": 0.2}
    job = Job("crossing", settings, 60, 0.6)
    with Bench(tmp_path, "") as bench:
        measured = bench.measure(job)
        again = bench.measure(job)
    assert 0 < (measured.rounds_to(0.6) or 0) < 40
    assert measured.last < 60
    assert again.accuracy == measured.accuracy
