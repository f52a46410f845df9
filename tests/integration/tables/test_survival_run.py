"""The guide of survival with real sites: its configs and its commands, as they stand there."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from lifelines.datasets import load_rossi

from fl_queue.store.embedded.server_pair import start
from tests.support.checkout import ROOT
from tests.support.federation import Federation
from tests.support.server_binaries import chosen_server
from tests.support.table_sites import command, start_sites

GUIDE = (ROOT / "docs/guides/survival.md").read_text()


def block(name: str) -> str:
    """The config of the guide that begins with the comment of that file name."""
    found = re.search(rf"^```toml\n(# {re.escape(name)}\n.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    assert found, name
    return found[1]


def words(begin: str) -> list[str]:
    """The command of the guide that begins like this, without ``fl-queue``."""
    line = next(line for line in GUIDE.splitlines() if line.startswith(f"fl-queue {begin}"))
    return shlex.split(line, comments=True)[1:]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Federation]:
    """An aggregator and three sites with a third of the Rossi data each."""
    folder = tmp_path_factory.mktemp("survival")
    rossi = load_rossi()
    parts = [rossi[rossi.index % 3 == site] for site in range(3)]
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(redis, folder, clients=0, evaluator=False, forked=True)
        try:
            start_sites(made, parts, "min_cell = 1\n", "rossi.csv")
            yield made
        finally:
            made.close()


def test_the_curves_of_the_guide(sites: Federation, tmp_path: Path) -> None:
    """Those of the pooled table; shown again as a picture."""
    (tmp_path / "curves.toml").write_text(block("curves.toml"))
    done = command(sites, *words("statistics curves.toml"), "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["sites"], found["rows"]) == (3, 432)
    [group] = found["survival"]["week arrest"]["groups"]
    assert group["survival"][52] == pytest.approx(0.73611111, abs=5e-9)
    assert found["survival"]["week arrest by fin"]["log_rank"]["p"] == pytest.approx(
        0.050116, abs=5e-7
    )
    shown = command(sites, *words("result curves"), folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "log-rank chi-square 3.83757" in shown.stdout
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_hazards_of_the_guide(sites: Federation, tmp_path: Path) -> None:
    """Those of the pooled table with a stratum for each site, though a site and the aggregator are killed on the way."""
    (tmp_path / "hazards.toml").write_text(block("hazards.toml"))
    fired = [
        sites.arm("ledger.noted", "kill-worker", "site-2"),
        sites.arm("model.published", "kill-worker", "aggregator"),
    ]
    done = command(sites, *words("regression hazards.toml"), "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(path.exists() for path in fired)
    found = json.loads(done.stdout)
    assert (found["sites"], found["rows"], found["events"], found["steps"]) == (3, 432, 114, 6)
    assert found["fit"]["log_likelihood"] == pytest.approx(-534.2691272027, rel=1e-12)
    assert found["coefficients"][0]["coefficient"] == pytest.approx(-0.3692501787, rel=1e-9)
    assert found["coefficients"][0]["error"] == pytest.approx(0.1914747575, rel=1e-8)
    for begin in ("result hazards", "verify hazards"):
        again = command(sites, *words(begin), folder=tmp_path)
        assert again.returncode == 0, again.stdout + again.stderr
    shown = re.search(r"^```markdown\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    assert shown is not None
    assert (tmp_path / "hazards.md").read_text() == shown[1]
