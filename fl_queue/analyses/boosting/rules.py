"""Settings of boosted trees, with XGBoost's names and meanings."""

from __future__ import annotations

from dataclasses import dataclass

#: Levels of a column of categories, with that of other texts: their set is one word of a state.
MAX_CATEGORIES = 64
#: A column of fewer categories is split one against the rest.
ONE_HOT_BELOW = 4
#: Largest step of a leaf, and of a gain, of counts (XGBoost's max_delta_step of count:poisson).
POISSON_STEP = 0.7
#: No split gains less.
LEAST_GAIN = 1e-6


@dataclass(frozen=True)
class Rules:
    """
    Settings of boosted trees.

    Args:
        objective: ``binary``, ``multi``, ``squared`` or ``poisson``.
        classes: Trees of one iteration: the classes of ``multi``, else 1.
        trees: Iterations at most.
        max_depth: Levels of splits of a tree.
        eta: Factor of each leaf.
        max_bin: Bins of a column of numbers at most.
        l2, l1: Penalties of leaves (``lambda`` and ``alpha``).
        gamma: A split gains more.
        min_child_weight: Least sum of hessians on each side of a split.
        subsample: Part of the rows that each iteration takes.
        validation: Part of the rows that is never trained on.
        patience: Iterations without a lower loss of the validation rows after which it ends; 0: it does not.
        seed: Of the rows that are taken.
    """

    objective: str = "binary"
    classes: int = 1
    trees: int = 100
    max_depth: int = 6
    eta: float = 0.3
    max_bin: int = 64
    l2: float = 1.0
    l1: float = 0.0
    gamma: float = 0.0
    min_child_weight: float = 1.0
    subsample: float = 1.0
    validation: float = 0.0
    patience: int = 0
    seed: int = 0

    @property
    def max_step(self) -> float:
        """Largest step of a leaf before ``eta``; 0: any."""
        return POISSON_STEP if self.objective == "poisson" else 0.0

    @property
    def max_nodes(self) -> int:
        """Nodes of a tree at most."""
        return (2 << self.max_depth) - 1
