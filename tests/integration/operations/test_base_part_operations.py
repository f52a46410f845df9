"""Operations on a run with a base part: export, adapters in peft's format, backup, retention, deletion."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from fl_queue.cli import cli
from fl_queue.client.version_zero import VersionZero, version_zero
from fl_queue.common.safe_json import dumps
from fl_queue.config import loading
from fl_queue.coordinator.aggregator.version_builder import VersionBuilder
from fl_queue.coordinator.operations import backup, deletion, verification
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError, DataError
from fl_queue.models import checkpoint, retention
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.base_part import BasePart
from fl_queue.protocol.records import Purpose
from fl_queue.protocol.state import RoundPhase
from fl_queue.reporting import model_export
from fl_queue.reporting.model_export import ExportRequest
from fl_queue.store import RoundState, Store, keyspace
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.training.model_tensors import manifest_of, views_of
from fl_queue.web import view_model

OVERRIDES = ("redis.chunk_bytes=65536", "model.keep_versions=1")


class Plain(nn.Module):
    """The model before its adapters; wide enough that its base part is of several chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(64, 1024).to(torch.bfloat16)
        self.narrow = nn.Linear(1024, 32).to(torch.bfloat16)
        self.head = nn.Linear(32, 3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        hidden = self.narrow(torch.relu(self.wide(rows.to(torch.bfloat16))))
        out: torch.Tensor = self.head(hidden.float())
        return out


class Tuned(Task):
    """A base in bfloat16 with peft's adapters, and a head of its own."""

    def build_model(self) -> nn.Module:
        peft = pytest.importorskip("peft", reason="an extra")
        settings = peft.LoraConfig(r=2, target_modules=["narrow"], modules_to_save=["head"])
        made: nn.Module = peft.get_peft_model(Plain(), settings)
        return made

    def client_data(self, context: ClientContext) -> ClientData:
        raise NotImplementedError


class Made:
    """A run of two versions, as an aggregator leaves it on disk and on both servers."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        config = loading.load("mnist-3v7", OVERRIDES, {})
        self.zero: VersionZero = version_zero(Tuned(config), config.run.seed)
        self.manifest = self.zero.manifest
        self.run = runs.start_run(store, "tuned", config, 9).run_id
        self.models = ModelStore(store, self.run, config.redis.chunk_bytes, folder)
        draw = np.random.default_rng(1)
        self.arrays = {
            name: (array + draw.normal(0, 0.1, array.shape)).astype("<f4")
            for name, array in self.zero.arrays.items()
        }
        self.base_body = self.zero.base_body()
        checkpoint.write(self.models.folder, self.base.digest, self.base, self.base_body, {})
        self.models.publish(self.base.digest, self.base_body)
        self.digests = [self._add(n, a) for n, a in enumerate((self.zero.arrays, self.arrays))]

    def _add(self, version: int, arrays: Any) -> str:
        body = tensor_layout.encode_body(self.manifest, arrays)
        digest, redis = tensor_layout.body_digest(body), self.store.control.redis
        checkpoint.write(self.models.folder, digest, self.manifest, body, {})
        self.models.publish(digest, body)
        redis.set(keyspace.manifest(self.run), self.manifest.to_json())
        entry = dumps({"digest": digest, "round": version})
        redis.hset(keyspace.versions(self.run), str(version), entry)
        redis.hset(keyspace.run(self.run), mapping={"version": version, "digest": digest})
        return digest

    @property
    def base(self) -> BasePart:
        assert self.manifest.base is not None
        return self.manifest.base

    def export(self, path: Path, **options: Any) -> None:
        state = self.store.control.runs.get(self.run)
        assert state is not None
        request = ExportRequest(path, **options)
        model_export.export_version(self.store, state, self.folder, request)

    def expected(self) -> nn.Module:
        """The model of version 1."""
        model = self.zero.model
        state = dict(model.state_dict())
        with torch.no_grad():
            for name, array in self.arrays.items():
                state[name].copy_(torch.from_numpy(array))
        return model.eval()


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return torch.randn(16, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def made(store: Store, tmp_path: Path) -> Made:
    return Made(store, tmp_path / "state")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_an_export_is_the_whole_model_in_its_dtypes(
    made: Made, tmp_path: Path, rows: torch.Tensor, name: str
) -> None:
    made.export(tmp_path / name)
    is_torch = name.endswith(".pt")
    read = (lambda path: torch.load(path, weights_only=True)) if is_torch else load_file
    tensors = read(tmp_path / name)
    wanted = made.expected()
    fresh = Tuned(loading.load("mnist-3v7", OVERRIDES, {})).build_model()
    fresh.load_state_dict(tensors, strict=True)

    assert torch.equal(fresh.eval()(rows), wanted(rows))
    assert {name: one.dtype for name, one in tensors.items()} == {
        name: one.dtype for name, one in wanted.state_dict().items()
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_export_is_cast_as_torch_casts(made: Made, tmp_path: Path, dtype: str) -> None:
    made.export(tmp_path / "model.safetensors", dtype=dtype)
    found = load_file(tmp_path / "model.safetensors")
    for name, tensor in made.expected().state_dict().items():
        assert torch.equal(found[name], tensor.to(getattr(torch, dtype))), name


def test_adapters_are_what_peft_reads_and_predict_as_the_model(
    made: Made, tmp_path: Path, rows: torch.Tensor
) -> None:
    peft = pytest.importorskip("peft", reason="an extra")
    command = ["export", "tuned", "--adapters", str(tmp_path / "adapters"), "--json"]
    urls = ["--redis-url", made.store.servers.url, "--blob-url", made.store.servers.blob_url]
    done = CliRunner().invoke(cli, [*command, *urls, "--state-dir", str(made.folder)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["format"] == "peft"
    plain = Plain()
    base = made.zero.model.get_base_model()
    frozen = {
        name.replace(".base_layer", "").replace(".original_module", ""): tensor
        for name, tensor in base.state_dict().items()
        if "lora_" not in name and "modules_to_save" not in name
    }
    plain.load_state_dict(frozen, strict=True)
    read = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapters"))

    assert torch.equal(read.eval()(rows), made.expected()(rows))
    made.expected().save_pretrained(str(tmp_path / "theirs"))
    ours, theirs = (
        load_file(tmp_path / folder / "adapter_model.safetensors")
        for folder in ("adapters", "theirs")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name].float()) for name in ours)
    configs = [
        json.loads((tmp_path / folder / "adapter_config.json").read_text())
        for folder in ("adapters", "theirs")
    ]
    # Of a model that is no transformers model peft notes the class, when it saves the model.
    assert configs[0] == configs[1] | {"auto_mapping": None}


def test_a_model_without_adapters_and_a_dtype_of_another_format_are_refused(
    made: Made, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--dtype: is for safetensors, and this is onnx"):
        made.export(tmp_path / "model.onnx", dtype="float16")
    raw = json.loads(made.manifest.to_json())
    del raw["adapters"]
    made.store.control.redis.set(keyspace.manifest(made.run), dumps(raw))
    with pytest.raises(ConfigError, match="no adapters of peft's"):
        made.export(tmp_path / "adapters", adapters=True)


@pytest.mark.parametrize("where", ["published", "at the sites alone"])
def test_status_names_the_base_part(made: Made, where: str) -> None:
    raw = json.loads(made.manifest.to_json())
    raw["base"]["is_published"] = where == "published"
    made.store.control.redis.set(keyspace.manifest(made.run), dumps(raw))
    urls = ["--redis-url", made.store.servers.url, "--blob-url", made.store.servers.blob_url]
    done = CliRunner().invoke(cli, ["status", "tuned", *urls])
    assert done.exit_code == 0, done.output
    line = f"base part {made.base.digest[:12]}, {made.base.nbytes:,} bytes, {where}"
    assert line in " ".join(done.stdout.split())
    facts = view_model.parts(made.store, "tuned")["status"]["facts"]
    assert facts == [("Base part", line.removeprefix("base part "))]


def test_a_local_base_part_cannot_be_exported_and_the_adapters_can(
    made: Made, tmp_path: Path
) -> None:
    raw = json.loads(made.manifest.to_json())
    raw["base"]["is_published"] = False
    made.store.control.redis.set(keyspace.manifest(made.run), dumps(raw))
    with pytest.raises(DataError, match=r"is at the sites alone .* --adapters"):
        made.export(tmp_path / "model.safetensors")
    made.export(tmp_path / "adapters", adapters=True)
    assert (tmp_path / "adapters/adapter_config.json").is_file()


def test_a_backup_has_the_base_part_once_and_restores_it_to_disk_and_server(
    made: Made, tmp_path: Path
) -> None:
    file = tmp_path / "tuned.zip"
    backup.write(made.store, "tuned", file, made.folder)
    name = checkpoint.file_name(made.base.digest, made.base)
    with zipfile.ZipFile(file) as archive:
        assert sorted(archive.namelist()) == sorted(
            ["run.json", checkpoint.file_name(made.digests[1]), name]
        )
    made.store.control.redis.flushall()
    made.store.data.redis.flushall()
    state = backup.restore(made.store, file, tmp_path / "other")
    models = ModelStore(made.store, state.run_id, 65536, tmp_path / "other")
    assert (models.folder / name).is_file()
    assert bytes(models.cache.fetch_base(made.base).view) == made.base_body


def test_a_backup_with_another_base_part_is_refused(made: Made, tmp_path: Path) -> None:
    file, damaged = tmp_path / "tuned.zip", tmp_path / "damaged.zip"
    backup.write(made.store, "tuned", file, made.folder)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(damaged, "w") as new:
        for entry in old.namelist():
            content = bytearray(old.read(entry))
            content[-1] ^= entry.startswith("base-")
            new.writestr(entry, bytes(content))
    made.store.control.redis.hdel(keyspace.RUNS, "tuned")
    with pytest.raises(DataError, match=r"base-.* is damaged"):
        backup.restore(made.store, damaged, tmp_path / "other")


def test_a_damaged_version_leaves_nothing_on_the_data_server(made: Made, tmp_path: Path) -> None:
    file, damaged = tmp_path / "tuned.zip", tmp_path / "damaged.zip"
    backup.write(made.store, "tuned", file, made.folder)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(damaged, "w") as new:
        for entry in old.namelist():
            content = bytearray(old.read(entry))
            content[-1] ^= entry == checkpoint.file_name(made.digests[1])
            new.writestr(entry, bytes(content))
    made.store.control.redis.hdel(keyspace.RUNS, "tuned")
    made.store.data.redis.flushall()
    with pytest.raises(DataError, match="is damaged"):
        backup.restore(made.store, damaged, tmp_path / "other")
    # Chunks of a run that does not exist would never be removed.
    assert made.store.data.redis.dbsize() == 0


def test_superseded_versions_go_and_the_base_part_stays_until_the_run_is_deleted(
    made: Made, tmp_path: Path
) -> None:
    config = runs.current_config(made.store, made.run)
    retention.prune_versions(made.models, config)
    file = made.models.folder / checkpoint.file_name(made.base.digest, made.base)
    assert file.is_file()
    assert not made.models.restore_base(made.base)

    blob = keyspace.model_blob(made.run, made.base.digest)
    made.store.data.redis.delete(keyspace.chunk(blob, 1))
    assert made.models.restore_base(made.base)
    assert bytes(made.models.cache.fetch_base(made.base).view) == made.base_body

    made.store.control.redis.hset(keyspace.run(made.run), "state", "completed")
    state = made.store.control.runs.get(made.run)
    assert state is not None
    deletion.delete(made.store, state, made.folder)
    assert not file.exists()
    assert not list(made.store.data.redis.scan_iter(match=f"*{made.run}*"))


def test_a_base_part_that_was_not_committed_leaves_the_data_server_and_the_disk(
    made: Made, tmp_path: Path
) -> None:
    """Its maker lost the run, or was killed, and another one has committed version 0."""
    config = runs.current_config(made.store, made.run)
    current = RoundState(
        1, RoundPhase.open, Purpose.train, ("a",), ("a",), 1, 60.0, 0.0, 0.0, None, 0.0, 0,
        made.digests[0], 1, "", 1, {}, 0, "",
    )  # fmt: skip
    builder = VersionBuilder(made.store, made.run, current, config, tmp_path / "maker")
    other = version_zero(Tuned(config), config.run.seed + 1)
    assert other.manifest.base is not None
    assert other.manifest.base.digest != made.base.digest

    def lifetimes(base: BasePart) -> list[int]:
        blob, redis = keyspace.model_blob(made.run, base.digest), made.store.data.redis
        return [redis.ttl(keyspace.chunk(blob, index)) for index in range(2)]

    for zero in (other, made.zero):
        builder.build_initial(zero.manifest, b"".join(map(bytes, zero.pieces())))
    for base in (other.manifest.base, made.base):
        assert all(0 < left <= 24 * 3600 for left in lifetimes(base))
    assert len(list(builder.models.folder.glob("base-*"))) == 2

    builder.prepare(made.manifest)

    assert lifetimes(made.base) == [-1, -1]
    assert all(0 < left <= 24 * 3600 for left in lifetimes(other.manifest.base))
    # A maker that was held for so long publishes the committed part again: it stays from the next round on.
    builder.models.publish_base(made.base, made.base_body)
    later = replace(current, number=4, base_version=3)
    VersionBuilder(made.store, made.run, later, config, tmp_path / "maker").prepare(made.manifest)
    assert lifetimes(made.base) == [-1, -1]
    assert [path.name for path in builder.models.folder.glob("base-*")] == [
        checkpoint.file_name(made.base.digest, made.base)
    ]


def test_an_aggregator_that_has_not_made_version_0_keeps_the_base_part_too(
    made: Made, tmp_path: Path
) -> None:
    config = runs.current_config(made.store, made.run)
    current = RoundState(
        2, RoundPhase.open, Purpose.train, ("a",), ("a",), 1, 60.0, 0.0, 0.0, None, 0.0, 1,
        made.digests[1], 1, "", 1, {}, 0, "",
    )  # fmt: skip
    builder = VersionBuilder(made.store, made.run, current, config, tmp_path / "other")
    blob = keyspace.model_blob(made.run, made.base.digest)
    chunk = keyspace.chunk(blob, 1)
    made.store.data.redis.rename(chunk, "aside")
    builder.prepare(made.manifest)  # It cannot be fetched yet: the round goes on.
    file = builder.models.folder / checkpoint.file_name(made.base.digest, made.base)
    assert not file.exists()
    made.store.data.redis.rename("aside", chunk)
    builder.prepare(made.manifest)
    body = checkpoint.open_body(builder.models.folder, made.base.digest, made.base)
    assert bytes(body.view) == made.base_body

    written = file.stat()
    builder.prepare(made.manifest)
    assert file.stat() == written
    made.store.data.redis.delete(chunk)
    assert builder.models.restore_base(made.base)
    assert made.store.data.redis.exists(chunk)


@pytest.mark.parametrize("damage", ["", "flipped", "gone"])
def test_verify_checks_the_base_part_once(made: Made, damage: str) -> None:
    file = made.models.folder / checkpoint.file_name(made.base.digest, made.base)
    if damage == "flipped":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage:
        file.unlink()
    found = verification.check_base_part(made.store, made.run, made.folder)
    assert found is not None
    expected = {"": "same", "flipped": "different", "gone": "unknown"}[damage]
    assert (found.digest, found.result) == (made.base.digest, expected)
    assert ({"": "", "flipped": "damaged", "gone": "missing"}[damage]) in found.reason


def test_a_run_that_began_with_whole_versions_is_backed_up_restored_and_exported(
    made: Made, tmp_path: Path, rows: torch.Tensor
) -> None:
    """As runs of releases without base parts are: the frozen tensors are in each body."""
    whole = manifest_of(made.zero.model)
    assert whole.frozen
    assert whole.base is None
    made.manifest = whole
    made.digests = [made._add(n, views_of(made.expected(), whole)) for n in (0, 1)]
    file = tmp_path / "whole.zip"
    backup.write(made.store, "tuned", file, made.folder)
    with zipfile.ZipFile(file) as archive:
        assert len(archive.namelist()) == 2
    made.store.control.redis.flushall()
    made.store.data.redis.flushall()
    state = backup.restore(made.store, file, tmp_path / "other")
    request = ExportRequest(tmp_path / "model.safetensors")
    model_export.export_version(made.store, state, tmp_path / "other", request)
    fresh = Tuned(loading.load("mnist-3v7", OVERRIDES, {})).build_model()
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)

    assert torch.equal(fresh.eval()(rows), made.expected()(rows))
    assert verification.check_base_part(made.store, state.run_id, tmp_path / "other") is None
