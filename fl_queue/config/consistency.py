"""
Refusal of configs whose fields are valid one by one, but contradict each other.

No Redis here.
"""

from __future__ import annotations

from fl_queue.common.toml_text import value_text
from fl_queue.config.analysis_rules import check_analysis
from fl_queue.config.data_section import check_data
from fl_queue.config.schema import RoundSection
from fl_queue.config.secure_section import check_secure
from fl_queue.config.settings import RunSettings
from fl_queue.config.task_catalog import TASKS
from fl_queue.config.training_rules import check_training
from fl_queue.errors import ConfigError
from fl_queue.strategies import STRATEGIES
from fl_queue.strategies.base import Strategy


def check(settings: RunSettings) -> None:
    """
    Refuse fields that contradict each other.

    Raises:
        ConfigError: Names the field to change, and the fix.
    """
    _check_quorum(settings)
    if settings.analysis is not None:
        check_analysis(settings)
    _check_evaluation(settings)
    if settings.is_simulation:
        _check_simulation(settings)
        _check_simulated_quorum(settings)
    check_data(settings.data, settings.run.task, settings.task, settings.clients.count)
    _check_strategy(settings)
    _check_beginning(settings)
    check_training(settings.train, settings.plain_strategy())
    check_secure(settings)
    _check_mode(settings)
    if not settings.is_simulation:
        _check_named_clients(settings)
    settings.format_of_sum()
    if not settings.is_async:
        _check_room(settings)


def too_few_updates(name: str, strategy: Strategy, quorum: int) -> str:
    """Why a strategy cannot merge as few updates as a quorum allows; empty when it can."""
    fewest = strategy.min_updates()
    if quorum >= fewest:
        return ""
    options = ", ".join(f"{key} = {value}" for key, value in strategy.options.items())
    needs = f"; {strategy.NEEDS}" if strategy.NEEDS else ""
    return (
        f"{name} ({options}{needs}) needs {fewest} updates at least, the quorum is {quorum};"
        " raise round.quorum and round.cohort, or change [strategy]"
    )


def _check_quorum(settings: RunSettings) -> None:
    cohort, quorum = settings.round.cohort, settings.round.quorum
    if isinstance(cohort, int) and isinstance(quorum, int) and quorum > cohort:
        raise ConfigError(
            "round.quorum",
            f"{quorum} is more than round.cohort = {cohort}; lower the quorum or raise the cohort",
        )


def _check_evaluation(settings: RunSettings) -> None:
    """Refuse an evaluation of what is no model, and its rows where a model is trained."""
    if settings.run.purpose == "train":
        if settings.run.rows != "all":
            raise ConfigError("run.rows", 'is for run.purpose = "evaluate"; set it to all')
        return
    if settings.analysis is not None:
        raise ConfigError(
            "run.purpose", f"{settings.run.task} is no model; set it to train, or name a task"
        )
    if settings.is_async:
        raise ConfigError("round.mode", "an evaluation is one round of all clients; set it to sync")


def _check_simulation(settings: RunSettings) -> None:
    if settings.security.require_enrolment:
        raise ConfigError(
            "security.require_enrolment",
            "virtual clients cannot be enrolled; leave it false in a simulation",
        )
    for name, listed in (
        ("include", settings.clients.include),
        ("exclude", settings.clients.exclude),
    ):
        if listed:
            raise ConfigError(
                f"clients.{name}",
                "is for client workers; virtual clients all take part: leave it empty",
            )
    count, cohort, shares = settings.clients.count, settings.round.cohort, settings.data.shares
    if count < 1:
        raise ConfigError("clients.count", "a simulation needs 1 virtual client or more; set it")
    if isinstance(cohort, int) and cohort > count:
        raise ConfigError(
            "round.cohort",
            f"{cohort} is more than clients.count = {count}; lower it, or raise the count",
        )
    if 0 < shares < count:
        raise ConfigError(
            "data.shares",
            f"{shares} is fewer than clients.count = {count}; leave it 0, or raise it",
        )


def _check_simulated_quorum(settings: RunSettings) -> None:
    size, quorum = settings.known_cohort(), settings.round.quorum
    if isinstance(quorum, int) and quorum > size:
        raise ConfigError(
            "round.quorum",
            f"{quorum} is more than the {size} clients of a round (round.cohort = {settings.round.cohort} "
            f"of clients.count = {settings.clients.count}); lower it",
        )


def _check_strategy(settings: RunSettings) -> None:
    name, weighting = settings.aggregation.strategy, settings.aggregation.weighting
    strategy = settings.plain_strategy()
    if weighting not in strategy.WEIGHTINGS:
        raise ConfigError(
            "aggregation.weighting",
            f"{weighting} is not what {name} is defined for; set it to {strategy.WEIGHTINGS[0]}",
        )
    if settings.aggregation.clip_norm and not strategy.may_clip:
        fit = ", ".join(sorted(name for name, kind in STRATEGIES.items() if kind.may_clip))
        raise ConfigError(
            "aggregation.clip_norm",
            f"{name} needs updates as they were made; set it to 0, or take one of {fit}",
        )
    if strategy.personal and settings.model.private:
        raise ConfigError(
            "model.private",
            f"{name} keeps a whole model at each client already; leave it empty, or use another strategy",
        )
    _check_codec(settings, strategy)
    smallest = settings.known_quorum()
    problem = too_few_updates(name, strategy, smallest) if smallest else ""
    if problem:
        raise ConfigError("round.quorum", problem)


def _check_beginning(settings: RunSettings) -> None:
    """Refuse settings of ``model.initial`` that would have no effect."""
    model = settings.model
    if model.initial_fresh and model.initial_mode != "partial":
        raise ConfigError(
            "model.initial_fresh",
            "an exact start loads every tensor; set model.initial_mode to partial, or leave it empty",
        )


def _check_codec(settings: RunSettings, strategy: Strategy) -> None:
    if strategy.needs_exact_updates and settings.update.codec != "float32":
        raise ConfigError(
            "update.codec",
            f"{settings.aggregation.strategy} needs updates as they were made; set it to float32",
        )
    if settings.update.error_feedback and settings.update.codec == "float32":
        raise ConfigError(
            "update.error_feedback",
            "float32 leaves nothing out; set it to false, or take another update.codec",
        )


def _check_mode(settings: RunSettings) -> None:
    _check_unused_fields(settings.round)
    if not settings.is_async:
        return
    buffer, concurrency = settings.round.buffer, settings.round.concurrency
    if isinstance(buffer, int) and isinstance(concurrency, int) and buffer > concurrency:
        raise ConfigError(
            "round.buffer",
            f"{buffer} is more than round.concurrency = {concurrency}, and a client has one update in a buffer; lower it, or raise the concurrency",
        )
    if settings.is_simulation:
        raise ConfigError(
            "round.mode",
            "async needs clients with workers of their own, and a pool trains virtual ones in groups; set it to sync, or start client workers (clients.kind = cross-silo)",
        )
    name = settings.aggregation.strategy
    # Of an own strategy only the server's step is its own, and that sees the mean.
    if ":" not in name and not settings.plain_strategy().supports_async:
        raise ConfigError(
            "round.mode",
            f"{name} is defined for a cohort that starts from one version; set it to sync, or aggregation.strategy to fedavg",
        )


def _check_unused_fields(section: RoundSection) -> None:
    """Refuse a changed field of the other mode: it would have no effect."""
    options = section.options()
    for key, use in section.uses().items():
        default = options[key].default
        if use.mode not in ("", section.mode) and getattr(section, key) != default:
            raise ConfigError(
                f"round.{key}",
                f"has no effect with round.mode = {section.mode}; set it to {value_text(default)} ({use.instead})",
            )


def _check_named_clients(settings: RunSettings) -> None:
    """Refuse more clients than there can be, where the config itself limits them."""
    field, wanted = "round.cohort", settings.round.cohort
    if settings.is_async:
        field, wanted = "round.concurrency", settings.round.concurrency
    if not isinstance(wanted, int):
        return
    if 0 < (named := settings.named_clients()) < wanted:
        raise ConfigError(
            field,
            f"{wanted} is more than the {named} clients of clients.include; lower it",
        )
    if 0 < (shares := settings.known_shares()) < wanted:
        raise ConfigError(
            field,
            f"{wanted} is more than data.shares = {shares}, and each client takes one; lower it",
        )


def _check_room(settings: RunSettings) -> None:
    """Refuse a rule that needs all updates at once where they are known to have no room together."""
    name, room = settings.aggregation.strategy, settings.redis.unmerged_bytes
    task = TASKS.get(settings.run.task)
    if task is None or not settings.plain_strategy().needs_all:
        return
    updates = settings.max_updates()
    needed = updates * 4 * task.parameters
    if settings.update.codec == "float32" and needed > room:
        raise ConfigError(
            "redis.unmerged_bytes",
            f"{name} needs the {updates} updates of a round at once, {needed} bytes, and {room} may lie on "
            "the data server; raise it, or lower round.cohort",
        )
