"""View of a run at one moment in a terminal, drawn with rich. No Redis here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar

from fl_queue import metrics
from fl_queue.coordinator.rounds import eligibility, initialisation
from fl_queue.protocol.records import Receipt, RoundRecord, Verdict, updates_in
from fl_queue.reporting import purposes, rich_console
from fl_queue.reporting.event_lines import Event
from fl_queue.reporting.rich_console import Table, Text
from fl_queue.store import RoundState, RunState

#: Lines of a live display that a big cohort may take.
CLIENTS_SHOWN = 16
ROUNDS_SHOWN = 5
_STYLES = {Verdict.received: "cyan", Verdict.accepted: "green", "training": "", "waiting": "dim"}


@dataclass
class RunSnapshot:
    """
    State of a run at one moment.

    Args:
        state: The run; None when it has been deleted.
        round: Its newest round, while its keys live.
        receipts: Of that round, by client.
        progress: Client -> its newest event of that round (epoch, accuracy, ...).
        evaluated: Version -> finished metrics on the test set.
        ended: The last rounds' records.
        trouble: Why Redis cannot be asked at the moment.
    """

    state: RunState | None
    round: RoundState | None = None
    receipts: Mapping[str, Receipt] = field(default_factory=dict)
    progress: dict[str, Event] = field(default_factory=dict)
    evaluated: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    ended: list[RoundRecord] = field(default_factory=list)
    healed: str = ""
    trouble: str = ""

    @property
    def received(self) -> int:
        """Clients of the cohort whose update is in and not refused."""
        cohort = self.round.cohort if self.round else ()
        return updates_in(cohort, self.receipts)


def render(snapshot: RunSnapshot) -> RenderableType:
    """The snapshot for a terminal."""
    if snapshot.state is None:
        return rich_console.text("the run has been deleted")
    parts: list[RenderableType] = [_header(snapshot, snapshot.state)]
    if snapshot.state.active and snapshot.round is not None:
        parts.append(_round_line(snapshot, snapshot.round))
        if not snapshot.round.groups:
            parts.append(_clients(snapshot, snapshot.round))
        if snapshot.round.open and snapshot.round.makers:
            parts.append(
                rich_console.text(
                    f"  {initialisation.who_is_asked(snapshot.round, snapshot.receipts)}"
                )
            )
    if snapshot.state.active:
        parts += [
            rich_console.text(f"  left out: {line}")
            for line in eligibility.lines(snapshot.state.left_out)
        ]
    if snapshot.ended:
        parts.append(_recent(snapshot))
    if snapshot.state.reason:
        parts.append(rich_console.text(snapshot.state.reason, style="yellow"))
    if snapshot.healed:
        parts.append(rich_console.text(f"healed: {snapshot.healed}", style="yellow"))
    if snapshot.trouble:
        parts.append(rich_console.text(f"{snapshot.trouble}; trying on", style="red"))
    return Group(*parts)


def _header(snapshot: RunSnapshot, state: RunState) -> Text:
    version = "-" if state.version is None else state.version
    words: str = state.state
    if state.active:
        words = "between rounds"
        if snapshot.round is not None and snapshot.round.open:
            words = purposes.in_words(snapshot.round.purpose, f"round {snapshot.round.number}")
    head = rich_console.text("").append_text(rich_console.text(state.name, "bold"))
    head.append_text(rich_console.text(f" ({state.run_id})  {words}"))
    return head.append(f"  version {version} of {state.rounds_wanted}")


def _round_line(snapshot: RunSnapshot, current: RoundState) -> Text:
    stage = f"stage {current.secure.stage}: " if current.secure is not None else ""
    words = f"{stage}{snapshot.received} updates in, quorum {current.quorum}, cohort {len(current.cohort)}"
    line = rich_console.text(
        f"  {current.progress(snapshot.received) if current.is_async else words}"
    )
    return line.append(f"   {current.elapsed_s:.0f} s of {current.deadline_s:.0f} s", style="dim")


def _clients(snapshot: RunSnapshot, current: RoundState) -> Table:
    table = rich_console.grid(padding=(0, 2))
    # What is still open first: in a big cohort that is what one looks for.
    ordered = sorted(current.cohort, key=lambda client: client in snapshot.receipts)
    for client in ordered[:CLIENTS_SHOWN]:
        table.add_row(rich_console.text(f"  {client}"), *_client_cells(snapshot, client))
    if len(ordered) > CLIENTS_SHOWN:
        table.add_row(f"  and {len(ordered) - CLIENTS_SHOWN} more")
    return table


def _client_cells(snapshot: RunSnapshot, client: str) -> tuple[RenderableType, Text, Text]:
    event, receipt = snapshot.progress.get(client, {}), snapshot.receipts.get(client)
    epoch, epochs = max(0, event.get("epoch", 0)), max(1, event.get("epochs", 1))
    bar = ProgressBar(total=epochs, completed=epochs if receipt else epoch, width=20)
    accuracy = f"accuracy {event['accuracy']:.4f}" if "accuracy" in event else ""
    if receipt is None:
        words = f"epoch {epoch} of {epochs}" if event else "waiting"
        return (
            bar,
            rich_console.text(words, style="" if event else "dim"),
            rich_console.text(accuracy),
        )
    words = "update received" if receipt.status == Verdict.received else receipt.status
    tail = f": {receipt.reason}" if receipt.reason else ""
    if receipt.is_in and receipt.staleness:
        tail = f", {receipt.staleness} versions old"
    return (
        bar,
        rich_console.text(words + tail, style=_STYLES.get(receipt.status, "red")),
        rich_console.text(accuracy),
    )


def _recent(snapshot: RunSnapshot) -> Text:
    judged = {
        record.base_version: metrics.finish(record.validation)
        for record in snapshot.ended
        if record.validation
    } | dict(snapshot.evaluated)
    lines = []
    for record in snapshot.ended[-ROUNDS_SHOWN:]:
        if record.version is None:
            lines.append(f"  round {record.round} {record.outcome}: {record.reason}")
            continue
        accuracy = judged.get(record.version, {}).get("accuracy")
        words = "not judged yet" if accuracy is None else f"accuracy {accuracy:.4f}"
        old = max(record.staleness.values(), default=0)
        aged = f", up to {old} versions old" if old else ""
        merged = f"{len(record.accepted)} merged{aged}, {record.elapsed_s:.1f} s"
        lines.append(f"  round {record.round}  version {record.version}  {words}  ({merged})")
    return rich_console.lines(lines, style="dim")
