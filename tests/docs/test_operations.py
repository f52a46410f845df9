"""The documents for operators match the code: events, findings, units, commands."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from fl_queue.protocol.events import kinds
from fl_queue.protocol.records import Verdict
from fl_queue.store import exposure
from tests.support.checkout import ROOT
from tests.support.commands import fl_queue

OURS = [
    ROOT / f"docs/{name}.md"
    for name in (
        "README",
        "getting-started/quickstart",
        "getting-started/machines",
        "guides/operations",
        "getting-started/faq",
        "guides/after-training",
    )
]
UNITS = sorted((ROOT / "config/systemd").glob("*.service"))


def trees() -> Iterator[ast.AST]:
    for folder in ("fl_queue", "workers"):
        for path in (ROOT / folder).rglob("*.py"):
            yield ast.parse(path.read_text())


def events() -> set[str]:
    """Every kind of event that the code may add to a stream."""
    used = {
        getattr(node, "id", None) or getattr(node, "attr", None)
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    }
    found = {kind for kind, made in kinds().items() if made.__name__ in used}
    for path in (ROOT / "fl_queue/store/lua").glob("*.lua"):
        found.update(re.findall(r"event = '(\w+)'", path.read_text()))
    return found


def section(title: str) -> str:
    return (
        (ROOT / "docs/guides/operations.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    )


def first_cells(text: str) -> set[str]:
    """The code in the first cells of the tables."""
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_runbook_has_every_event_and_no_other() -> None:
    documented = first_cells(section("Events of a run").split("`update_rejected` by")[0])
    documented |= first_cells(section("Events of a client"))

    assert len(documented) > 15
    assert documented == events() == set(kinds())


def test_the_runbook_has_every_status_of_a_rejected_update() -> None:
    documented = first_cells(section("Events of a run").split("`update_rejected` by")[1])

    assert documented == set(Verdict) - {"received", "accepted"}


def risks() -> list[exposure.Risk]:
    """What ``doctor`` makes findings of."""
    plain, unchecked = "redis://u:p@far.example/0", "rediss://u:p@far.example/0?ssl_cert_reqs=none"
    found = [risk for url in (plain, unchecked) for risk in exposure.of_url(url)]
    return [*found, *filter(None, [exposure.of_version("7.0.15")])]


def test_the_runbook_has_every_finding_of_doctor() -> None:
    text = section("What doctor finds")
    parts = [part for found in re.findall(r"`([^`]+)`", text) for part in found.split("...")]
    known = [part.strip() for part in parts if len(part.strip()) > 4]
    modules = sorted((ROOT / "fl_queue/reporting/doctor").glob("*.py"))
    trees = [ast.parse(path.read_text()) for path in modules]
    bad = []
    for node in chain.from_iterable(map(ast.walk, trees)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
            level, what = ast.unparse(node.args[0]), ast.unparse(node.args[1])
            # Two hand on a text that was made above: of an unreachable server, and of memory.
            if level != "'OK'" and what not in ("str(exc)", "what"):
                bad.append(what)

    for risk in risks():
        found = [part for part in known if part in risk.what]
        assert found, risk.what

    assert len(bad) >= 7
    assert [what for what in bad if not any(part in what for part in known)] == []


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_lets_the_job_at_work_finish(path: Path) -> None:
    lines = dict(
        line.split("=", 1) for line in path.read_text().splitlines() if re.match(r"\w+=", line)
    )

    assert lines["KillMode"] == "mixed"
    assert lines["Restart"] == "always"
    assert int(lines["TimeoutStopSec"]) > (300 if "aggregator" in path.name else 3600) - 1
    command = shlex.split(lines["ExecStart"].replace("%i", "hospital-a"))
    assert (command[0], command[1]) == ("/opt/fl-queue/bin/fl-queue", "worker")
    shown = fl_queue(*command[1:3], "--help", environment=os.environ).stdout
    assert [word for word in command if word.startswith("--") and word not in shown] == []


#: Required lines of each unit: its own account, secrets as files, no privilege it does not need.
HARDENED = {
    "UMask": "0077",
    "StateDirectoryMode": "0700",
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
    "CapabilityBoundingSet": "",
}


def settings(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_can_do_what_it_needs_and_no_more(path: Path) -> None:
    found = settings(path)

    assert {name: found.get(name) for name in HARDENED} == HARDENED
    # Code is compiled at run time; a neighbour's worker is looked up in /proc.
    assert "MemoryDenyWriteExecute" not in found
    assert "ProtectProc" not in found
    if "aggregator" in path.name:
        assert found["EnvironmentFile"] == "/etc/fl-queue/operator.env"
    else:
        assert "EnvironmentFile" not in found
        assert "--credentials %d/site.toml" in found["ExecStart"]


def test_no_two_units_share_an_account_or_a_state_folder() -> None:
    accounts = [settings(path)["User"] for path in UNITS]
    folders = [settings(path)["StateDirectory"] for path in UNITS]

    assert len(set(accounts)) == len(set(folders)) == len(UNITS) == 3
    assert all("%i" in settings(path)["User"] for path in UNITS if "@" in path.name)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_takes_a_unit_and_finds_it_closed(path: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("this machine has no systemd-analyze")
    unit = tmp_path / path.name.replace("@.", "@hospital-a.")
    unit.write_text(path.read_text().replace("/opt/fl-queue/bin/fl-queue", "/bin/true"))

    checked = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True)
    # Of 100: 92 without any of it.
    exposed_to = subprocess.run(
        [analyze, "security", "--offline=yes", "--no-pager", "--threshold=20", unit],
        capture_output=True, text=True,
    )  # fmt: skip

    assert (checked.returncode, checked.stderr) == (0, "")
    assert exposed_to.returncode == 0, exposed_to.stdout


def test_every_command_of_these_documents_is_run_or_has_a_reason() -> None:
    for path in OURS:
        lines = path.read_text().splitlines()
        fences = [number for number, line in enumerate(lines) if line.startswith("```")]
        for number in fences[::2]:
            reason = lines[number - 1].startswith("<!-- not run: ")
            assert reason or lines[number] == "```console", f"{path.name}:{number + 1}"


def commands() -> list[tuple[str, str]]:
    """The commands of ``console`` blocks with their documented output (empty: none)."""
    blocks = [
        block
        for path in OURS
        for block in re.findall(r"```console\n(.*?)```", path.read_text(), re.DOTALL)
    ]
    parts = [part for block in blocks for part in block.removeprefix("$ ").split("\n$ ")]
    return [(part.split("\n")[0], part.partition("\n")[2].strip()) for part in parts]


@pytest.mark.parametrize(("line", "answer"), commands())
def test_a_command_has_its_documented_output(line: str, answer: str, tmp_path: Path) -> None:
    words = shlex.split(line)
    assert words[0] == "fl-queue"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = fl_queue(*words[1:], environment=environment, folder=tmp_path)

    assert (done.returncode != 0) == answer.startswith("Error"), done.stderr
    assert answer in done.stdout + done.stderr
