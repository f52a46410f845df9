"""
Every error a user can meet, with its exit code.

    FLQueueError                                              exit code
      ConfigError        a config field or CLI argument           2
      RunStateError      the run cannot do that now               2
      UnknownRun         no run of that name                      2
      BlobError          a blob that is not what it says          3
      DataError          a data file or folder                    3
      NoRoom             no room on this machine's disk           3
      ModelMismatch      a client's model differs from the run's  3
      UpdateWithheld     an update of too few rows, kept at home  3
      UnknownVersion     no such model version                    3
      CheckpointError    a checkpoint cannot be written or read   3
      MergeFailed        the next version cannot be made          3
      RunFailed          a round abandoned, a run failed          4
      StoreUnavailable   Redis not reachable or not fit           5

Library code raises, and never prints or exits; ``cli.main`` turns an error into one line
and its exit code. ``OwnershipLost`` is internal: an aggregator incarnation that has been
replaced ends itself with it.

A message may quote data: a cell, a path, what somebody else's code says. What of an error may leave a
client's machine is its ``public`` text; ``error_disclosure`` decides, and everything without one is named by its class.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from fl_queue.common.redis_url import mask
from fl_queue.common.spelling import nearest


class Trouble(StrEnum):
    """What is the matter with a Redis server that cannot be used; ``store/error_translation.py`` decides it."""

    #: Nobody answers there: connection refused, closed or reset.
    gone = "gone"
    #: It is reached and does not answer in time.
    silent = "silent"
    #: It answers that it cannot serve: full, a replica, loading, without its disk, ... It passes.
    not_now = "not_now"
    #: It is not the kind of server that was asked for: a Sentinel, a node of a cluster, too old.
    wrong_mode = "wrong_mode"
    #: It refuses user, password or command.
    not_allowed = "not_allowed"


_TROUBLE = {
    Trouble.gone: "is not reachable",
    Trouble.silent: "does not answer in time",
    Trouble.not_now: "cannot serve now",
    Trouble.wrong_mode: "is not the kind of server that was asked for",
    Trouble.not_allowed: "refuses user, password or command",
}


class FLQueueError(Exception):
    """Base of all errors; ``exit_code`` is the CLI's exit status."""

    exit_code = 1
    #: What may leave the machine it happened on: words of the run's config, and numbers; empty: its class.
    public: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by what it is, as the classes take different arguments."""
        return _remade, (type(self), self.args, self.__dict__)

    def _publish(self, public: bool | str, reason: str) -> None:
        """Args: ``public``: the text; True: the whole reason is made of such words."""
        self.public = reason if public is True else public or ""


def _remade(kind: type[FLQueueError], args: tuple[Any, ...], state: dict[str, Any]) -> FLQueueError:
    made = kind.__new__(kind, *args)
    made.args = args
    made.__dict__.update(state)
    return made


class ConfigError(FLQueueError):
    """
    A config field or argument that cannot be used.

    Args:
        field: Dotted name, such as ``round.quorum``.
        reason: What is wrong, ending with the fix.
        public: What of the reason may leave a site; True: all of it.
    """

    exit_code = 2

    def __init__(self, field: str, reason: str, *, public: bool | str = False) -> None:
        super().__init__(f"{field}: {reason}")
        self._publish(public, reason)
        self.field = field
        self.reason = reason


class RunStateError(FLQueueError):
    """The run exists, and its state does not allow what was asked."""

    exit_code = 2

    def __init__(self, run: str, reason: str) -> None:
        super().__init__(f"run {run}: {reason}")
        self.run = run
        self.reason = reason


class UnknownRun(FLQueueError):
    """No run of that name; ``known`` are the names there are."""

    exit_code = 2

    def __init__(self, run: str, known: list[str]) -> None:
        there = (
            ", ".join(sorted(known)) if known else "none yet; start one with `fl-queue start-round`"
        )
        super().__init__(f"run {run}: there is no such run{nearest(run, known)} (runs: {there})")
        self.run = run
        self.known = known


class BlobError(FLQueueError):
    """Bytes that are not a well-formed blob, or not the blob they claim to be."""

    exit_code = 3

    def __init__(self, reason: str, *, public: bool | str = False) -> None:
        super().__init__(reason)
        self._publish(public, reason)
        self.reason = reason


class UpdateWithheld(FLQueueError):
    """
    An update that its site does not send, in this round: it would show too few of the site's rows.

    Args:
        reason: Why, ending with the fix; words of the run's config, and the site's own numbers.
    """

    exit_code = 3

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self._publish(True, reason)
        self.reason = reason


class ChunksMissing(BlobError):
    """A chunk is not on the data server (yet, or any more): ask again, it is no verdict."""

    def __init__(self, digest: str, index: int) -> None:
        super().__init__(f"chunk {index} of {digest} is not on the data server", public=True)
        self.digest = digest
        self.index = index


class DataError(FLQueueError):
    """
    A data file or folder that is missing, empty or unreadable.

    Args:
        path: Where; it never leaves the machine.
        reason: What is wrong, ending with the fix; it may quote the data.
        public: What of the reason may leave a site (a line, a column's number, a field of the config);
            True: all of it.
    """

    exit_code = 3

    def __init__(self, path: str, reason: str, *, public: bool | str = False) -> None:
        super().__init__(f"{path}: {reason}")
        self._publish(public, reason)
        self.path = path
        self.reason = reason


class NoRoom(DataError):
    """A disk of this machine is too full for what is to be written; that passes once it is freed."""


class ModelMismatch(FLQueueError):
    """A client's model has other tensors than the run's manifest."""

    exit_code = 3

    def __init__(self, reason: str, *, public: bool | str = False) -> None:
        super().__init__(reason)
        self._publish(public, reason)


class UnknownVersion(FLQueueError):
    """The run has no such model version, or its content is nowhere to be found."""

    exit_code = 3

    def __init__(self, run: str, version: int, reason: str) -> None:
        super().__init__(f"run {run}: version {version} {reason}")
        self.run = run
        self.version = version
        self.reason = reason


class CheckpointError(FLQueueError):
    """A checkpoint cannot be written (disk full, say) or does not match its digest."""

    exit_code = 3

    def __init__(self, path: str, reason: str, *, public: bool | str = False) -> None:
        super().__init__(f"checkpoint {path}: {reason}")
        self._publish(public, reason)
        self.path = path
        self.reason = reason


class MergeFailed(FLQueueError):
    """The next version could not be made of a round's updates: it is tried again until the deadline."""

    exit_code = 3


class RunFailed(FLQueueError):
    """The run ended as failed, or the round that was waited for was abandoned."""

    exit_code = 4

    def __init__(self, run: str, reason: str) -> None:
        super().__init__(f"run {run}: {reason}")
        self.run = run
        self.reason = reason


class StoreUnavailable(FLQueueError):
    """
    Redis cannot be reached, or is not fit for use; the URL's password is masked.

    Args:
        url: Where; masked here.
        reason: What is wrong, ending with the fix.
        trouble: Which kind of trouble; callers that wait or give up decide by it.
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


class OwnershipLost(FLQueueError):
    """This aggregator incarnation has been replaced; it must change nothing any more."""
