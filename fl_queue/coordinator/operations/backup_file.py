"""
The file of a backup: what is in it, and how one is written and read.

A zip file with nothing in it compressed::

    run.json                  the fields of ``Document``: what the control server knew, at one moment
    <digest>.safetensors      the newest version, the best and tagged ones, and what the strategy keeps with each
    base-<digest>.safetensors the base part of a run that publishes one

Whatever a file holds, reading it raises ``DataError`` and takes no more memory than the caps allow.
Nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fl_queue.common import files, safe_json, schema
from fl_queue.common.paths import below
from fl_queue.common.safe_json import dumps
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import CheckpointError, ConfigError, DataError, MessageError
from fl_queue.models import checkpoint
from fl_queue.models.checkpoint import Layout
from fl_queue.protocol import identifiers
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import EvaluationState, RoundRecord
from fl_queue.store import RunState, parse_run_state

FORMAT = 1
MAX_RECORD_BYTES = 2**30
#: What a safetensors file may have besides its tensors; that library's own limit.
MAX_HEADER_BYTES = 100_000_000
_RECORD = "run.json"
_COPIED_BYTES = 1 << 20


@dataclass(frozen=True)
class Document:
    """
    ``run.json``. Keys that are versions or rounds are text, as JSON has them.

    Args:
        format: ``FORMAT``.
        made_by: Version of fl-queue.
        made_at: Unix time of the control server, seconds.
        run_id: The run it was.
        state: The fields of ``RunState`` as the run's hash has them.
        config: Config segments.
        manifest: The model's.
        versions: Version -> {digest, round}.
        history: Every ended round.
        late: Round -> updates that came after it had ended.
        evaluations: Version -> its verdict on the test set, of those that have one.
        models: Versions whose models are in the file, with the strategy's state; an older one may lack that.
    """

    format: int
    made_by: str
    made_at: float
    run_id: str
    state: dict[str, str]
    config: list[dict[str, Any]]
    manifest: dict[str, Any]
    versions: dict[str, dict[str, Any]]
    history: list[RoundRecord]
    late: dict[str, int]
    evaluations: dict[str, dict[str, Any]]
    models: list[int]

    @property
    def version(self) -> int:
        """The newest version."""
        return int(self.state["version"])

    @property
    def round(self) -> int:
        """The newest round that has ended; an open one is not part of a backup."""
        made = [int(entry["round"]) for entry in self.versions.values()]
        return max(made + [record.round for record in self.history])

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk of its models, bytes."""
        return int(self.config[-1]["config"]["redis"]["chunk_bytes"])

    def digest(self, version: int) -> str:
        """Digest of a version's model."""
        return str(self.versions[str(version)]["digest"])

    def server_state(self, version: int) -> dict[str, str]:
        """Name -> digest of what the strategy keeps with a version."""
        found: dict[str, str] = self.versions[str(version)].get("server_state", {})
        return found


def pack(document: Document, writing: Path, path: Path) -> None:
    """
    Write a backup's file, whole or not at all.

    Args:
        writing: Folder beside ``path`` with the models' files; the zip file is made in it.

    Raises:
        DataError: The history is longer than a reader takes.
        OSError: The file cannot be written.
    """
    # As the history has them: without what releases before secure rounds do not know.
    history = [json.loads(record.to_json()) for record in document.history]
    record = dumps(asdict(document) | {"history": history}).encode()
    if len(record) > MAX_RECORD_BYTES:
        raise DataError(
            str(path), f"the history of run {document.state['name']} is too long for a backup"
        )
    file = writing / "backup.zip"
    with files.create(file) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_RECORD, record)
        for entry in _models(document, writing):
            archive.write(writing / entry, entry)
        if (base := Manifest.from_json(dumps(document.manifest)).published) is not None:
            entry = checkpoint.file_name(base.digest, base)
            archive.write(writing / entry, entry)
    files.put_in_place(file, path)


def _models(document: Document, writing: Path) -> list[str]:
    """Files of models and states, each once; an older version may be without its state."""
    needed = [document.digest(version) for version in document.models]
    needed += document.server_state(document.version).values()
    others = [
        digest for version in document.models for digest in document.server_state(version).values()
    ]
    there = [digest for digest in others if (writing / checkpoint.file_name(digest)).exists()]
    return [checkpoint.file_name(digest) for digest in dict.fromkeys([*needed, *there])]


# Reading a file that may hold anything


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip file. Raises DataError."""
    with _read_errors(path):
        archive = zipfile.ZipFile(path)
    with archive:
        yield archive


def _entry(archive: zipfile.ZipFile, path: Path, name: str) -> zipfile.ZipInfo:
    if name not in archive.namelist():
        raise DataError(str(path), f"is not a whole backup of fl-queue: it has no {name}")
    info = archive.getinfo(name)
    # Uncompressed, an entry is no larger than the file: no decompression bomb.
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise DataError(str(path), f"{name} is compressed; use the file as it was written")
    if info.file_size > path.stat().st_size:
        raise DataError(str(path), f"{name} is longer than the file")
    return info


def _pieces(archive: zipfile.ZipFile, path: Path, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The bytes of an entry; its checksum is verified with the last of them."""
    with _read_errors(path), archive.open(info) as source:
        while piece := source.read(_COPIED_BYTES):
            yield piece


def read_document(
    archive: zipfile.ZipFile,
    path: Path,
    check: Callable[[Document, Manifest], None] = lambda document, manifest: None,
) -> tuple[Document, Manifest]:
    """
    Read the document and the model's manifest.

    Args:
        check: Called with both as they were written: a config is completed by what this version adds.

    Raises:
        DataError: It is not that of a run.
    """
    info = _entry(archive, path, _RECORD)
    if info.file_size > MAX_RECORD_BYTES:
        raise DataError(
            str(path), f"{_RECORD} has {info.file_size} bytes; at most {MAX_RECORD_BYTES} are read"
        )
    text = b"".join(_pieces(archive, path, info))
    try:
        raw = safe_json.loads(text, "JSON")
    except MessageError as exc:
        raise DataError(str(path), f"{_RECORD} is {exc.reason}") from exc
    found = raw.get("format") if isinstance(raw, dict) else None
    if type(found) is not int or found != FORMAT:
        raise DataError(
            str(path),
            f"{_RECORD}.format is {str(found)[:20]}; this fl-queue reads {FORMAT}: use the version that wrote it",
        )
    try:
        document = schema.parse(Document, raw)
        checked = _checked(document)
    except (ValueError, KeyError, TypeError, AttributeError, MessageError, ConfigError) as exc:
        reason = exc if isinstance(exc, ValueError | MessageError | ConfigError) else repr(exc)
        raise DataError(str(path), f"{_RECORD} is not that of a run: {reason}") from exc
    check(document, checked[1])
    return checked


def read_model(
    archive: zipfile.ZipFile, path: Path, digest: str, manifest: Layout, folder: Path
) -> bytearray:
    """The body of a model or a base part, its digest checked; ``folder`` is where it is unpacked meanwhile. Raises DataError."""
    info = _entry(archive, path, checkpoint.file_name(digest, manifest))
    if not manifest.nbytes <= info.file_size <= manifest.nbytes + MAX_HEADER_BYTES:
        raise DataError(
            str(path), f"{info.filename} has {info.file_size} bytes, which is not the model's size"
        )
    with write_errors(folder):
        files.folder(folder)
        with tempfile.TemporaryDirectory(prefix=checkpoint.WRITING, dir=folder) as staging:
            with files.create(below(Path(staging), info.filename)) as target:
                for piece in _pieces(archive, path, info):
                    target.write(piece)
            try:
                return checkpoint.read(Path(staging), digest, manifest)
            except CheckpointError as exc:
                raise DataError(str(path), f"{info.filename} {exc.reason}") from exc


def _checked(document: Document) -> tuple[Document, Manifest]:
    """
    See that the parts of a document fit together, by the code that will read them from Redis.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, MessageError, ConfigError: They do not.
    """
    known = {field.name for field in fields(RunState)}
    _demand(set(document.state) <= known, "state has a field that no run has")
    _demand(identifiers.is_run_id(document.run_id), "run_id is not a run id")
    times = [float(document.state.get(name, 0)) for name in ("created_at", "waited_s")]
    _demand(all(map(math.isfinite, times)), "a time of state")
    state = parse_run_state(document.run_id, document.state)
    _check_versions(document, state)
    _check_verdicts(document)
    config = [
        {**segment, "config": RunConfig.from_dict(segment["config"]).record()}
        for segment in document.config
    ]
    used = {state.segment, *(record.config_segment for record in document.history)}
    _demand(used <= set(range(len(config))), "a config segment is not there")
    return replace(document, config=config), Manifest.from_json(dumps(document.manifest))


def _check_versions(document: Document, state: RunState) -> None:
    newest = len(document.versions) - 1
    counted = [str(version) for version in range(newest + 1)]
    _demand(set(document.versions) == set(counted), "versions are not counted from 0")
    for version, entry in document.versions.items():
        digest, made = entry["digest"], entry["round"]
        _demand(type(made) is int and made >= 0, f"versions.{version}.round")
        named = isinstance(digest, str) and identifiers.is_digest(digest)
        _demand(named, f"versions.{version}.digest is not a digest")
        download = entry.get("download", digest)
        named = isinstance(download, str) and identifiers.is_digest(download)
        _demand(named, f"versions.{version}.download is not a digest")
        _check(f"versions.{version}.server_state", entry.get("server_state", {}), dict[str, str])
        known = entry.get("population", 0)
        _demand(type(known) is int and known >= 0, f"versions.{version}.population")
        named = all(map(identifiers.is_digest, entry.get("server_state", {}).values()))
        _demand(named, f"versions.{version}.server_state is not of digests")
    _demand(state.version == newest, "state.version is not the newest version")
    entry = document.versions[str(newest)]
    known = (state.digest, state.download) == (entry["digest"], entry.get("download", ""))
    _demand(known, "state.digest or state.download is not the newest version's")
    known = state.server_state == document.server_state(newest)
    _demand(known, "state.server_state is not the newest version's")
    in_file = set(document.models)
    _demand(
        newest in in_file and in_file <= set(range(newest + 1)), "models without the newest version"
    )


def _check_verdicts(document: Document) -> None:
    for number in document.late:
        _demand(number.isascii() and number.isdigit(), f"late.{number}")
    for version, verdict in document.evaluations.items():
        where = f"evaluations.{version}"
        known = version in document.versions and verdict.get("state") in tuple(EvaluationState)
        _demand(known, where)
        if verdict["state"] == EvaluationState.done:
            _check(f"{where}.finished", verdict.get("finished"), dict[str, float])


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _check(where: str, value: Any, hint: Any) -> None:
    """Check the type of a part of the document. Raises ValueError, which names the first wrong part."""
    try:
        schema.check(hint, value)
    except schema.Invalid as exc:
        raise exc.inside(where) from None


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise DataError(str(path), "no such file") from exc
    except OSError as exc:
        raise DataError(str(path), f"cannot be read: {exc.strerror or exc}") from exc
    # zipfile raises all of these on damaged files; RuntimeError for an encrypted one.
    except (zipfile.BadZipFile, EOFError, struct.error, ValueError, RuntimeError) as exc:
        raise DataError(
            str(path), f"is not a backup of fl-queue, or is damaged or cut off: {exc}"
        ) from exc


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """An operating system's refusal to write, as a DataError that names ``path``."""
    try:
        yield
    except OSError as exc:
        raise DataError(
            str(path),
            f"cannot be written: {exc.strerror or exc}; free space or allow writing in its folder, then start again",
        ) from exc
