"""The section ``secure`` of a config, and what cannot go with secure rounds. No Redis here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fl_queue.config.section import Section, Use, option
from fl_queue.errors import ConfigError
from fl_queue.secure import graph
from fl_queue.secure.policy import LEAST_COHORT
from fl_queue.secure.ring import BITS

if TYPE_CHECKING:
    from fl_queue.config.settings import RunSettings

_FIXED = Use(fixed=True, newer=True)


def _bits_problem(bits: int) -> str | None:
    return None if bits in BITS else f"{bits} is not one of {', '.join(map(str, BITS))}"


@dataclass(frozen=True, kw_only=True)
class SecureSection(Section):
    """Secure rounds: the operator learns the sum of the updates and no single one; docs/guides/secure-sums.md."""

    NAME = "secure"

    enabled: bool = option(
        False,
        "updates are masked: the operator of Redis and of the aggregator learns their sum, and no single one",
        use=_FIXED,
    )
    bits: int = option(
        64,
        "bits of a parameter in a masked update: 64 (any config), 32, 24, 20 or 16 (fewer bytes, coarser steps)",
        check=_bits_problem,
        use=_FIXED,
    )
    min_cohort: int = option(
        LEAST_COHORT,
        "no sum of fewer clients is revealed; 3 or more: with two, each would learn the other's update",
        low=LEAST_COHORT,
        use=_FIXED,
    )
    confirm: bool = option(
        True,
        "more than two thirds of the cohort sign whose updates are in the sum before anything is revealed",
        use=_FIXED,
    )
    keys_s: float = option(
        15.0,
        "a round goes on without clients that have sent no keys for so long, once there are enough; seconds, above 0",
        above=0,
        use=_FIXED,
    )
    unmask_s: float = option(
        60.0,
        "a round is abandoned that could not be unmasked within this time; seconds, above 0",
        above=0,
        use=_FIXED,
    )
    max_corrupt: float = option(
        0.2,
        "more than 64 clients: part of them that may collude with the operator, 0 to 0.4",
        low=0.0,
        high=0.4,
        use=_FIXED,
    )
    max_dropout: float = option(
        0.1,
        "more than 64 clients: part of them that may drop out of a round, 0 to 0.4",
        low=0.0,
        high=0.4,
        use=_FIXED,
    )
    metrics: Literal["sums", "none"] = option(
        "sums",
        "sums: loss and accuracy of all clients together are in the sum; none: no metrics",
        use=_FIXED,
    )


def needed_updates(section: SecureSection, cohort: int) -> int:
    """
    Fewest updates with which a secure round of so many clients can end.

    Raises:
        ConfigError: No graph of so many clients withstands what the section asks for.
    """
    shape = graph.shape(cohort, section.max_corrupt, section.max_dropout)
    confirming = graph.confirmations_needed(cohort) if section.confirm else 0
    return max(section.min_cohort, shape.threshold, confirming)


def check_quorum(section: SecureSection, cohort: int, quorum: int) -> None:
    """
    Refuse a cohort or quorum with which a round could not be unmasked.

    Raises:
        ConfigError: Names the number that is needed.
    """
    if cohort < section.min_cohort:
        raise ConfigError(
            "round.cohort",
            f"{cohort} clients are fewer than secure.min_cohort = {section.min_cohort}; raise it",
        )
    needed = needed_updates(section, cohort)
    if quorum < needed:
        raise ConfigError(
            "round.quorum",
            f"{quorum} of {cohort} cannot unmask, which needs {needed} (secure.confirm, secure.min_cohort); "
            f"raise it to {needed}",
        )


def check_secure(settings: RunSettings) -> None:
    """
    Refuse what cannot go with secure rounds.

    Raises:
        ConfigError: Names the field, and the fix.
    """
    if not settings.secure.enabled:
        return
    for field, reason in _contradictions(settings):
        raise ConfigError(field, reason)
    cohort, quorum = settings.known_cohort(), settings.known_quorum()
    if cohort:
        check_quorum(settings.secure, cohort, quorum)


def _contradictions(settings: RunSettings) -> list[tuple[str, str]]:
    """Fields that go against secure rounds, and why."""
    secure, strategy = settings.secure, settings.plain_strategy()
    name, found = settings.aggregation.strategy, list[tuple[str, str]]()
    if settings.analysis is not None or settings.run.purpose != "train":
        found.append(
            ("secure.enabled", "secure rounds train a model; set it to false for an analysis or an evaluation")
        )  # fmt: skip
    if settings.is_async:
        found.append(
            ("round.mode", "async has no cohort that agrees on masks before it trains; set it to sync")
        )  # fmt: skip
    if settings.is_simulation:
        found.append(
            ("secure.enabled", "the processes of a simulation see every update; set it to false")
        )
    if strategy.needs_all:
        found.append(
            (
                "aggregation.strategy",
                f"{name} needs every update in clear; secure sums reveal only the sum: take fedavg, or "
                "secure.enabled = false",
            )
        )
    if strategy.scalars:
        found.append(
            (
                "aggregation.strategy",
                f"{name} sends a number beside its update, which would travel in clear; take fedavg, or "
                "secure.enabled = false",
            )
        )
    if strategy.needs_exact_updates and secure.bits != 64:
        found.append(("secure.bits", f"{name} needs updates as they were made; set it to 64"))
    if settings.update.codec != "float32" or settings.update.error_feedback:
        found.append(
            (
                "update.codec",
                f"{settings.update.codec} cannot be summed under masks; secure.bits = 16 is the codec of secure rounds",
            )
        )
    if secure.confirm and not settings.security.require_enrolment:
        found.append(
            (
                "secure.confirm",
                "needs signatures; set security.require_enrolment = true, or confirm = false (then only a curious "
                "operator is kept out)",
            )
        )
    return found
