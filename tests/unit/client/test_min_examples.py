"""No training with, and no statistic of, fewer examples than a site allows (--min-examples)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl_queue.cli.worker import idle_parts, worker
from fl_queue.client import local_update, preflight
from fl_queue.client.resident import Resident
from fl_queue.client.site import MIN_EXAMPLES, WorkerSettings
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import eligibility
from fl_queue.errors import ConfigError
from fl_queue.experiments import launching
from fl_queue.metrics import finish
from fl_queue.protocol.trainer_messages import Answer
from fl_queue.store import Store
from fl_queue.tasks import calls
from tests.support.in_process import computed_here  # noqa: F401
from tests.support.manual_run import ManualRun
from tests.support.site_jobs import SiteJob
from workers import client as worker_client

ROWS = 40
TABLE = "age,weight,label\n" + "".join(f"{20 + i},{60 + i}.5,{i % 2}\n" for i in range(ROWS))
STATE: Any = SimpleNamespace(name="run", run_id="run-abc123", segment=0)
#: Ways in which a config aims at one row, or at two.
AIMED = [
    {"partition": "iid", "shares": ROWS, "validation_fraction": 0.0},
    {"partition": "site", "train_per_class": [1, 1]},
    {"partition": "iid", "shares": 2, "train_per_class": [1, 2], "validation_per_class": [9, 9]},
    {"partition": "iid", "shares": 4, "validation_fraction": 0.9},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text(TABLE)
    return tmp_path


def config_of(**data: Any) -> RunConfig:
    return RunConfig.from_dict({"run": {"task": "csv"}, "data": {"partition": "site"} | data})


def job_of(config: RunConfig, site: WorkerSettings) -> SiteJob:
    """A training job of a client's worker."""
    return SiteJob(config, site)


def trained(job: SiteJob, on_epoch: Any = lambda *reported: None) -> local_update.TrainingResult:
    manifest, arrays = local_update.initial_model(job.task(), 0)
    base = {name: array.copy() for name, array in arrays.items()}
    return local_update.train_update(job.task(), manifest, base, job.context(), on_epoch)


@pytest.mark.parametrize("aimed", AIMED)
def test_a_config_that_aims_at_single_rows_gets_nothing(data: Path, aimed: dict[str, Any]) -> None:
    config, site = config_of(**aimed), WorkerSettings(data_dir=str(data), client="a")
    with pytest.raises(ConfigError, match="10 examples") as caught:
        trained(job_of(config, site))
    assert (caught.value.field, caught.value.public) == ("--min-examples", caught.value.reason)
    found = preflight.read_facts(site, STATE, config, Resident(site).handle)
    assert "--min-examples" in found["problem"]
    assert found["cannot"] == "yes"
    with pytest.raises(ConfigError, match="10 examples"):
        calls.given_data(job_of(config, site).task(), job_of(config, site).context())


def test_a_site_that_requires_secure_rounds_reports_no_numbers_of_its_files(data: Path) -> None:
    def ask(*_: Any) -> Answer:
        return Answer(outcome="done", facts={"files": "1 hidden", "classes": "2: 0, 1"})

    site = WorkerSettings(data_dir=str(data), client="a")
    assert "files" in preflight.read_facts(site, STATE, config_of(), ask)
    secure = replace(site, require_secure=True)
    assert preflight.read_facts(secure, STATE, config_of(), ask) == {"classes": "2: 0, 1"}


def test_what_it_would_have_got_is_a_row(data: Path) -> None:
    found = trained(
        job_of(config_of(**AIMED[0]), WorkerSettings(data_dir=str(data), min_examples=1))
    )
    assert found.num_examples == 1
    age, weight = found.tensors["feature_mean"].tolist()
    assert f"{age:g},{weight:g}," in TABLE


def test_ten_rows_are_enough(data: Path) -> None:
    config = config_of(partition="iid", shares=4, validation_fraction=0.0)
    assert (
        trained(job_of(config, WorkerSettings(data_dir=str(data)))).num_examples
        == MIN_EXAMPLES
        == 10
    )
    with pytest.raises(ConfigError, match="11 examples"):
        trained(job_of(config, WorkerSettings(data_dir=str(data), min_examples=11)))


def test_metrics_of_few_examples_stay_at_the_site(data: Path) -> None:
    reported: list[Mapping[str, float]] = []

    def metrics_of(held: float) -> Mapping[str, float]:
        reported.clear()
        job = job_of(config_of(validation_fraction=held), WorkerSettings(data_dir=str(data)))
        found = trained(job, lambda number, count, finished: reported.append(finished))
        manifest, arrays = local_update.initial_model(job.task(), 0)
        base = {name: array.copy() for name, array in arrays.items()}
        closing = local_update.evaluate_client(job.task(), manifest, base, job.context())
        assert finish(closing).keys() == finish(found.metrics).keys()
        assert closing["num_examples"] == found.metrics["num_examples"]
        return found.metrics

    assert metrics_of(0.2) == {"num_examples": 0}  # 8 rows.
    assert all(not finished for finished in reported)
    assert reported
    assert metrics_of(0.25)["num_examples"] == 10
    assert all("accuracy" in finished for finished in reported)


def test_a_personal_models_metrics_stay_too(data: Path) -> None:
    config = config_of(validation_fraction=0.2)
    config = replace(config, train=replace(config.train, finetune_epochs=1))
    found = trained(job_of(config, WorkerSettings(data_dir=str(data)))).metrics
    assert {key: value for key, value in found.items() if value} == {}


def test_who_trains_its_own_data_may_take_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launching.with_data(WorkerSettings(), [config_of()]).min_examples == 1
    assert (
        WorkerSettings().min_examples
        == WorkerSettings.from_environ({}).min_examples
        == MIN_EXAMPLES
    )
    started: list[Any] = []
    monkeypatch.setattr("os.execve", lambda *command: started.append(command[2]))
    for run in (
        ["client", "--client", "a"],
        ["client", "--client", "a", "--min-examples", "50"],
        ["pool"],
    ):
        worker(run, standalone_mode=False)
    assert [one["FLQ_SITE_MIN_EXAMPLES"] for one in started] == ["10", "50", "1"]
    assert WorkerSettings.from_environ(started[1]).min_examples == 50
    with pytest.raises(ConfigError, match=r"--max-examples: .*--min-examples"):
        worker(["client", "--client", "a", "--max-examples", "9"], standalone_mode=False)


def test_the_client_is_left_out_of_the_run_with_the_reason(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ManualRun(store, tmp_path, ["a", "b"], 8, "data.train_per_class=[1,2]")
    site = WorkerSettings(store.servers.url, store.servers.blob_url, tmp_path / "site", "b")
    for name, value in site.to_environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(
        "RQ_JOB_ID", store.control.rounds.jobs(run.run, run.round.number)["b"]["job"]
    )

    assert worker_client.train(run.run, run.round.number) == "pushed"

    run.update("a")
    run.work()
    assert run.record.rejected["b"].startswith("failed: --min-examples: ")
    found = eligibility.decide(store, run.state, run.config, "train")
    assert found is not None
    assert list(found.unable) == ["b"]
    assert "ConfigError" in found.out["b"]


@pytest.mark.parametrize(
    ("device", "threads", "cores", "has_gpu", "line"),
    [
        ("cpu", 1, 1, False, ""),
        ("cuda", 1, 32, True, ""),
        (
            "cpu",
            1,
            32,
            False,
            "trains on the CPU with --threads 1; here are 32 cores, for --threads",
        ),
        (
            "cpu",
            4,
            4,
            True,
            "trains on the CPU with --threads 4; here are an NVIDIA GPU, for --device cuda",
        ),
        (
            "cpu",
            1,
            8,
            True,
            "trains on the CPU with --threads 1; here are an NVIDIA GPU, for --device cuda and 8 cores, for --threads",
        ),
    ],
)
def test_a_worker_names_what_it_leaves_idle(
    device: str, threads: int, cores: int, has_gpu: bool, line: str
) -> None:
    assert idle_parts(device, threads, cores, has_gpu) == line
