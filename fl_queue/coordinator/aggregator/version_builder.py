"""
Build the next model version, on this machine's disk and on the data server.

It is a version of the run only once the commit script names it (``round_commit``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_queue.aggregation import rebase
from fl_queue.aggregation.merge import UpdateMerger
from fl_queue.aggregation.step_sum import StepSum
from fl_queue.common import failpoints
from fl_queue.common.files import Mapped
from fl_queue.common.safe_json import printable
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import CheckpointError, ContentMissing, FLQueueError, LocalStorageError
from fl_queue.models import checkpoint
from fl_queue.models.checkpoint import Body
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.base_part import BasePart
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import RoundRecord
from fl_queue.protocol.tensor_layout import Bytes, Tensor
from fl_queue.store import RoundState, Store
from fl_queue.strategies.base import RoundInfo, Strategy
from fl_queue.strategies.layouts import state_manifest

log = logging.getLogger(__name__)

#: Characters of an error in the reason of a round.
_MAX_REASON_LENGTH = 300


def failure_reason(exc: Exception, strategy: str) -> str:
    """
    The reason why a round could not be ended, as it is recorded in Redis.

    Args:
        strategy: Name of the round's strategy. The message of an own strategy's error may contain data.
    """
    if isinstance(exc, FLQueueError):
        reason = str(exc)
    elif ":" in strategy:
        reason = f"{type(exc).__name__}; its message is in the aggregator's log"
    else:
        reason = f"{type(exc).__name__}: {exc}"
    return printable(reason)[:_MAX_REASON_LENGTH]


def _with_beats(pieces: Iterable[Tensor], beat: Callable[[], None]) -> Iterator[Tensor]:
    for piece in pieces:
        beat()
        yield piece


@dataclass(frozen=True)
class BuiltVersion:
    """
    A version that can be committed.

    Args:
        version: Its number.
        digest: BLAKE3 of its body, hexadecimal.
        download: Digest of the encoded body that clients fetch instead; empty: they fetch the version.
        manifest: Its tensors.
        server_state: Name -> digest of the strategy's state that belongs to it.
        is_last: Whether no version follows: it has the result of an analysis.
    """

    version: int
    digest: str
    download: str
    manifest: Manifest
    server_state: dict[str, str]
    is_last: bool = False

    @property
    def entry(self) -> dict[str, Any]:
        """Its digests, named as in the run's record of versions."""
        return {
            "digest": self.digest,
            "download": self.download,
            "server_state": self.server_state,
        }


class VersionBuilder:
    """
    Builds the version that a round ends with.

    Args:
        store: Both servers.
        run: Run id.
        current: The round.
        config: Of the run.
        state_dir: This machine's folder; checkpoints are below it.
    """

    def __init__(
        self, store: Store, run: str, current: RoundState, config: RunConfig, state_dir: Path
    ) -> None:
        self.store, self.run, self.round = store, run, current
        self.config, self.state_dir = config, state_dir
        self.models = ModelStore(store, run, config.redis.chunk_bytes, state_dir)
        self._base: Mapped | Body | None = None

    def prepare(self, manifest: Manifest) -> None:
        """
        Fetch the round's base version while clients train; if it is missing, ``build_next`` tries again.

        The run's base part is written, too, where this machine has not made version 0: any of the aggregators'
        machines can then bring it back to the data server, export the model and back it up.
        """
        with suppress(ContentMissing, CheckpointError):
            self._base = self._open_base(manifest)
        if manifest.published is not None:
            # In each round: the aggregator that committed version 0 may have been killed before it did so, and
            # another maker of the same base part may have published it once more, for a day, since then.
            self.models.keep_base(manifest.published)
            self._keep_base_part(manifest.published)

    def _keep_base_part(self, base: BasePart) -> None:
        """Write the base part to disk, if it is not there; a later round tries again if that cannot be done."""
        folder = self.models.folder
        try:
            # This machine may have made another version 0, which was not committed.
            checkpoint.keep_base(folder, base)
            if (folder / checkpoint.file_name(base.digest, base)).exists():
                return
            body = self.models.open_base(base).view
            checkpoint.write(folder, base.digest, base, body, {"run": self.run})
        # The round can end without it: version 0's maker has it on its disk.
        except (ContentMissing, CheckpointError, LocalStorageError) as exc:
            log.warning("run=%s its base part is not on this machine's disk: %s", self.run, exc)

    def build_initial(self, manifest: Manifest, body: Bytes) -> BuiltVersion:
        """
        Build version 0, as a client has sent it, and store the run's base part.

        Raises:
            CheckpointError: It cannot be written.
        """
        view = memoryview(body)
        if manifest.published is not None:
            self._store_base_part(manifest.published, view[manifest.nbytes :])
        with ExitStack() as stack:
            return self._write(stack, 0, manifest, [view[: manifest.nbytes]], {})

    def _store_base_part(self, base: BasePart, body: Bytes) -> None:
        """Write the base part to disk and to the data server, once a run. Raises CheckpointError."""
        checkpoint.write(self.models.folder, base.digest, base, body, {"run": self.run})
        failpoints.failpoint("base.written")
        self.models.publish_base(base, body)
        failpoints.failpoint("base.published")

    def build_next(
        self,
        merge: UpdateMerger,
        strategy: Strategy | None,
        beat: Callable[[], None] = lambda: None,
        record: RoundRecord | None = None,
    ) -> BuiltVersion:
        """
        Build the version after the round's base.

        Args:
            merge: The round's merged updates.
            strategy: Computes the version from them.
            beat: Called for each block of it.
            record: Of the round, with its accepted updates; None: all of them are of the base version.

        Raises:
            CheckpointError: It cannot be written, or a checkpoint it needs cannot be read.
            ContentMissing: A body that it needs is not on the data server.
        """
        current = self.round
        version = current.base_version + 1
        with ExitStack() as stack:
            writers = self._state_writers(stack, version, merge.manifest, strategy)
            base = self._base or self._open_base(merge.manifest)
            facts = RoundInfo(version, merge.count, current.population, current.base_population)
            state = self.models.state_arrays(current.server_state, merge.manifest)
            sinks = {name: writer.write for name, writer in writers.items()}
            stale = rebase.stale_weights(record, merge.manifest) if record else {}
            bodies = {
                version: self.models.open_version(version, merge.manifest) for version in stale
            }
            older = {version: body.view for version, body in bodies.items()}
            pieces = merge.next_model(base.view, state, sinks, facts, strategy, older, stale)
            return self._write(stack, version, merge.manifest, _with_beats(pieces, beat), writers)

    def build_step(self, step: StepSum, wanted: int) -> BuiltVersion:
        """
        Build the state after a step of an analysis.

        Args:
            wanted: Number of the last version that the run may have.

        Raises:
            CheckpointError: It cannot be written.
            AnalysisError: The analysis has no result.
        """
        state, version = step.next_state(), self.round.base_version + 1
        is_last = step.is_last(state, wanted - version)
        with ExitStack() as stack:
            body = step.version_of(state)
            built = self._write(stack, version, step.analysis.manifest, [body], {})
        return replace(built, is_last=is_last)

    def base_tensors(self, manifest: Manifest) -> Mapping[str, Tensor]:
        """The tensors of the round's base version. Raises ContentMissing, CheckpointError."""
        self._base = self._base or self._open_base(manifest)
        return tensor_layout.views(manifest, self._base.view)

    def _open_base(self, manifest: Manifest) -> Mapped | Body:
        return self.models.open_body(self.round.base_digest, manifest)

    def _metadata(self, version: int) -> dict[str, str]:
        return {"run": self.run, "version": str(version), "round": str(self.round.number)}

    def _state_writers(
        self, stack: ExitStack, version: int, manifest: Manifest, strategy: Strategy | None
    ) -> dict[str, checkpoint.Writer]:
        """Writers of the strategy's state: it is built with the version, block by block."""
        if strategy is None:
            return {}
        layout, metadata = state_manifest(manifest), self._metadata(version)
        return {
            name: stack.enter_context(
                checkpoint.writing(self.models.folder, layout, {**metadata, "state": name})
            )
            for name in strategy.server_state
        }

    def _write(
        self,
        stack: ExitStack,
        version: int,
        manifest: Manifest,
        pieces: Iterable[Bytes | Tensor],
        writers: Mapping[str, checkpoint.Writer],
    ) -> BuiltVersion:
        """Write a version to disk and to the data server, with the strategy's state."""
        metadata = self._metadata(version)
        draft = stack.enter_context(
            checkpoint.drafted(self.models.folder, manifest, pieces, metadata)
        )
        state = {name: writer.finish() for name, writer in writers.items()}
        download = self._publish(draft, manifest, state)
        failpoints.failpoint("model.published")
        for part in state.values():
            part.keep()
        draft.keep()
        digests = {name: part.digest for name, part in state.items()}
        return BuiltVersion(version, draft.digest, download, manifest, digests)

    def _publish(
        self,
        draft: checkpoint.UncommittedCheckpoint,
        manifest: Manifest,
        state: Mapping[str, checkpoint.UncommittedCheckpoint],
    ) -> str:
        """
        Send the new version to the data server while the disk stores it durably.

        Returns:
            Digest of the encoded body that clients fetch instead; empty when they fetch the version.
        """
        encoding = self.config.model.codec
        with ThreadPoolExecutor(1) as other:
            syncing = other.submit(draft.sync)
            for body in (draft, *state.values()):
                self.models.publish(body.digest, body.view)
            download = self.models.publish_encoded(draft.view, manifest, encoding)
            syncing.result()
        return download
