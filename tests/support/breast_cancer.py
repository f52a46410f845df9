"""Breast cancer data as tables of sites, and the logistic regression that fits them, as a model of the task ``table``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped,unused-ignore]
from safetensors.numpy import save_file
from sklearn.datasets import load_breast_cancer  # type: ignore[import-untyped,unused-ignore]

#: Coefficients by statsmodels' Logit on the raw columns, and the constant.
COEFFICIENTS: Mapping[str, float] = {
    "mean radius": 1.300653352,
    "mean texture": 0.3828008831,
    "mean smoothness": 102.7973758,
    "mean concavity": 18.5184779,
    "mean symmetry": 14.37445986,
}
CONSTANT = -40.73798025
FEATURES = [name.replace(" ", "_") for name in COEFFICIENTS]
CONFIG = f"""
[run]
task = "table"

[data]
partition = "site"
validation_fraction = 0.2

[task]
file = "table.csv"
objective = "binary"
target = "malignant"
classes = "0,1"
features = "{",".join(FEATURES)}"
"""


def frame() -> pd.DataFrame:
    """The five columns and the target, (569, 6)."""
    found = load_breast_cancer(as_frame=True)
    table = found.data[list(COEFFICIENTS)].set_axis(FEATURES, axis=1)
    return table.assign(malignant=1 - found.target)


def log_odds(table: pd.DataFrame) -> np.ndarray:
    """Log-odds of malignant, (N,), in float64."""
    return np.asarray(CONSTANT + table[FEATURES].to_numpy() @ np.array([*COEFFICIENTS.values()]))


def write_model(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    """A file of a model as ``fl-queue export`` writes it."""
    save_file(dict(weights), path)


def weights() -> dict[str, np.ndarray]:
    """The model's tensors; its columns are not standardised."""
    count = len(FEATURES)
    return {
        "present": np.ones(count, np.float32),
        "means": np.zeros(count, np.float32),
        "squares": np.ones(count, np.float32),
        "standardised": np.array(1, np.int64),
        "layers.0.weight": np.array([[*COEFFICIENTS.values()]], np.float32),
        "layers.0.bias": np.array([CONSTANT], np.float32),
    }
