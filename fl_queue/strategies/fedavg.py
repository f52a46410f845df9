"""
FedAvg: the base model plus the mean of the updates.

    x <- x + sum_S p_i D_i,    D_i = y_i - x

``p_i`` is ``n_i / sum n`` with ``aggregation.weighting = "examples"``, and ``1 / |S|`` with ``uniform``.

Source:
    McMahan et al. 2017, arXiv 1602.05629, Algorithm 1 (server update). There clients send their
    models; here differences to the base, so the mean of the models is base + mean of differences.
"""

from __future__ import annotations

from fl_queue.strategies.base import Strategy


class FedAvg(Strategy):
    """``new = float32(float64(base) + mean)``, elementwise: the skeleton as it is."""

    supports_async = True
