"""The strategies by name: the built-in ones, and own ones as ``module:Class``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fl_queue.common.own_modules import defines, import_own
from fl_queue.common.spelling import nearest
from fl_queue.errors import ConfigError
from fl_queue.strategies.base import Strategy
from fl_queue.strategies.bulyan import Bulyan
from fl_queue.strategies.ditto import Ditto
from fl_queue.strategies.fedadagrad import FedAdagrad
from fl_queue.strategies.fedadam import FedAdam
from fl_queue.strategies.fedavg import FedAvg
from fl_queue.strategies.fedavgm import FedAvgM
from fl_queue.strategies.feddyn import FedDyn
from fl_queue.strategies.fednova import FedNova
from fl_queue.strategies.fedprox import FedProx
from fl_queue.strategies.fedyogi import FedYogi
from fl_queue.strategies.geometric_median import GeometricMedian
from fl_queue.strategies.krum import Krum
from fl_queue.strategies.median import Median
from fl_queue.strategies.multi_krum import MultiKrum
from fl_queue.strategies.qfedavg import QFedAvg
from fl_queue.strategies.scaffold import Scaffold
from fl_queue.strategies.trimmed_mean import TrimmedMean

#: Name -> class of the built-in strategies.
STRATEGIES: dict[str, type[Strategy]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedprox": FedProx,
    "fednova": FedNova,
    "qfedavg": QFedAvg,
    "scaffold": Scaffold,
    "feddyn": FedDyn,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "bulyan": Bulyan,
    "geometric_median": GeometricMedian,
    "ditto": Ditto,
}
#: Algorithms that are not strategies here: name -> what to write.
_ELSEWHERE = {
    "fedbn": 'FedBN is model.private = ["@batch_norm"], with any strategy',
    "fedper": 'FedPer is model.private = ["head.*"], the names of the last layers, with any strategy',
    "fedsgd": "FedSGD is fedavg with one full batch a round: train.epochs = 1 and a large train.batch_size",
}


def strategy_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """
    The ``[strategy]`` table, complete and checked; as it is for a user's own strategy.

    Raises:
        ConfigError: Unknown strategy, unknown option, or a value that cannot be used.
    """
    return dict(given) if ":" in name else _built_in(name).options_of(given)


def get_strategy(name: str, options: Mapping[str, Any] | None = None) -> Strategy:
    """
    The strategy that ``aggregation.strategy`` names, as clients and the sum see it.

    An own one is the skeleton there: it differs in the server's step only, and its code is the
    aggregator's (``load_strategy``).

    Raises:
        ConfigError: There is none of that name, or an option cannot be used.
    """
    return Strategy() if ":" in name else _built_in(name)(options)


def load_strategy(
    name: str, options: Mapping[str, Any] | None = None, allow: Sequence[str] = ()
) -> Strategy:
    """
    The strategy with its server's step, an own one with its code.

    Args:
        allow: Own strategies this worker may load, ``module:Class`` or ``module:*``. The name comes
            from Redis, and importing a module runs its code.

    Raises:
        ConfigError: ``aggregation.strategy`` or one of its options, with the reason.
    """
    module, colon, class_name = name.partition(":")
    if not colon:
        return get_strategy(name, options)
    if name not in allow and f"{module}:*" not in allow:
        raise ConfigError(
            "aggregation.strategy",
            f"this aggregator may not load {name}; if you trust it, start the worker with "
            f"--strategy-allow {name}",
        )
    try:
        own = import_own(module)
        found = getattr(own, class_name, None)
    except (ImportError, SyntaxError, ValueError) as exc:
        raise ConfigError("aggregation.strategy", f"{module} cannot be imported: {exc}") from exc
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise ConfigError(
            "aggregation.strategy",
            f"{module} has no class {class_name} derived from fl_queue.strategies.Strategy",
        )
    if name not in allow and not defines(own, found):
        raise ConfigError(
            "aggregation.strategy",
            f"{name} is not defined in {module}, and {module}:* allows what is; if you trust it, start "
            f"the worker with --strategy-allow {name}",
        )
    asks = found.fetched or found.extras or found.scalars or found.client_state or found.personal
    if asks:
        raise ConfigError(
            "aggregation.strategy",
            f"{name} asks clients for more than their updates, which an own strategy cannot",
        )
    if found.needs_all:
        raise ConfigError(
            "aggregation.strategy",
            f"{name} needs all updates at once, which an own strategy cannot: derive it from one that sums",
        )
    return found(options)


def _built_in(name: str) -> type[Strategy]:
    if name in _ELSEWHERE:
        raise ConfigError("aggregation.strategy", _ELSEWHERE[name])
    if name not in STRATEGIES:
        near = nearest(name, STRATEGIES)
        known = ", ".join(sorted(STRATEGIES))
        raise ConfigError(
            "aggregation.strategy", f"{name!r} is not module:Class, nor one of: {known}{near}"
        )
    return STRATEGIES[name]
