"""What a config may read at a site: files of the site's own data folder, and nothing else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl_queue.client import preflight
from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, DataError, FLQueueError
from fl_queue.experiments import launching
from fl_queue.protocol.trainer_messages import Call
from fl_queue.reporting import doctor
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task
from fl_queue.training.sgd import size_of
from tests.support.images import save_image
from tests.support.site_jobs import SiteJob

SECRET = "TOP-SECRET-LINE"
TABLE = "age,weight,label\n" + "".join(f"{40 + i},{60 + i}.5,{i % 2}\n" for i in range(24))
STATE: Any = SimpleNamespace(name="run", run_id="run-abc123", segment=0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A site's data folder; beside it, a private file."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train.csv", "test.csv"):
        (folder / name).write_text(TABLE)
    (tmp_path / "notes.txt").write_text(f"{SECRET},label\n1,0\n2,1\n")
    (folder / "below").mkdir()
    (folder / "below" / "train.csv").write_text(TABLE)
    (folder / "inner.csv").symlink_to(folder / "below" / "train.csv")
    (folder / "link.csv").symlink_to(tmp_path / "notes.txt")
    (folder / "out").symlink_to(tmp_path)
    (folder / "environ").symlink_to("/proc/self/environ")
    return folder


def config_of(task_name: str = "csv", /, **sections: dict[str, Any]) -> RunConfig:
    raw = {"run": {"task": task_name}, "data": {"partition": "site"}}
    sections["data"] = raw["data"] | sections.get("data", {})
    return RunConfig.from_dict(raw | sections)


def unchecked(option: str, value: Any, task: str = "csv", **options: Any) -> RunConfig:
    """A config as any process with write access to Redis can make it: the option is not checked."""
    made = config_of(task, task=options)
    return replace(made, task={**made.task, option: value})


def read(config: RunConfig, folder: Path | str) -> int:
    """What a client's job does first; how many samples it reads."""
    task = load_task(config.run.task, config, (), str(folder))
    context = ClientContext.of(config, client="a", run="run", round_number=1, data_dir=str(folder))
    data = task.client_data(context)
    return size_of(data.train) + size_of(data.validation)


def read_test(config: RunConfig, folder: Path | str) -> int:
    """What the evaluator's job does first."""
    found = load_task(config.run.task, config, (), str(folder)).test_data(str(folder))
    assert found is not None
    return size_of(found)


LEAVING = ["/etc/passwd", "/proc/self/environ", "../notes.txt", "below/../../notes.txt", "link.csv",
           "out/notes.txt", "environ", "..", "", ".", "a\0b"]  # fmt: skip


@pytest.mark.parametrize("name", LEAVING)
@pytest.mark.parametrize("option", ["file", "test_file"])
def test_a_config_reads_no_file_outside_of_the_sites_folder(
    data: Path, option: str, name: str
) -> None:
    config = unchecked(option, name)
    with pytest.raises(FLQueueError) as caught:
        read(config, data) if option == "file" else read_test(config, data)
    assert f"task.{option}" in str(caught.value)
    assert "data folder" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "FLQ_TEST_SESSION" not in str(caught.value)


def test_an_absolute_path_into_the_folder_is_refused_too(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.file: .*data folder"):
        read(unchecked("file", str(data / "train.csv")), data)


@pytest.mark.parametrize("name", ["train.csv", "below/train.csv", "inner.csv"])
def test_a_file_of_the_folder_is_read_wherever_it_lies_below(data: Path, name: str) -> None:
    config = config_of(task={"file": name, "test_file": name})
    assert read(config, data)
    assert read_test(config, data)


def test_a_folder_that_is_a_link_itself_is_the_sites_choice(data: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(data)
    assert read(config_of(), tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["/etc/passwd", "../notes.txt", "a/../../b", ""])
@pytest.mark.parametrize("option", ["file", "test_file"])
def test_start_round_refuses_it_before_any_site_is_asked(option: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"task\.{option}: .*data folder"):
        config_of(task={option: name})


def test_classes_of_images_are_folders_of_the_site(tmp_path: Path) -> None:
    for name in ("data/train/cat", "data/train/dog", "private/xray"):
        save_image(tmp_path / name / "1.png", (180, 20, 20))
    data = tmp_path / "data"
    for name in (
        "../../private",
        "../../private/xray",
        str(tmp_path / "private"),
        "cat/../dog",
        "",
        ".",
    ):
        config = unchecked("classes", f"cat,dog,{name or ' .'}", "image-folder")
        with pytest.raises(FLQueueError, match=r"task\.classes"):
            read(config, data)
    (data / "train" / "owl").symlink_to(tmp_path / "private")
    for classes in ("cat,dog,owl", ""):
        with pytest.raises(DataError, match="link"):
            read(unchecked("classes", classes, "image-folder"), data)


def test_an_image_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    for name in ("data/train/cat", "data/train/dog", "private"):
        save_image(tmp_path / name / "1.png", (180, 20, 20))
    data = tmp_path / "data"
    (data / "train" / "cat" / "2.png").symlink_to(data / "train" / "dog" / "1.png")
    assert read(config_of("image-folder"), data)
    (data / "train" / "cat" / "3.png").symlink_to(tmp_path / "private" / "1.png")
    with pytest.raises(DataError, match="link"):
        read(config_of("image-folder"), data)
    (data / "train" / "cat" / "3.png").unlink()
    (data / "train" / "cat" / "more").symlink_to(tmp_path / "private")
    task = load_task("image-folder", config_of("image-folder"), (), str(data))
    context = ClientContext.of(
        config_of("image-folder"), client="a", run="run", round_number=1, data_dir=str(data)
    )
    files = {path for path, _ in task.client_data(context).train.items}  # type: ignore[attr-defined]
    assert not any("private" in os.path.realpath(path) for path in files)


def test_files_of_mnist_are_the_sites(data: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"\0")
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (data / name).symlink_to(tmp_path / "elsewhere")
    config = config_of("mnist-2nn", data={"source": "full"})
    with pytest.raises(DataError, match="link"):
        read(config, data)


# The folder itself


def assigned(config: RunConfig, site: WorkerSettings) -> SiteJob:
    """A training job of a client's worker."""
    return SiteJob(config, site)


@pytest.mark.parametrize("task", ["csv", "image-folder", "mnist-2nn"])
def test_a_config_chooses_no_folder_of_a_site(data: Path, task: str) -> None:
    options = {"features": "age,weight"} if task == "csv" else {}
    options = {"classes": "a,b"} if task == "image-folder" else options
    config = config_of(task, data={"dir": str(data), "source": "full"}, task=options)
    job = assigned(config, WorkerSettings())
    assert job.task().config.data.dir == ""
    with pytest.raises(ConfigError, match=r"data\.dir.*--data-from-config"):
        job.context()
    found = preflight.read_facts(WorkerSettings(), STATE, config, Resident(WorkerSettings()).handle)
    assert "--data-from-config" in found["problem"]
    assert found["cannot"] == "yes"


def test_the_evaluator_takes_no_folder_of_a_config_either(data: Path) -> None:
    config = config_of(data={"dir": str(data)})
    answer = Resident(WorkerSettings()).handle(SiteJob(config).request(Call.score), print)
    assert answer.outcome == "failed"
    assert answer.failure is not None
    assert "--data-from-config" in answer.failure.public
    assert answer.failure.field == "data.dir"


def test_a_site_may_leave_the_folder_to_the_config(data: Path) -> None:
    config = config_of(data={"dir": str(data)})
    job = assigned(config, WorkerSettings(data_from_config=True))
    assert job.context().data_dir == str(data)
    assert job.task().client_data(job.context())
    both = assigned(config, WorkerSettings(data_from_config=True, data_dir=str(data / "below")))
    assert both.context().data_dir == both.task().config.data.dir == str(data / "below")


def test_the_option_reaches_the_worker() -> None:
    for chosen in (True, False):
        site = WorkerSettings(data_from_config=chosen)
        assert WorkerSettings.from_environ(site.to_environ()).data_from_config is chosen
    assert WorkerSettings.from_environ({}).data_from_config is False


def test_a_run_of_ones_own_takes_the_folder_of_its_config(data: Path) -> None:
    one, other = config_of(data={"dir": str(data)}), config_of(data={"dir": "/other"})
    assert launching.with_data(WorkerSettings(), [one, one]) == WorkerSettings(
        data_dir=str(data), min_examples=1
    )
    assert launching.with_data(WorkerSettings(), [config_of()]) == WorkerSettings(min_examples=1)
    assert launching.with_data(WorkerSettings(), [one, other]) == WorkerSettings(
        data_from_config=True, min_examples=1
    )


def test_doctor_counts_what_leads_out_of_a_data_folder(data: Path) -> None:
    found = doctor.site_data.examine_folder(data)
    assert found.level == "WARN"
    assert "3 of" in found.what
    for name in ("link.csv", "out", "environ"):
        (data / name).unlink()
    assert doctor.site_data.examine_folder(data).level == "OK"
