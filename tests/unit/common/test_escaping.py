"""What a client or a writer of Redis called something cannot act on who looks at it: one test for each sink."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

import fl_queue
from fl_queue import metrics
from fl_queue.cli.compare import _table
from fl_queue.cli.output import print_json, print_line, print_text
from fl_queue.common import escaping, logs
from fl_queue.protocol.records import RoundRecord
from fl_queue.reporting import (
    comparison,
    curves,
    event_lines,
    exporters,
    live_view,
    rich_console,
    rounds_table,
)
from fl_queue.reporting.exporters import Numbers
from fl_queue.store import RunState
from tests.support.hostile_text import EVIL, OBEYED

ROOT = Path(fl_queue.__file__).parent.parent


def record(evil: str) -> RoundRecord:
    """A committed round in which a client called everything so; of before names were checked."""
    return RoundRecord(
        1, "train", "committed", f"1 of 1, {evil}", 0, "0" * 64, 1, "1" * 64, ["a"], ["a"], 1,
        accepted={"a": "2" * 64}, weights={"a": 10},
        validation={"num_examples": 10, "loss_sum": 3.0},
        train={"num_examples": 10, "loss_sum": 1.0, f"{evil}_sum": 1.0},
        client_validation={"a": {"loss": 0.3, evil: 0.5}},
    )  # fmt: skip


def rows(evil: str) -> list[rounds_table.RoundRow]:
    return rounds_table.rows([record(evil)], {}, {})


def drawn(renderable: Any, console: Any = None) -> str:
    """What a terminal gets."""
    out = io.StringIO()
    options: dict[str, Any] = {"file": out, "width": 300, "force_terminal": True}
    (console or rich_console.console)(**options).print(renderable)
    return out.getvalue()


@pytest.mark.parametrize("console", [rich_console.console, Console])
@pytest.mark.parametrize("evil", EVIL)
def test_tables(evil: str, console: Any) -> None:
    row = comparison.ComparedRun(evil, "r", evil, 1, 0.5, 0.5, 1, 0, 1.0, {evil: evil})
    for table in (rounds_table.table(rows(evil)), _table([row], evil)):
        text = drawn(table, console)
        assert not any(sequence in text for sequence in OBEYED)
        assert escaping.line(evil) in text


@pytest.mark.parametrize("evil", EVIL)
def test_live_progress(evil: str) -> None:
    state = RunState(
        evil, evil, "training", evil, 0, "", 1, 2, 0, None, 0.0, 0, (), 0, None, 0.0,
        left_out={evil: evil},
    )  # fmt: skip
    scene = live_view.RunSnapshot(state, ended=[record(evil)], healed=evil, trouble=evil)
    text = drawn(live_view.render(scene))
    assert not any(sequence in text for sequence in OBEYED)
    assert text.count(escaping.line(evil)) >= 4


def test_an_unescaped_text_does_not_reach_the_terminal() -> None:
    assert "\x1b]" not in drawn(Text("\x1b]0;pwned\x07"))
    assert "[/] :smile:" in drawn("[/] :smile:")


@pytest.mark.parametrize("evil", EVIL)
def test_lines_documents_and_logs(evil: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_line(f"run {evil}")
    print_line(f"run {evil}", err=True)
    print_text(f"a = {evil}\n")
    print_json({evil: [evil]})
    out, err = capsys.readouterr()
    for formatter in (logs.TextFormatter("%(message)s"), logs.JsonFormatter()):
        try:
            raise ValueError(evil)
        except ValueError as exc:
            trouble = (ValueError, exc, None)
        made = logging.LogRecord("n", 30, "", 1, "%s", (evil,), trouble)
        err += formatter.format(made) + "\n"
    assert not any(sequence in out + err for sequence in OBEYED)
    assert out.splitlines()[0] == f"run {escaping.line(evil)}"
    assert json.loads(out[out.index("\n{") :]) == {evil: [evil]}


@settings(max_examples=60)
@given(st.text(alphabet=st.characters()))
def test_what_is_shown_is_printable_and_json_is_the_same_document(text: str) -> None:
    assert escaping.line(text).isprintable()
    assert escaping.line("plain é 中") == "plain é 中"
    document = json.dumps({text: text}, ensure_ascii=False)
    assert escaping.json_text(document).isprintable()
    assert json.loads(escaping.json_text(document)) == {text: text}
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.: -]{0,99}", escaping.curve_part(text))


@pytest.mark.parametrize("kind", exporters.KINDS)
def test_exporters(kind: str, tmp_path: Path) -> None:
    if kind in ("tensorboard", "mlflow"):
        pytest.importorskip(kind, reason="an extra")
    state: Any = SimpleNamespace(run_id="r-000001", name="r", created_at=1.0, state="training")
    for evil in EVIL:
        numbers = Numbers(rows(evil), curves.points([record(evil)], {}))
        sink = exporters.open_sink(kind, tmp_path / "out", state.run_id)
        assert sink.write(state, numbers) > 0
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_two_names_that_are_changed_stay_two() -> None:
    parts = {escaping.curve_part(name) for name in (*EVIL, "a$c", "a b/c", "a b$c")}
    assert len(parts) == len(EVIL) + 3


@pytest.mark.parametrize("evil", EVIL)
def test_csv(evil: str) -> None:
    row = rows(evil)[0]
    text = rounds_table.to_csv([rounds_table.RoundRow(**{**row.__dict__, "reason": evil})])
    assert not any(sequence in text for sequence in OBEYED)
    head, cells = csv.reader(io.StringIO(text))
    for cell in (*head, cells[head.index("reason")]):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert escaping.csv_cell(-1.5) == -1.5


@pytest.mark.parametrize("evil", ["$\\frac$", "\x1b$$a", "_hidden"])
def test_plots(evil: str, tmp_path: Path) -> None:
    rounds_table.plot(tmp_path / "curve.svg", [record(evil)], {1: {"loss": 0.5}})
    assert (tmp_path / "curve.svg").stat().st_size > 1000


def test_old_history_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    for evil in EVIL:
        assert evil in metrics.finish(record(evil).train)


def test_no_module_writes_to_a_terminal_by_another_way() -> None:
    """rich's classes are made in ``rich_console`` alone, and commands write by ``cli/output.py``."""
    found = []
    for path in [*(ROOT / "fl_queue").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]:
        text = path.read_text("utf-8")
        if path.name != "rich_console.py" and re.search(r"(?<![\w.])(Console|Table|Text)\(", text):
            found.append(f"{path}: makes one of rich's; ask rich_console")
        if path.parent.name == "cli" and path.name != "completion.py":
            calls = re.findall(r"(?:click\.echo|click\.secho|(?<![\w.])print)\(.*", text)
            found += [
                f"{path}: {call}; use print_line" for call in calls if "escaping." not in call
            ]
    assert found == []


@pytest.mark.parametrize(
    "event",
    [
        {"event": "round_committed"},
        {"event": "round_opened", "cohort": "a", "purpose": "else"},
        {"event": "updates_refused", "count": "many", "client": "a"},
        {"event": "clients_joined", "clients": 3},
    ],
)
def test_an_event_without_fields_of_its_kind_is_a_line_all_the_same(
    event: dict[str, Any],
) -> None:
    assert event_lines.describe(event).endswith("(an event that cannot be read)")
