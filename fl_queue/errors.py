"""
All errors that a command or a job can end with, and their exit codes.

Library code raises, and never prints or exits: ``cli.main`` turns an error into one line and its class's
``exit_code``. ``docs/reference/cli.md`` has the table of exit codes; a test compares it with the classes here.

The text of an error may quote data (a cell, a path, a message of a task's code). Only its ``public`` text
leaves a client's machine, see ``tasks/error_disclosure.py``; an error without one is named by its class.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from fl_queue.common.lazy import lazy
from fl_queue.common.redis_url import mask
from fl_queue.common.spelling import nearest

__getattr__ = lazy(__name__, {}, renamed={"BlobError": "MessageError"})


class Trouble(StrEnum):
    """Kinds of failure of a Redis server, as ``store/error_translation.py`` classifies them."""

    #: Connection refused, closed or reset.
    gone = "gone"
    #: Connected, and no reply in time.
    silent = "silent"
    #: Replies that it cannot serve for the time being: full, a replica, loading, its disk is missing.
    not_now = "not_now"
    #: Another kind of server than was asked for: a Sentinel, a node of a cluster, too old.
    wrong_mode = "wrong_mode"
    #: Refuses user, password or command.
    not_allowed = "not_allowed"


_TROUBLE = {
    Trouble.gone: "is not reachable",
    Trouble.silent: "does not answer in time",
    Trouble.not_now: "cannot serve now",
    Trouble.wrong_mode: "is not the kind of server that was asked for",
    Trouble.not_allowed: "refuses user, password or command",
}


class FLQueueError(Exception):
    """Base of all errors of fl-queue."""

    #: Exit status of a command that ends with the error.
    exit_code = 1
    #: Text that may leave the machine: words of the run's config, and numbers; empty: only the class's name may.
    public: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by attributes, as the constructors take different arguments."""
        return _restored, (type(self), self.args, self.__dict__)

    def _publish(self, public: bool | str, reason: str) -> None:
        """Set the public text. Args: ``public``: the text; True: the whole reason may be published."""
        self.public = reason if public is True else public or ""


def _restored(
    kind: type[FLQueueError], args: tuple[Any, ...], state: dict[str, Any]
) -> FLQueueError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class _WithReason(FLQueueError):
    """An error whose whole text is its reason. Args: ``public``: as of ``FLQueueError``; True: all of it."""

    def __init__(self, reason: str, *, public: bool | str = False) -> None:
        super().__init__(reason)
        self._publish(public, reason)
        self.reason = reason


class _OfPath(FLQueueError):
    """
    An error of a file or folder.

    Args:
        path: The file or folder; never part of the public text.
        reason: The cause, ending with the fix; it may quote data.
        public: Public part of the reason (a line, a column's number, a field of the config); True: all of it.
    """

    #: Put before the path.
    _kind = ""

    def __init__(self, path: str, reason: str, *, public: bool | str = False) -> None:
        super().__init__(f"{self._kind}{path}: {reason}")
        self._publish(public, reason)
        self.path = path
        self.reason = reason


class _OfRun(FLQueueError):
    """An error of one run. Args: ``run``: its name or id."""

    def __init__(self, run: str, reason: str) -> None:
        super().__init__(f"run {run}: {reason}")
        self.run = run
        self.reason = reason


# What the user, or the machine's owner, has to mend


class ConfigurationError(FLQueueError):
    """A config, a data folder or a machine that cannot be used as it is."""

    exit_code = 2


class ConfigError(ConfigurationError):
    """
    A config field or an argument of a command that cannot be used.

    Args:
        field: Dotted name, such as ``round.quorum``.
        reason: The cause, ending with the fix.
        public: Public part of the reason; True: all of it.
    """

    def __init__(self, field: str, reason: str, *, public: bool | str = False) -> None:
        super().__init__(f"{field}: {reason}")
        self._publish(public, reason)
        self.field = field
        self.reason = reason


class DataError(_OfPath, ConfigurationError):
    """A data file or folder that is missing, empty or unreadable."""

    exit_code = 3


class PolicyRefusal(ConfigurationError):
    """A question that a site's policy does not let it answer. Args: ``reason``: quotes no data, so it is public."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"refused by this site's policy: {reason}")
        self._publish(True, str(self))
        self.reason = reason


class MachineUnfit(ConfigurationError):
    """A check of ``fl-queue doctor`` failed; the findings name the fix."""

    exit_code = 1


# Runs


class RunError(FLQueueError):
    """A run that does not exist, cannot do what was asked, or failed."""

    exit_code = 2


class UnknownRun(RunError):
    """No run has that name. Args: ``known``: the names that exist."""

    def __init__(self, run: str, known: list[str]) -> None:
        there = (
            ", ".join(sorted(known)) if known else "none yet; start one with `fl-queue start-round`"
        )
        super().__init__(f"run {run}: there is no such run{nearest(run, known)} (runs: {there})")
        self.run = run
        self.known = known


class UnknownVersion(RunError):
    """The run has no such model version, or its content is neither on disk nor on the data server."""

    exit_code = 3

    def __init__(self, run: str, version: int, reason: str) -> None:
        super().__init__(f"run {run}: version {version} {reason}")
        self.run = run
        self.version = version
        self.reason = reason


class RunStateError(_OfRun, RunError):
    """The run exists, and its state does not allow the operation."""

    exit_code = 2


class RunFailed(_OfRun, RunError):
    """The run ended as failed, or the round that a command waited for was abandoned."""

    exit_code = 4


class AnalysisError(_WithReason, RunError):
    """
    An analysis that has no result, such as a fit that does not converge: its run ends with the sentence.

    Args:
        reason: Of names in the config, and of numbers of all sites together only, so all of it is public.
    """

    exit_code = 4

    def __init__(self, reason: str) -> None:
        super().__init__(reason, public=True)


class MergeFailed(RunError):
    """The next version could not be built from a round's updates; the round is retried until its deadline."""

    exit_code = 3


# What another process sent


class ProtocolError(FLQueueError):
    """Bytes, a job or a model of another process that the receiver does not accept."""

    exit_code = 3


class MessageError(_WithReason, ProtocolError):
    """A message or record that is malformed, or not what it claims to be."""

    exit_code = 3


class HeaderError(MessageError):
    """A message header with a missing, unknown, mistyped or out-of-range field."""


class ForgedMessage(MessageError):
    """
    A message that was not sent by the client it claims to be from, or not for this run.

    Args:
        claimed: The client it names; any process may have sent it.
        signer: The client whose key signed it; empty: none.
    """

    def __init__(self, claimed: str, reason: str, signer: str = "") -> None:
        super().__init__(reason)
        self.claimed, self.signer = claimed, signer


class JobRefused(ProtocolError):
    """A job hash that is not a call of one of the functions its worker runs."""


class UnmaskingFailed(_WithReason, RunError):
    """
    A secure round whose sum cannot be used: it is abandoned with the sentence.

    Args:
        reason: Of names and numbers of all clients together only, so all of it is public.
    """

    exit_code = 4

    def __init__(self, reason: str) -> None:
        super().__init__(reason, public=True)


class RoundRefused(ProtocolError):
    """
    A round that a site does not take part in, as it is not what the operator signed.

    Args:
        reason: Of names in Redis and the config's digest only, so all of it may leave the site.
        lasts: Whether the site would refuse the next round of the run, too.
    """

    def __init__(self, reason: str, lasts: bool = False) -> None:
        super().__init__(reason)
        self._publish(True, reason)
        self.lasts = lasts


class ModelMismatch(_WithReason, ProtocolError):
    """A model with other tensors than the run's manifest."""

    exit_code = 3


# What is stored


class StorageError(FLQueueError):
    """Content that cannot be written, or that is missing or damaged where it was stored."""

    exit_code = 3


class CheckpointError(_OfPath, StorageError):
    """A checkpoint that cannot be written (disk full, for example) or does not match its digest."""

    exit_code = 3
    _kind = "checkpoint "


class LocalStorageError(_OfPath, StorageError):
    """A file of fl-queue that this machine's disk does not take, or does not return as it was written."""

    exit_code = 3


class NoRoom(LocalStorageError):
    """This machine's disk has no room for what is to be written; it is tried again once space is freed."""


class ContentMissing(_WithReason, StorageError):
    """Content that is not on the data server at the moment; its reader asks for it again."""

    exit_code = 3


class ChunksMissing(ContentMissing):
    """A chunk, or the manifest it belongs to, is not on the data server. Args: ``index``: None: the manifest."""

    def __init__(self, digest: str, index: int | None) -> None:
        what = "the manifest" if index is None else f"chunk {index}"
        super().__init__(f"{what} of {digest} is not on the data server", public=True)
        self.digest = digest
        self.index = index


class DigestMismatch(ContentMissing):
    """Chunks on the data server are not those that their digest names."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"the chunks of {digest} have another digest", public=True)
        self.digest = digest


# Servers


class StoreUnavailable(FLQueueError):
    """
    Redis cannot be reached, or is not fit for use; the URL's password is masked.

    Args:
        url: URL of the server.
        reason: The cause, ending with the fix.
        trouble: Kind of failure; callers decide by it between waiting and giving up.
        public: Whether the reason names no address or file of this machine.
    """

    exit_code = 5

    def __init__(
        self, url: str, reason: str, trouble: Trouble = Trouble.gone, *, public: bool = False
    ) -> None:
        super().__init__(f"Redis at {mask(url)}: {reason}")
        self.public = f"Redis {reason if public else _TROUBLE[trouble]}"
        self.url = mask(url)
        self.reason = reason
        self.trouble = trouble


class ServerStartError(_OfPath):
    """A private redis-server that cannot be started, or ended. Args: ``path``: its state folder."""

    exit_code = 5


# Workers


class WorkerError(FLQueueError):
    """A worker that cannot do its work, or must stop."""


class WorkerDied(WorkerError):
    """A worker process ended before the run began; the message has its last lines of log."""


class ClientNameTaken(WorkerError):
    """Another worker process serves the client already. Args: ``holder``: the process that does."""

    exit_code = 2

    def __init__(self, client: str, holder: str) -> None:
        super().__init__(
            f"client {client}: is served by another worker ({holder}); stop that one first"
        )
        self.client = client
        self.holder = holder


class UpdateWithheld(WorkerError):
    """
    An update that its site does not send in this round, as it would disclose too few of the site's rows.

    Args:
        reason: The cause, ending with the fix; of the run's config and the site's own numbers.
    """

    exit_code = 3

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self._publish(True, reason)
        self.reason = reason


class TrainingLost(_WithReason, WorkerError):
    """A training whose process was lost, or could not keep its result; another attempt of the job may succeed."""

    exit_code = 3


class OutOfMemory(_WithReason, WorkerError):
    """A part of a training (data, model, batch, forward, backward, optimizer, evaluation) needs more memory than there is."""

    exit_code = 3


class RoundEnded(_WithReason, WorkerError):
    """A job's round ended while the job waited: its answer is not wanted any more."""


class OwnershipLost(WorkerError):
    """Another aggregator incarnation has taken over; this one must change nothing more."""


#: Errors that last until a site's config, data or code is mended.
LASTING = (
    ConfigError,
    DataError,
    LocalStorageError,
    PolicyRefusal,
    ImportError,
    FileNotFoundError,
    PermissionError,
)
