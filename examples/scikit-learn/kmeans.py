"""
K-means over sites that see no row of each other: each round is one step of Lloyd's algorithm on all rows.

A task for ``run.task = "kmeans:Clusters"``; ``kmeans.toml`` is its config. A version has the centres that
its round assigned rows to, and the means over all rows of [the row is in cluster k] and of
[the row is in cluster k] times the row. Their quotient is the next centre.
Lloyd 1982, IEEE Transactions on Information Theory 28(2).
"""

import numpy as np
from sklearn.datasets import load_iris
from sklearn.metrics import pairwise_distances_argmin_min

from fl_queue.tasks import ArrayTask, ClientData, Rows


def centres_of(arrays):
    """Centres of a version, (K, features); a cluster without rows keeps its last one."""
    shares = arrays["shares"][:, None]
    found = arrays["sums"] / np.where(shares > 0, shares, 1)
    return np.where(shares > 0, found, arrays["centres"])


class Clusters(ArrayTask):
    """Fisher's iris, 150 rows of four lengths, which scikit-learn brings with it."""

    def initial_arrays(self):
        """Return the arrays of version 0."""
        # Known to all sites: drawn from a range that is no secret, and not from rows of a site.
        count, drawn = int(self.options["clusters"]), np.random.default_rng(self.config.run.seed)
        centres = drawn.uniform([4, 2, 1, 0], [8, 4.5, 7, 2.5], size=(count, 4))
        return {"centres": centres, "sums": np.zeros((count, 4)), "shares": np.zeros(count)}

    def client_data(self, context):
        """Split the rows over the run's clients."""
        x, species = load_iris(return_X_y=True)
        train, validation = self.split(species, context)
        return ClientData(Rows(x[train]), Rows(x[validation]))

    def fit(self, arrays, rows, context):
        """Train from a version."""
        (x,), centres = rows, centres_of(arrays)
        nearest, _ = pairwise_distances_argmin_min(x, centres)
        is_in = nearest[:, None] == np.arange(len(centres))
        return {"centres": centres, "sums": is_in.T @ x / len(x), "shares": is_in.mean(axis=0)}

    def score(self, arrays, rows, context):
        """Evaluate a version, as sums."""
        _, distances = pairwise_distances_argmin_min(rows[0], centres_of(arrays))
        return {"num_examples": len(distances), "inertia_sum": float((distances**2).sum())}
