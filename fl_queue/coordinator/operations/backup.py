"""
Back a run up into one file, and restore a run from it, which continues where the backup was taken.

``backup_file`` has the format; it holds no passwords and no URLs. Events, receipts, archived updates and an
open round are not in it: the history records the decisions of each round, and an open round is opened again
under its number, with the same random draws, so that the restored run has the bits of the undisturbed one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fl_queue._version import __version__
from fl_queue.common.safe_json import dumps, loads
from fl_queue.coordinator.operations import backup_models
from fl_queue.coordinator.operations.backup_file import (
    FORMAT,
    Document,
    opened,
    pack,
    read_document,
    write_errors,
)
from fl_queue.coordinator.rounds import lifecycle, statement_signing
from fl_queue.coordinator.rounds.runs import current_config, find_run
from fl_queue.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    RunStateError,
    UnknownRun,
    UnknownVersion,
)
from fl_queue.models import checkpoint, selection
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import identifiers, job_origins, statements
from fl_queue.protocol.events import RunRestored
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import EvaluationState, RoundRecord, digest_of
from fl_queue.protocol.state import RunPhase
from fl_queue.store import RunState, Store
from fl_queue.store.transactions import backups
from fl_queue.store.transactions.backups import RestoredRun


@dataclass(frozen=True)
class Backup:
    """
    The content of a backup.

    Args:
        path: Its file.
        run: Name of the run.
        version: The newest version, which is in it.
        best: The best version, which is in it too; None when none has been evaluated.
        rounds: Rounds in its history.
        nbytes: Size of the file.
        left_out: Why the best version is not in it; empty when it is, or there is none.
    """

    path: Path
    run: str
    version: int
    best: int | None
    rounds: int
    nbytes: int
    left_out: str


# Writing


def write(store: Store, name: str, path: Path, state_dir: Path) -> Backup:
    """
    Write a run to a file, also while it is training; an existing file is replaced.

    Args:
        name: Run name or id.
        state_dir: Where this machine's checkpoints are.

    Raises:
        UnknownRun: There is no such run.
        RunStateError: It has no version yet.
        UnknownVersion, CheckpointError: Its newest model is nowhere to be found, or damaged.
        DataError: The file cannot be written; an old one is as it was.
    """
    state = find_run(store, name)
    if path.exists() and not path.is_file():
        raise DataError(str(path), "is not a file; name a file to write to")
    # Before the snapshot: then it is one of the snapshot's versions.
    best = selection.best_version(store, state.run_id, current_config(store, state.run_id))
    with (
        write_errors(path),
        tempfile.TemporaryDirectory(prefix=checkpoint.WRITING, dir=path.parent) as folder,
    ):
        writing = Path(folder)
        document = _with_newest(store, state, state_dir, writing)
        left_out = ""
        if best is not None and best != document.version:
            document, left_out = _with_best(store, document, best, state_dir, writing)
        document = _with_tagged(store, document, state.tags.values(), state_dir, writing)
        pack(document, writing, path)
    return Backup(
        path=path,
        run=state.name,
        version=document.version,
        best=None if left_out else best,
        rounds=len(document.history),
        nbytes=path.stat().st_size,
        left_out=left_out,
    )


def _with_newest(store: Store, state: RunState, state_dir: Path, writing: Path) -> Document:
    """A snapshot and its newest model; of a run that trains, the model may be gone by then."""
    while True:
        document = _snapshot(store, state)
        try:
            backup_models.stage(store, document, document.version, state_dir, writing)
        except (UnknownVersion, CheckpointError):
            if max(store.control.versions.all(state.run_id), default=-1) <= document.version:
                raise
        else:
            if _announced(store, document):
                return document


def _announced(store: Store, document: Document) -> bool:
    """
    Have clients keep what belongs to the versions of a backup, whatever they keep later.

    Returns:
        False when there is a newer version: for that, clients may have removed it.
    """
    return backups.keep_client_states(store, document.run_id, document.state["version"])


def _with_best(
    store: Store, document: Document, best: int, state_dir: Path, writing: Path
) -> tuple[Document, str]:
    try:
        backup_models.stage(store, document, best, state_dir, writing)
    except (UnknownVersion, CheckpointError) as exc:
        return document, str(exc)
    return replace(document, models=[best, document.version]), ""


def _with_tagged(
    store: Store, document: Document, tagged: Iterable[int], state_dir: Path, writing: Path
) -> Document:
    """The same with the tagged versions that are to be found."""
    there = set(document.models)
    for version in sorted({version for version in tagged if version <= document.version} - there):
        with suppress(UnknownVersion, CheckpointError):
            backup_models.stage(store, document, version, state_dir, writing)
            there.add(version)
    return replace(document, models=sorted(there)) if there != set(document.models) else document


def _snapshot(store: Store, state: RunState) -> Document:
    """State of a run on the control server, all of one moment."""
    run = state.run_id
    raw = backups.read_run(store, run)
    found = raw.state
    if "state" not in found:
        raise UnknownRun(state.name, list(store.control.runs.names()))
    if not found.get("version"):
        raise RunStateError(state.name, "has no version yet; wait for version 0")
    verdicts = {key: loads(text, "an evaluation") for key, text in raw.evaluations.items()}
    document = Document(
        format=FORMAT,
        made_by=__version__,
        made_at=round(store.control.now(), 3),
        run_id=run,
        state={field.name: found[field.name] for field in fields(RunState) if field.name in found},
        config=loads(raw.config or b"null", "a config"),
        manifest=loads(raw.manifest or b"null", "a manifest"),
        versions={key: loads(text, "a version") for key, text in raw.versions.items()},
        history=[RoundRecord.from_json(text) for text in raw.history],
        late={},
        # A ticket belongs to a worker of this federation.
        evaluations={key: value for key, value in verdicts.items() if "job" not in value},
        models=[int(found["version"])],
    )
    late = store.control.receipts.late_counts(run)
    return replace(
        document, late={str(key): late[key] for key in sorted(late) if key <= document.round}
    )


# Restoring


def restore(
    store: Store, path: Path, state_dir: Path, name: str | None = None, unsigned: bool = False
) -> RunState:
    """
    Create a run from a backup. Nothing is trained: a run that had not ended is cancelled now.

    The run appears in one transaction, when its models are on disk and on the data server already.
    A restore that was killed leaves files and chunks that no run names, and can be repeated.

    Args:
        store: Both servers.
        path: The backup.
        state_dir: This machine's folder; checkpoints are below it.
        name: Its name; None for the one it had. Random draws depend on the name, so a run under another name
            continues, but not with the bits it would have had.
        unsigned: Accept a file whose config and versions are not signed with this machine's operator's key:
            restoring signs them, and sites train by them.

    Raises:
        ConfigError: The name is not allowed; or the file is not signed.
        DataError: The file is not a backup, or damaged; nothing is changed.
        RunStateError: There is a run of that name.
        CheckpointError: The models cannot be written.
    """
    if name is not None:
        identifiers.check_run_name(name)
    with opened(path) as archive:
        document, manifest = read_document(
            archive,
            path,
            lambda found, model: None if unsigned else _check_signed(store, found, model),
        )
        chosen = name or document.state["name"]
        _refuse_taken(chosen, store.control.runs.names())
        run = identifiers.new_run_id(chosen)
        models = ModelStore(store, run, document.chunk_bytes, state_dir)
        backup_models.restore_models(models, archive, path, document, manifest)
    try:
        _create(store, document, run, chosen, unsigned)
    except RunStateError:
        # Another process has created a run of that name meanwhile.
        _remove(models, document, manifest)
        raise
    # Publishes the evaluation of the newest version, if it has none.
    lifecycle.advance(store, run)
    return find_run(store, run)


def _remove(models: ModelStore, document: Document, manifest: Manifest) -> None:
    """Remove what has been restored of a run that is not created."""
    shutil.rmtree(models.folder, ignore_errors=True)
    newest = document.version
    for digest in (document.digest(newest), *document.server_state(newest).values()):
        models.drop(digest, manifest.nbytes)
    if manifest.published is not None:
        models.drop(manifest.published.digest, manifest.published.nbytes)


def _check_signed(store: Store, document: Document, manifest: Manifest) -> None:
    """
    Check the signatures in a backup, which restoring makes anew: the file may have been changed.

    Raises:
        ConfigError: A signature is missing, and this machine has the key.
    """
    number = int(document.state.get("segment", 0))
    if what := statement_signing.unsigned_in_backup(
        store,
        (document.run_id, document.state["name"]),
        (number, document.config[number]),
        {version: document.versions[str(version)] for version in document.models},
        manifest,
    ):
        raise ConfigError(
            "--unsigned",
            f"the {what} in this backup is not signed with the operator's key of this machine: the file was changed, "
            "or the run had no signatures; if you know that it is good, give --unsigned, which signs it as it is",
        )


def _refuse_taken(name: str, living: Mapping[str, str]) -> None:
    if name in living:
        raise RunStateError(
            name,
            f"there is a run of that name; restore under another one with `--run NAME`, or remove it with `fl-queue delete {name}`",
        )


def _create(store: Store, document: Document, run: str, name: str, unsigned: bool) -> None:
    """Write all keys of the run at once, unless the name has been taken meanwhile."""
    state = _restored_state(document, name)
    segments, made = _signed_anew(store, document, run, name, unsigned)
    restored = RestoredRun(
        run,
        name,
        _origins(document),
        RunRestored(version=document.version, of=document.run_id),
        state,
        dumps(segments),
        dumps(document.manifest),
        {key: dumps(value) for key, value in made.items()},
        [record.to_json() for record in document.history],
        document.late,
        _newest_accepted(document),
        {key: dumps(value) for key, value in _verdicts(document).items()},
    )
    while not backups.restore_run(store, restored):
        living = store.control.runs.names()
        if living.get(name) == run:
            return  # It had been written, and the answer was lost.
        _refuse_taken(name, living)


def _signed_anew(
    store: Store, document: Document, run: str, name: str, unsigned: bool
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """
    Config segments and versions under the operator's signature: those in the file are of another run id.

    Of the versions those that are in the file, which the run may go back to; an older one that had no signature
    gets one only with ``unsigned``, as nothing has shown that it is the operator's.
    """
    # The run has a version: it starts from no initial model.
    segments = [
        statement_signing.segment(store, run, name, number, _without_signature(found), None)
        for number, found in enumerate(document.config)
    ]
    made = {key: _without_signature(entry) for key, entry in document.versions.items()}
    manifest = Manifest.from_json(dumps(document.manifest))
    # The newest last: it is the one that this machine notes as signed.
    for version in sorted(document.models):
        key = str(version)
        was_signed = statements.SIGNATURE in document.versions[key]
        if not (unsigned or was_signed or version == document.version):
            continue
        signature = statement_signing.restored(store, run, version, made[key], manifest)
        made[key] |= {statements.SIGNATURE: signature} if signature else {}
    return segments, made


def _without_signature(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in found.items() if key not in statement_signing.SIGNED_FIELDS
    }


def _newest_accepted(document: Document) -> dict[str, str]:
    """Client -> round of the job and digest of its newest accepted update, for clients that keep something."""
    newest = job_origins.newest_accepted(document.history, document.version)
    return {
        client: dumps({"round": began, "digest": digest})
        for client, (began, digest) in newest.items()
    }


def _origins(document: Document) -> list[str]:
    """Run ids under which clients keep what they have of the run, the newest first."""
    restored = json.loads(document.state.get("restored_from", "[]"))
    return list(dict.fromkeys([document.run_id, *restored]))


def _restored_state(document: Document, name: str) -> dict[str, str]:
    config = document.config[-1]["config"]
    restored = {
        **document.state,
        "name": name,
        "version": str(document.version),
        "round": str(document.round),
        "waited_s": "0",
        "task": config["run"]["task"],
        "config_digest": digest_of(config),
        "restored_from": dumps(_origins(document)),
    }
    if document.state["state"] not in (RunPhase.completed, RunPhase.failed):
        restored |= {
            "state": RunPhase.cancelled,
            "reason": f"restored from a backup; go on with `fl-queue resume {name}`",
        }
    return restored


def _verdicts(document: Document) -> dict[str, dict[str, Any]]:
    """Evaluations; an older version without one gets none any more, as its model may not be here."""
    missed = {"state": EvaluationState.failed, "reason": "was not evaluated before the backup"}
    older = (str(version) for version in range(document.version))
    return dict.fromkeys(older, missed) | document.evaluations
