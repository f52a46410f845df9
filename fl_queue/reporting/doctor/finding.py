"""One finding, and the error that ends the command when a check failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl_queue.errors import MachineUnfit, StoreUnavailable, Trouble

Level = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """
    One line of the report.

    Args:
        level: Severity.
        what: The fact.
        fix: Advice; empty if there is nothing to do.
        trouble: Reason why a Redis server cannot be used: ``gone``, ``silent``, ``not_now``, ``wrong_mode``, ``not_allowed``.
    """

    level: Level
    what: str
    fix: str = ""
    trouble: str = ""


def raise_on_failure(findings: list[Finding]) -> None:
    """
    Raise an error if a check failed.

    Raises:
        StoreUnavailable: A Redis role cannot be used.
        MachineUnfit: Another check failed.
    """
    failed = [finding for finding in findings if finding.level == "FAIL"]
    if any(finding.trouble for finding in failed):
        raise StoreUnavailable("one of the URLs", "cannot be used; see above")
    if failed:
        raise MachineUnfit(f"{len(failed)} checks failed; see above")


def not_usable(what: str, error: StoreUnavailable) -> Finding:
    """Describe a server that cannot be used."""
    fix = "start it, or correct the URL" if error.trouble in (Trouble.gone, Trouble.silent) else ""
    return Finding("FAIL", what, fix, error.trouble)
