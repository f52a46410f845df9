"""
Sign with the operator's key: configs when a run is started, versions when committed, rounds when opened.

Redis is not believed here either: a round is signed only if its config and its model carry the operator's
signature, and a version only if it was made from the model that its round was signed with. A run that is
signed has no other rounds: none is opened without a signature, and none is merged whose signature is not
there or is of something else. That a run is signed this machine remembers on its own disk (``enrolment_pins``).

A run that is older than the operator's key goes on without signatures, with the reason in its events, and
sites that hold the key refuse its rounds. A machine without the key opens no round of a run that is signed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fl_queue.errors import CheckpointError, ConfigError, ModelMismatch, RunStateError
from fl_queue.models import checkpoint
from fl_queue.protocol import operator_key, statements
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.operator_key import OperatorKey
from fl_queue.protocol.records import Purpose, digest_of
from fl_queue.protocol.statements import SIGNATURE, is_segment_signed
from fl_queue.store import RoundState, RunState, Store, parse_round_state
from fl_queue.strategies.layouts import state_manifest

#: Of both: what a signature has been made with, and is of no use without it.
SIGNED_FIELDS = (SIGNATURE, "initial")
#: Of a round's hash.
SIGNED = "signed"


@dataclass(frozen=True)
class Vouched:
    """
    Record of a round's signature.

    Args:
        signed: The signed statement; empty: it has none.
        why_not: Why the operator's side, which has a key, does not sign it.
        is_refused: The run is signed: without a signature there must not be such a round.
    """

    signed: str = ""
    why_not: str = ""
    is_refused: bool = False


# Configs


def segment(
    store: Store,
    run: str,
    name: str,
    number: int,
    made: Mapping[str, Any],
    initial: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """
    A segment of a run's config with the operator's signature; as it is where this machine has no key.

    Args:
        made: ``{"from_round": n, "config": {...}}``.
        initial: What the run records of its initial model.
    """
    key = store.control.enrolments.pins.key
    if key is None:
        return dict(made)
    signing = {**made, "initial": statements.initial_digest(initial)}
    statement = statements.of_segment(run, name, number, signing)
    return {**signing, SIGNATURE: statements.sign("config", statement, key)}


def lacks_key(store: Store, run: str) -> str:
    """
    Why this machine cannot go on with a run: it is signed, and the key is not here; empty: it can.

    Raises:
        ConfigError: The key is here, and cannot be used.
    """
    if store.control.enrolments.pins.key is not None:
        return ""
    if not any(SIGNATURE in found for found in store.control.runs.config_segments(run)):
        return ""
    return (
        f"what this run sends to sites is signed, and there is no {operator_key.FILE} in {store.state_dir}; "
        f"copy it there from the operator's machine, or name it in {operator_key.VARIABLE}"
    )


def why_not_here(store: Store, run: str) -> str:
    """The same, whatever is wrong with the key."""
    try:
        return lacks_key(store, run)
    except ConfigError as exc:
        return str(exc)


def check_key(store: Store, run: str) -> None:
    """
    Check that this machine can sign a run that is signed.

    Raises:
        ConfigError: The run is signed, and this machine cannot sign.
    """
    if why := lacks_key(store, run):
        raise ConfigError("--operator-key", why)


def key_trouble(store: Store) -> tuple[str, bool]:
    """
    Fault of this machine's key, as existing runs show it; empty: none.

    Returns:
        And whether it is a key, and not the operator's.

    Raises:
        ConfigError: The key cannot be used.
    """
    key = store.control.enrolments.pins.key
    for state in store.control.runs.living():
        segments = store.control.runs.config_segments(state.run_id)
        if not segments or SIGNATURE not in segments[-1]:
            continue
        if key is None:
            return (
                f"run {state.name} is signed, and {store.state_dir} has no {operator_key.FILE}",
                False,
            )
        if _signed_config(store, state, len(segments) - 1, key) is None:
            return f"run {state.name} is signed with another key than {key.fingerprint}", True
    return "", False


# Versions


def check_round(store: Store, run: str, current: RoundState, config: str) -> None:
    """
    Check that a round of a signed run has the config and the cohort that the operator signed.

    The config decides which clients may send an update and how it counts, the cohort which are asked: a
    process that can write to Redis must not change them, nor remove the signature.

    Args:
        config: Digest of the config that the aggregator has read.

    Raises:
        ModelMismatch: It is another round than was signed, or has no signature any more.
        ConfigError: The key cannot be used.
        CheckpointError: That the run is signed cannot be noted.
    """
    key, state = store.control.enrolments.pins.key, store.control.runs.get(run)
    if key is None or state is None:
        return
    statement = statements.opened(current.signed, key.public)
    if statement is None:
        if _is_signed_run(store, state, key):
            raise ModelMismatch(
                f"round {current.number} is not signed with the operator's key {key.fingerprint}, and its run is; "
                "it was changed in Redis"
            )
        return
    manifest = store.control.versions.manifest(run)
    if name := statements.differing(statement, state, current, config, manifest):
        raise ModelMismatch(
            f"the {name} of round {current.number} is not what the operator signed; "
            "it was changed in Redis"
        )
    store.control.enrolments.pins.note_signed(run)


def _is_signed_run(store: Store, state: RunState, key: OperatorKey) -> bool:
    """Whether all of a run is signed, as this machine remembers, or as its newest version or its config shows."""
    if store.control.enrolments.pins.signed_version(state.run_id) is not None:
        return True
    if state.version is None:
        # Begun with a key; the config of one that is older gets its signature when it is gone on with.
        return _signed_config(store, state, 0, key) is not None
    return _Base.read(store, state.run_id, state.version).is_signed(state.run_id, key)


def version(
    store: Store,
    run: str,
    current: RoundState,
    entry: Mapping[str, Any],
    made: Manifest,
    config: str,
) -> str:
    """
    The operator's signature of the version that a round makes; empty: what it was made from has none either.

    Args:
        entry: Its digests, as the run's ``versions`` hash will have them.
        made: The run's manifest.
        config: Digest of the config that it was made by, which may have been changed in Redis since.

    Raises:
        ModelMismatch: It was made from another model than the operator has signed.
        CheckpointError: That it is signed cannot be noted.
    """
    key, state = store.control.enrolments.pins.key, store.control.runs.get(run)
    if key is None or state is None:
        return ""
    signed = _signed_config(store, state, current.segment, key)
    if signed is None or digest_of(signed["config"]) != config:
        return ""
    if current.purpose == Purpose.initialise:
        return _noted(store, run, 0, entry, made, key)
    base = _Base.read(store, run, current.base_version)
    if not base.is_signed(run, key):
        return ""
    if why_not := base.differs(current, made):
        raise ModelMismatch(f"round {current.number}: {why_not}; it was changed in Redis")
    return _noted(store, run, current.base_version + 1, entry, made, key)


def _noted(
    store: Store, run: str, number: int, entry: Mapping[str, Any], made: Manifest, key: OperatorKey
) -> str:
    """A version's signature, once this machine has noted what it signs."""
    store.control.enrolments.pins.note_signed(run, number, entry["digest"])
    return _version_signature(run, number, entry, made, key)


def adopted(
    store: Store, state: RunState, entry: Mapping[str, Any], made: Manifest | None
) -> dict[str, Any] | None:
    """
    The entry of a run's newest version with the operator's signature, for a run that is older than the key.

    Args:
        entry: As the run's ``versions`` hash has it.
        made: The run's manifest.

    Returns:
        None: it is signed already, or this machine has not made it and cannot check it. An operator who
        continues a run declares that its checkpoints are good; nothing else may sign them.

    Raises:
        ConfigError: The key cannot be used.
        RunStateError: The run was signed, and its signatures were removed; the newest version in Redis may
            be an older one that was written back.
    """
    key = store.control.enrolments.pins.key
    if key is None or store.state_dir is None or made is None or SIGNATURE in entry:
        return None
    noted = store.control.enrolments.pins.signed_version(state.run_id)
    if noted is not None and noted != (state.version, entry["digest"]):
        raise RunStateError(
            state.name,
            f"its signatures are gone from Redis, where its newest version is {state.version}; the newest that was "
            f"signed here is {noted[0]}, digest {noted[1][:16]}. Restore a backup (`fl-queue restore`), or begin "
            "a new run from that version's checkpoint (model.initial)",
        )
    if entry.get("download"):
        return None  # What clients fetch is not on disk: it is the next version that is signed.
    folder, layout = (
        checkpoint.checkpoint_folder(store.state_dir, state.run_id),
        state_manifest(made),
    )
    try:
        checkpoint.open_body(folder, entry["digest"], made)
        for kept_with_it in entry.get("server_state", {}).values():
            checkpoint.open_body(folder, kept_with_it, layout)
    except CheckpointError:
        return None
    return {
        **entry,
        SIGNATURE: _version_signature(state.run_id, state.version or 0, entry, made, key),
    }


def unsigned_in_backup(
    store: Store,
    run: tuple[str, str],
    config: tuple[int, Mapping[str, Any]],
    versions: Mapping[int, Mapping[str, Any]],
    manifest: Manifest,
) -> str:
    """
    Parts of a backup that the operator has not signed, ``config`` or ``version n``; empty: nothing, or there is no key here.

    Args:
        run: Id and name, as they were.
        config: The segment that the run was at, by its number.
        versions: Those that are in the backup, as the run's ``versions`` hash had them. An older one may have no
            signature, from before there was a key: it gets none. A wrong one is a change of the file.

    Raises:
        ConfigError: The key cannot be used.
    """
    key = store.control.enrolments.pins.key
    if key is None:
        return ""
    if not is_segment_signed(*run, *config, key.public):
        return "config"
    newest = max(versions)
    for number, entry in sorted(versions.items(), reverse=True):
        has_to_be = number == newest or SIGNATURE in entry
        if has_to_be and not _Base(number, entry, manifest).is_signed(run[0], key):
            return f"version {number}"
    return ""


def restored(store: Store, run: str, number: int, entry: Mapping[str, Any], made: Manifest) -> str:
    """The operator's signature of a version out of a backup that an operator has named; empty without a key."""
    key = store.control.enrolments.pins.key
    return "" if key is None else _noted(store, run, number, entry, made, key)


def again(store: Store, state: RunState, of: int, number: int, entry: Mapping[str, Any]) -> str:
    """
    The operator's signature of an older version under a new number; empty: there is none, or no key.

    Args:
        of: The older version.
        entry: The new one's.

    Raises:
        RunStateError: The run is signed, and the older version is not.
        ConfigError: The key cannot be used.
    """
    key = store.control.enrolments.pins.key
    if key is None:
        return ""
    base = _Base.read(store, state.run_id, of)
    if base.manifest is not None and base.is_signed(state.run_id, key):
        return _noted(store, state.run_id, number, entry, base.manifest, key)
    if _is_signed_run(store, state, key):
        raise RunStateError(
            state.name,
            f"version {of} is not signed with the operator's key {key.fingerprint}; go on from another one, or "
            "begin a new run from it (`fl-queue export`, model.initial)",
        )
    return ""


def _version_signature(
    run: str, number: int, entry: Mapping[str, Any], made: Manifest, key: OperatorKey
) -> str:
    manifest = statements.manifest_digest(made)
    return statements.sign("version", statements.of_version(run, number, entry, manifest), key)


@dataclass(frozen=True)
class _Base:
    """
    A version that a round starts from, as Redis has it.

    Args:
        entry: Of the run's ``versions`` hash; empty: there is none.
        manifest: The run's; None: there is none.
    """

    number: int
    entry: Mapping[str, Any]
    manifest: Manifest | None

    @classmethod
    def read(cls, store: Store, run: str, number: int) -> _Base:
        return cls(
            number, store.control.versions.get(run, number), store.control.versions.manifest(run)
        )

    def is_signed(self, run: str, key: OperatorKey) -> bool:
        if not self.entry or self.manifest is None:
            return False
        manifest = statements.manifest_digest(self.manifest)
        statement = statements.of_version(run, self.number, self.entry, manifest)
        return statements.is_signed("version", statement, self.entry.get(SIGNATURE), key.public)

    def differs(self, current: RoundState, manifest: Manifest | None) -> str:
        """Why a round does not start from this version; empty: it does. Args: ``manifest``: the round's."""
        is_model = current.base_digest == self.entry["digest"] and manifest == self.manifest
        is_state = dict(current.server_state) == dict(self.entry.get("server_state", {}))
        if is_model and is_state and current.download in ("", self.entry.get("download", "")):
            return ""
        return f"its model is not version {self.number} as it was signed"


def _signed_config(
    store: Store, state: RunState, number: int, key: OperatorKey
) -> dict[str, Any] | None:
    """A segment of the config, if the operator has signed it."""
    segments = store.control.runs.config_segments(state.run_id)
    if not 0 <= number < len(segments):
        return None
    found = segments[number]
    is_signed = is_segment_signed(state.run_id, state.name, number, found, key.public)
    return found if is_signed else None


def _doubt_of_model(state: RunState, base: _Base, current: RoundState, key: OperatorKey) -> str:
    """Why the model that a round starts from cannot be signed for; empty: it can."""
    if base.is_signed(state.run_id, key):
        return base.differs(current, base.manifest)
    return (
        f"version {base.number} is not signed with the operator's key {key.fingerprint}; begin a new run "
        "from it (`fl-queue export`, model.initial)"
    )


# Rounds


def of_round(
    store: Store,
    state: RunState,
    number: int,
    fields: Mapping[str, str],
    population: Sequence[str],
    shares: int,
) -> Vouched:
    """
    Sign a round that is about to be opened, if everything it consists of is the operator's.

    Args:
        fields: Of the round's hash.
        population: The run's, with those who come with this round.
        shares: Into how many parts the data is split.

    Raises:
        ConfigError: The key cannot be used.
    """
    key = store.control.enrolments.pins.key
    if key is None:
        return Vouched()
    current, manifest = parse_round_state(number, fields), None
    found, why_not = _signed_config(store, state, current.segment, key), ""
    if found is None:
        why_not = (
            f"segment {current.segment} of the config is not signed with the operator's key "
            f"{key.fingerprint}; `fl-queue cancel {state.name}`, and start it again with its config"
        )
    elif current.purpose != Purpose.initialise:
        base = _Base.read(store, state.run_id, current.base_version)
        manifest = base.manifest
        why_not = _doubt_of_model(state, base, current, key)
    elif statements.initial_digest(state.initial) != found["initial"]:
        why_not = "its initial model is another one than the run was begun with"
    if found is None or why_not:
        return Vouched("", why_not, _is_signed_run(store, state, key))
    statement = statements.of_round(
        replace(state, population=tuple(population)),
        current,
        shares,
        digest_of(found["config"]),
        statements.manifest_digest(manifest),
    )
    return Vouched(statements.sealed(statement, key))


def with_cohort(
    store: Store,
    run: str,
    current: RoundState,
    cohort: Sequence[str],
    population: Sequence[str] | None = None,
) -> Vouched:
    """
    Sign an open round again, with more clients.

    Args:
        population: The run's from now on; None: as it was.

    Raises:
        ConfigError: The key cannot be used.
    """
    key = store.control.enrolments.pins.key
    if key is None or not current.signed:
        return Vouched()
    statement = statements.opened(current.signed, key.public)
    if statement is None:
        return Vouched(why_not="its statement is not signed with the operator's key")
    # A statement copied from another run or round must not be signed again for other clients.
    known = {"run": run, "round": current.number, "cohort": digest_of(list(current.cohort))}
    if any(statement.get(name) != value for name, value in known.items()):
        return Vouched(why_not="its statement is of another run or round, or of other clients")
    statement |= {"cohort": digest_of(list(cohort))}
    if population is not None:
        statement |= statements.of_population(population)
    return Vouched(statements.sealed(statement, key))
