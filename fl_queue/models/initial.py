"""
The weights that a run begins with (``model.initial``): published by the operator, read by the maker of version 0.

The operator's machine has the file and not the model, the maker has the model and not the file. So the file's
tensors travel as content of the data server under their digest: renamed by ``model.initial_map``, and without
those that ``model.initial_fresh`` names. The maker lays what came over the model that it has built from the
run's seed; which tensors these are follows from two lists of names, so every reader of the run finds them, see
``overlay``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from fl_queue.config.schema import ModelSection, prefixes
from fl_queue.errors import DataError, MessageError, ModelMismatch
from fl_queue.models import weights_file
from fl_queue.models.host_cache import HostCache
from fl_queue.models.weights_file import Weight
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.arrays import Tensor
from fl_queue.protocol.manifest import Manifest
from fl_queue.store import RunState, Store, keyspace

#: Initial models lie under this in place of a run id, until the run's first job has read them.
INITIAL = "initial"
INITIAL_LIFETIME_S = 7 * 24 * 3600
PARTIAL = "partial"
#: Names that a line lists.
_NAMED = 4


@dataclass(frozen=True)
class Overlay:
    """
    The parts of a beginning, by names.

    Args:
        loaded: Tensor of the model -> its name in the file, after ``model.initial_map``.
        fresh: Tensors of the model as the task built them.
        ignored: Tensors of the file that the model does not take.
    """

    loaded: Mapping[str, str]
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Beginning:
    """
    A run's record of the file it begins with, and what became of its tensors.

    Args:
        file: Name of the file, without its folder.
        source: BLAKE3 of the file, hexadecimal; empty in a run of an older release.
        mode: ``exact`` or ``partial``.
        loaded, fresh, ignored: Names, sorted, as of ``Overlay``; empty before version 0.
    """

    file: str
    source: str
    mode: str
    loaded: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Describe it in one line."""
        return f"begun from {self.origin}: {self.counts}"

    @property
    def origin(self) -> str:
        """The file's name, and its digest if it is recorded."""
        return f"{self.file or 'a file'}{f' ({self.source[:12]})' if self.source else ''}"

    @property
    def counts(self) -> str:
        """How many tensors were loaded, are fresh, were ignored, with the first names of the latter two."""
        parts = {"loaded": self.loaded, "fresh": self.fresh, "ignored": self.ignored}
        return ", ".join(
            f"{len(names)} {part}{_listed(names) if part != 'loaded' else ''}"
            for part, names in parts.items()
        )


def _listed(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    return f" ({', '.join(names[:_NAMED])}{more})" if names else ""


def publish_initial(
    store: Store, path: Path, chunk_bytes: int, model: ModelSection | None = None
) -> dict[str, Any]:
    """
    Put a file's tensors on the data server for the worker that makes version 0.

    Args:
        path: A safetensors or a torch file.
        model: Of the config: mode, patterns and renaming; None: exact.

    Returns:
        The run's record of it: digest, size, and each tensor's name, dtype and shape.

    Raises:
        DataError: The file cannot be read, holds code, or a tensor of a dtype a model cannot have, or NaN.
    """
    model = model or ModelSection()
    with weights_file.reading(path) as file:
        sent, left_out = _selected(file.weights, path, model)
        raw = [weight.raw() for weight in sent.values()]
        digest = tensor_layout.pieces_digest(raw)
        pieces = tensor_layout.rechunked(raw, chunk_bytes)
        store.data.chunks.put(keyspace.model_blob(INITIAL, digest), pieces, INITIAL_LIFETIME_S)
        record = {
            "digest": digest,
            "nbytes": sum(each.nbytes for each in raw),
            "chunk_bytes": chunk_bytes,
            "tensors": [[name, each.dtype, list(each.shape)] for name, each in sent.items()],
            "source": {"file": path.name, "digest": file.digest},
        }
    if model.initial_mode == PARTIAL:
        record["partial"] = {"fresh": list(model.initial_fresh), "left_out": left_out}
    return record


def from_file(
    model: ModelSection, manifest: Manifest, built: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """
    The arrays that a run with this config begins with, where the file and the model are on one machine.

    Args:
        model: Of the config; it names a file.
        manifest: Of the task's model.
        built: The model as the task built it.

    Raises:
        DataError: As ``publish_initial``.
        ModelMismatch: As ``fitted``.
    """
    path = Path(model.initial)
    with weights_file.reading(path) as file:
        sent, _ = _selected(file.weights, path, model)
        arrays = {name: weight.widened() for name, weight in sent.items()}
        is_partial = model.initial_mode == PARTIAL
        kept = built if is_partial else None
        return fitted(arrays, manifest, str(path), kept, model.initial_fresh)


def _selected(
    weights: Mapping[str, Weight], path: Path, model: ModelSection
) -> tuple[dict[str, Weight], list[str]]:
    """The tensors that travel, under their names in the model; the names of those left out."""
    named = _renamed(weights, model.initial_map, path)
    left_out = [name for name in named if _is_fresh(name, model.initial_fresh)]
    sent = {name: weight for name, weight in named.items() if name not in left_out}
    if not sent:
        raise DataError(str(path), "holds no tensor to begin with")
    for name, weight in sent.items():
        if weight.dtype != "int64" and np.isnan(weight.widened()).any():
            raise DataError(str(path), f"tensor {name!r} holds NaN; start from another model")
    return sent, left_out


def _renamed(weights: Mapping[str, Weight], pairs: Sequence[str], path: Path) -> dict[str, Weight]:
    """
    Tensors under their names in the model, sorted.

    Raises:
        DataError: Two tensors get one name, or a prefix is that of none.
    """
    found: dict[str, Weight] = {}
    used: set[str] = set()
    for name, weight in weights.items():
        old, new = next((p for p in prefixes(pairs) if name.startswith(p[0])), ("", ""))
        used.add(old)
        renamed = new + name[len(old) :]
        if renamed in found:
            reason = f"model.initial_map gives two of its tensors the name {renamed!r}"
            raise DataError(str(path), reason)
        found[renamed] = weight
    for old, _ in prefixes(pairs):
        if old not in used:
            first = next(iter(weights), "none")
            raise DataError(
                str(path),
                f"model.initial_map: no tensor's name begins with {old!r}; such as {first!r}",
            )
    return dict(sorted(found.items()))


def _is_fresh(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def fetch_initial(cache: HostCache, initial: Mapping[str, Any]) -> Path:
    """
    A run's initial model as a file of this host: the tensors one after the other.

    Args:
        cache: The run's.
        initial: The run's record of it.

    Raises:
        ContentMissing: It is not on the data server (any more).
    """
    there = replace(cache, chunk_bytes=initial["chunk_bytes"], source=INITIAL)
    there.fetch(initial["digest"], initial["nbytes"])
    return cache.path(initial["digest"])


def initial_arrays(
    body: memoryview,
    run: str,
    initial: Mapping[str, Any],
    manifest: Manifest,
    built: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """
    The arrays of a run's initial model, for the task's manifest.

    Args:
        body: The tensors one after the other, as ``fetch_initial`` has fetched them.
        initial: The run's record of it.
        built: The model as the task built it, of which a partial beginning keeps a part.

    Raises:
        ModelMismatch: A tensor is missing, of another shape, or not in the task's model.
    """
    arrays, offset = {}, 0
    for name, dtype, shape in initial["tensors"]:
        nbytes = math.prod(shape) * weights_file.itemsize(dtype)
        raw = body[offset : offset + nbytes]
        arrays[name] = weights_file.elements(raw, dtype, tuple(shape))
        offset += nbytes
    where = f"the initial model of run {run}"
    partial = initial.get("partial")
    if partial is None:
        return fitted(arrays, manifest, where)
    return fitted(arrays, manifest, where, built or {}, tuple(partial["fresh"]))


def overlay(names: Collection[str], manifest: Manifest, fresh: Sequence[str] = ()) -> Overlay:
    """
    The tensors of a model that come from a file, by names alone.

    A tied tensor may have any of its names in the file, its own first.

    Args:
        names: Of the file's tensors, after ``model.initial_map``.
        manifest: Of the model.
        fresh: Patterns of tensors that stay as they were built.
    """
    other: dict[str, list[str]] = {}
    for alias, name in sorted(manifest.aliases.items()):
        other.setdefault(name, []).append(alias)
    loaded: dict[str, str] = {}
    for tensor in manifest.names:
        own = [tensor, *other.get(tensor, ())]
        there = next((name for name in own if name in names), None)
        if there is not None and not any(_is_fresh(name, fresh) for name in own):
            loaded[tensor] = there
    of_model = {*manifest.names, *manifest.aliases}
    left = tuple(name for name in manifest.names if name not in loaded)
    return Overlay(loaded, left, tuple(sorted(set(names) - of_model)))


def beginning(initial: Mapping[str, Any] | None, manifest: Manifest | None) -> Beginning | None:
    """
    A run's beginning from a file, as its readers see it; None of a run that began from its seed.

    Args:
        initial: The run's record.
        manifest: The run's; None before version 0.

    Raises:
        MessageError: The record cannot be read.
    """
    if not initial:
        return None
    try:
        source, partial = initial.get("source", {}), initial.get("partial", {})
        mode = PARTIAL if "partial" in initial else "exact"
        made = Beginning(str(source.get("file", "")), str(source.get("digest", "")), mode)
        if manifest is None:
            return made
        left_out = {str(name) for name in partial.get("left_out", ())}
        names = {str(name) for name, _, _ in initial["tensors"]} | left_out
        found = overlay(names, manifest, [*partial.get("fresh", ()), *map(_literal, left_out)])
    except (LookupError, TypeError, ValueError, AttributeError) as exc:
        raise MessageError("the record of the run's initial model cannot be read") from exc
    return Beginning(
        made.file, made.source, mode, tuple(sorted(found.loaded)), found.fresh, found.ignored
    )


def of_run(store: Store, state: RunState) -> Beginning | None:
    """A run's beginning from a file; None where there is none, or none that can be read."""
    if not state.initial:
        return None
    try:
        return beginning(state.initial, store.control.versions.manifest(state.run_id))
    except MessageError:
        return None


def _literal(name: str) -> str:
    """A pattern of this name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def fitted(
    arrays: Mapping[str, Tensor],
    manifest: Manifest,
    where: str,
    built: Mapping[str, Tensor] | None = None,
    fresh: Sequence[str] = (),
) -> dict[str, Tensor]:
    """
    The arrays of ``model.initial`` as the task's model has them.

    Args:
        where: Source of the arrays, for messages.
        built: The model as the task built it, of a partial beginning; None: the arrays are all of it.
        fresh: Patterns of tensors that stay as they were built.

    Raises:
        ModelMismatch: A tensor is missing, of another shape, not finite, or not in the task's model; or a
            partial beginning takes nothing, or has a pattern without a tensor.
    """
    found = overlay(arrays, manifest, fresh)
    if built is None:
        _check_exact(found, where)
    else:
        _check_partial(found, manifest, fresh, where)
    made = {}
    for spec in manifest.tensors:
        if spec.name not in found.loaded:
            made[spec.name] = np.asarray((built or {})[spec.name])
            continue
        array = arrays[found.loaded[spec.name]]
        if array.shape != spec.shape:
            raise _mismatch(
                f"{spec.name} has shape {array.shape}, the model's {spec.shape}; "
                f"{'' if built is not None else 'set model.initial_mode = partial and '}"
                "name it in model.initial_fresh"
            )
        # A buffer may be infinite, as the mask of an attention is.
        with np.errstate(over="ignore"):
            made[spec.name] = array.astype(spec.dtype)
        if spec.kind == "parameter" and not np.isfinite(made[spec.name]).all():
            raise _mismatch(
                f"tensor {spec.name!r} is not finite in float32; start from another model"
            )
    return made


def _check_exact(found: Overlay, where: str) -> None:
    partly = "or set model.initial_mode = partial"
    if found.fresh:
        what = f"tensor {found.fresh[0]!r} is missing"
        raise _mismatch(f"{what} in {where}; give all of them, {partly}", f"{what}; {partly}")
    if found.ignored:
        raise _mismatch(
            f"the task's model has no tensor {found.ignored[0]!r}; leave it out, {partly}",
            f"it has a tensor that the task's model has not; {partly}",
        )


def _check_partial(found: Overlay, manifest: Manifest, fresh: Sequence[str], where: str) -> None:
    names = {spec.name for spec in manifest.tensors} | set(manifest.aliases)
    for pattern in fresh:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ModelMismatch(
                f"model.initial_fresh: {pattern!r} matches no tensor of the model; it has {min(names)!r}",
                public=f"model.initial_fresh: {pattern!r} matches no tensor of the model",
            )
    if not found.loaded:
        there = found.ignored[0] if found.ignored else "none"
        raise _mismatch(
            f"no tensor of {where} is in the model: it has {there!r}, the model {min(names)!r}; "
            "see model.initial_map",
            "no tensor of it is in the model; see model.initial_map",
        )


def _mismatch(reason: str, public: str = "") -> ModelMismatch:
    return ModelMismatch(f"model.initial: {reason}", public=f"model.initial: {public or reason}")
