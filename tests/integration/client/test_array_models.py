"""The examples of examples/scikit-learn, as whole runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_iris

from fl_queue import Run, load_config
from fl_queue.tasks import ClientContext, load_task
from fl_queue.tasks.arrays import rows_of
from tests.support.checkout import ROOT

EXAMPLES = ROOT / "examples/scikit-learn"
CLIENTS = 3
SETTINGS = {"clients.count": CLIENTS, "clients.processes": 1, "run.evaluate_every": 0}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the folder of the examples, as their README has it; their modules are forgotten afterwards."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in ("linear", "kmeans"):
        sys.modules.pop(name, None)


def arrays_of(run: Run) -> dict[str, Any]:
    return {name: tensor.double().numpy() for name, tensor in run.model().items()}


def test_clients_continue_a_linear_fit_from_their_mean(tmp_path: Path) -> None:
    with Run.start(
        "linear.toml", name="linear", rounds=3, settings=SETTINGS, state_dir=tmp_path, quiet=True
    ) as run:
        run.wait(quiet=True)
        found = [row["accuracy"] for row in run.history()]
        assert run.state.state == "completed"
        assert found == sorted(found)
        assert found[-1] > 0.85
        import linear  # type: ignore[import-not-found]

        x, y = linear.load_digits(return_X_y=True)
        assert (linear.restored(arrays_of(run)).predict(x / 16) == y).mean() > 0.85


def test_rounds_of_k_means_are_lloyds_algorithm_on_all_rows(tmp_path: Path) -> None:
    rounds = 4
    with Run.start(
        "kmeans.toml",
        name="kmeans",
        rounds=rounds,
        settings=SETTINGS,
        state_dir=tmp_path,
        quiet=True,
    ) as run:
        run.wait(quiet=True)
        assert run.state.state == "completed"
        found, first = arrays_of(run), run.model(version=0)["centres"].double().numpy()
    import kmeans  # type: ignore[import-not-found]

    task = load_task("kmeans:Clusters", load_config("kmeans.toml"), ["kmeans:Clusters"])
    shares = [
        ClientContext.of(
            task.config,
            client=f"sim-{n}",
            run="kmeans",
            round_number=1,
            share=n - 1,
            shares=CLIENTS,
        )
        for n in range(1, CLIENTS + 1)
    ]
    rows = np.concatenate([rows_of(task.client_data(one).train)[0] for one in shares])
    assert len(rows) < len(load_iris().data)
    whole = KMeans(3, init=first, n_init=1, max_iter=rounds, tol=0.0).fit(rows)
    # sklearn's last step moves the centres after it has assigned the rows, as a version's sums do.
    np.testing.assert_allclose(kmeans.centres_of(found), whole.cluster_centers_, atol=2e-4)
