"""Sites with a table each, for tests of analyses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped,unused-ignore]

from tests.support.commands import CommandResult, fl_queue
from tests.support.federation import Federation, wait_for

CONFIG = """
[run]
task = "statistics"

[round]
cohort = {cohort}
deadline_s = 300.0

[model]
keep_updates = true

[task]
file = "table.csv"
numbers = ["age", "bmi"]
quantiles = [0.25, 0.5, 0.75]
levels = {{ sex = ["F", "M"], stage = ["I", "II", "III"] }}
groups = ["age by sex"]
tables = ["sex by stage"]
correlation = ["age", "bmi"]
"""


def table(rows: int, seed: int) -> pd.DataFrame:
    """A table with gaps in it."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "name": [f"patient {seed} {row}" for row in range(rows)],
            "age": rng.integers(18, 90, rows),
            "bmi": rng.normal(25, 4, rows).round(1),
            "sex": rng.choice(["F", "M"], rows),
            "stage": rng.choice(["I", "II", "III"], rows),
        }
    )
    frame.loc[rng.random(rows) < 0.2, "bmi"] = np.nan
    return frame


def start_sites(
    federation: Federation,
    tables: Sequence[pd.DataFrame],
    policy: str = "",
    file: str = "table.csv",
) -> None:
    """Start a client worker for each table, with its own data folder and state folder."""
    for number, frame in enumerate(tables, 1):
        name = f"site-{number}"
        folder = federation.folder / name
        folder.mkdir(exist_ok=True)
        frame.to_csv(folder / file, index=False)
        rules = federation.folder / f"{name}.toml"
        rules.write_text(policy)
        federation.start(name, "--data", str(folder), "--policy", str(rules))
        federation.clients.append(name)
    count = len(federation.processes)
    wait_for("workers", lambda: len(federation.store.control.workers.living()) == count, 120)


def config_file(folder: Path, cohort: int, name: str = "survey.toml") -> Path:
    """A config that asks these sites."""
    path = folder / name
    path.write_text(CONFIG.format(cohort=cohort))
    return path


def command(sites: Federation, *words: str, folder: Path | None = None) -> CommandResult:
    """Run ``fl-queue`` on the servers of some sites, in their folder or another one."""
    state = ("--state-dir", str(sites.redis.state_dir))
    # What stops a process at a point is for the sites' workers.
    environment = {name: text for name, text in sites.environment.items() if name != "FLQ_FAULTS"}
    return fl_queue(*words, *state, environment=environment, folder=folder or sites.folder)
