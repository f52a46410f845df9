"""
The commands that read: what runs, rounds and clients are doing, and what they made.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fl_queue.cli.completion import config_argument, run_argument
from fl_queue.cli.groups import Group
from fl_queue.cli.options import (
    Where,
    baseline_option,
    complain,
    connection_options,
    json_option,
    output_option,
    say,
    set_option,
    signing_option,
    write,
    write_json,
)
from fl_queue.cli.start import follow_to_end
from fl_queue.common import escaping, outages
from fl_queue.common.safe_json import dumps
from fl_queue.config import metric_choice, rendering
from fl_queue.config import run_config as configs
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError
from fl_queue.models import selection
from fl_queue.reporting import baselines as baselines
from fl_queue.reporting import diagnosis, doctor, progress, rich_console, rounds_table, run_status
from fl_queue.store import keyspace


@click.command()
@run_argument(required=False)
@json_option
@connection_options
def status(where: Where, run: str | None, as_json: bool) -> None:
    """What all runs are doing, or RUN in detail: what an open round waits for."""
    store = where.open_control()
    states = [runs.find_run(store, run)] if run else run_status.living_runs(store)
    found = run_status.statuses(store, states)
    if as_json:
        records = [asdict(entry) for entry in found]
        write_json(records[0] if run else records)
        return
    if not found:
        say("no runs; start one with `fl-queue start-round CONFIG`")
    for entry in found:
        say(f"{entry.name} ({entry.run_id}) {entry.doing}")
        if run:
            for line in (*entry.waiting_for, *entry.floods, *entry.notices):
                say(f"  {line}")
            say(f"  config {entry.config_digest}")
    if found and not run:
        around = diagnosis.DiagnosisContext.look(store)
        is_wanted = any(entry.state == "training" for entry in found)
        for line in around.lines if is_wanted else []:
            say(line)
    for line in found[0].enrolments if found else []:
        say(line)


@click.command()
@run_argument()
@connection_options
def watch(where: Where, run: str) -> None:
    """Show the live progress of RUN until it has ended."""
    follow_to_end(where, runs.find_run(where.open_control(), run).run_id)


@click.command()
@run_argument()
@click.option("--csv", "as_csv", is_flag=True, help="Write CSV.")
@json_option
@connection_options
def history(where: Where, run: str, as_csv: bool, as_json: bool) -> None:
    """The rounds of RUN as a table; with --json also the full records."""
    if as_csv and as_json:
        raise ConfigError("--csv", "goes without --json")
    store = where.open_control()
    run_id = runs.find_run(store, run).run_id
    if as_json:
        write_json(run_status.history(store, run_id))
        return
    rows = rounds_table.rows(
        store.control.history.records(run_id),
        selection.test_metrics(store, run_id),
        store.control.receipts.late_counts(run_id),
    )
    if as_csv:
        write(rounds_table.to_csv(rows))
    else:
        rich_console.console().print(rounds_table.table(rows))


@click.command()
@json_option
@connection_options
def clients(where: Where, as_json: bool) -> None:
    """Every client ever heard of: alive or not, examples, where it runs, what it did last."""
    store = where.open_control()
    found = run_status.clients(store)
    if as_json:
        write_json([asdict(entry) for entry in found])
        return
    table = rich_console.table(
        "Client", "Alive", "Enrolled", "Last seen", "Examples", "Host", "Pid", "Last event"
    )
    for entry in found:
        seen = "never" if entry.last_seen_s is None else f"{max(0.0, entry.last_seen_s):.0f} s ago"
        table.add_row(
            entry.client,
            "yes" if entry.alive else "no",
            entry.enrolled,
            seen,
            str(entry.num_examples or "-"),
            entry.host or "-",
            entry.pid or "-",
            entry.doing,
        )
    rich_console.console().print(table)


@click.command()
@run_argument()
@click.option("--follow", is_flag=True, help="Go on as events happen, until Ctrl-C.")
@json_option
@connection_options
def events(where: Where, run: str, follow: bool, as_json: bool) -> None:
    """The events of RUN, oldest first; with --json one document a line."""
    store = where.open_control()
    stream = keyspace.events(runs.find_run(store, run).run_id)
    cursor = "0-0"

    def look() -> list[tuple[str, dict[str, Any]]]:
        found = store.control.events.read({stream: cursor}, 1000 if follow else None)
        return [(entry, event) for _, entry, event in found]

    while True:
        for entry, event in outages.ride_out(look, complain) if follow else look():
            cursor = entry
            _write_event(entry, event, as_json)
        if not follow:
            return


def _write_event(entry: str, event: dict[str, Any], as_json: bool) -> None:
    record = run_status.event_record(entry, event)
    if as_json:
        say(escaping.json_text(dumps(record)))
        return
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["at"]))
    say(f"{stamp} {progress.describe(event) or event['event'].replace('_', ' ')}")


@click.command()
@run_argument()
@output_option("PNG file.")
@baseline_option
@connection_options
def plot(where: Where, run: str, output: Path, baseline: tuple[Path, ...]) -> None:
    """Draw accuracy and loss of RUN by version."""
    beside = [baselines.read(path) for path in baseline]
    store = where.open_control()
    run_id = runs.find_run(store, run).run_id
    rounds_table.plot(
        output, store.control.history.records(run_id), selection.test_metrics(store, run_id), beside
    )
    say(str(output))


@click.command()
@run_argument()
@click.argument("number", metavar="ROUND", type=click.IntRange(min=0))
@click.argument("client")
@json_option
@connection_options
def inspect(where: Where, run: str, number: int, client: str, as_json: bool) -> None:
    """What became of the update of CLIENT in a round of RUN: its receipt."""
    store = where.open_control()
    state = runs.find_run(store, run)
    found = run_status.receipts(store, state, number, client)
    if as_json:
        write_json(found)
        return
    for key, receipt in found.items():
        say(key)
        for field, value in receipt.items():
            if value not in ("", {}, 0, 0.0, None):
                say(f"  {field}: {value}")


@click.group("config", cls=Group)
def config_group() -> None:
    """Look at configs."""


@config_group.command("show")
@config_argument(required=False)
@set_option()
@click.option("--defaults", is_flag=True, help="Every field with its meaning and default.")
@click.option(
    "--digest",
    is_flag=True,
    help="Its digest alone, for a site's --pin-config: any other setting is another one.",
)
@json_option
def config_show(
    config: str | None, overrides: tuple[str, ...], defaults: bool, digest: bool, as_json: bool
) -> None:
    """The config a run would get, after file, environment and --set; passwords masked."""
    if defaults:
        write(rendering.render_defaults())
        return
    loaded = configs.load(config, overrides)
    metric_choice.check_config(loaded)
    if digest:
        say(loaded.digest)
    elif as_json:
        write_json(rendering.masked(loaded))
    else:
        write(rendering.to_toml(rendering.masked(loaded)))


@click.command("doctor")
@click.option(
    "--data", type=click.Path(path_type=Path), default=None, help="Also check this data folder."
)
@json_option
@connection_options
@signing_option
def doctor_command(where: Where, data: Path | None, as_json: bool) -> None:
    """Check both Redis roles, clocks, workers and data, and say what to do."""
    findings = doctor.examine(where.url, where.blob_url, where.state_dir, data, where.operator_key)
    if as_json:
        write_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            say(f"{finding.level:4}  {finding.what}" + (f"; {finding.fix}" if finding.fix else ""))
    doctor.raise_on_failure(findings)
