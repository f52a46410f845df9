"""
The commands that read: what runs, rounds and clients are doing, and what they made.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from fl_queue import (
    checkpoint,
    diagnose,
    display,
    doctor,
    models,
    names,
    report,
    runs,
    scores,
)
from fl_queue import (
    config as configs,
)
from fl_queue.cli.common import Where, connection_options, json_option, write_json
from fl_queue.cli.running import follow_to_end
from fl_queue.errors import ConfigError, RunStateError
from fl_queue.records import Receipt, dumps
from fl_queue.store import RunState, Store


@click.command()
@click.argument("run", required=False)
@json_option
@connection_options
def status(where: Where, run: str | None, as_json: bool) -> None:
    """What all runs are doing, or RUN in detail: what an open round waits for."""
    store = where.open()
    states = (
        [runs.find_run(store, run)]
        if run
        else [runs.find_run(store, name) for name in sorted(store.control.run_names())]
    )
    found = [_status(store, state) for state in states]
    if as_json:
        write_json(found[0] if run else found)
        return
    if not found:
        click.echo("no runs; start one with `fl-queue start-round CONFIG`")
    for entry in found:
        click.echo(f"{entry['name']} ({entry['run_id']}) {entry['doing']}")
        if run:
            for line in entry["waiting_for"]:
                click.echo(f"  {line}")


def _status(store: Store, state: RunState) -> dict[str, Any]:
    return {
        **{
            key: getattr(state, key)
            for key in (
                "name",
                "run_id",
                "state",
                "reason",
                "version",
                "digest",
                "round",
                "rounds_wanted",
            )
        },
        "doing": runs.describe_state(store, state),
        "waiting_for": diagnose.why_open(store, state),
    }


@click.command()
@click.argument("run")
@connection_options
def watch(where: Where, run: str) -> None:
    """Show the live progress of RUN until it has ended."""
    follow_to_end(where, runs.find_run(where.open(), run).run_id)


@click.command()
@click.argument("run")
@click.option("--csv", "as_csv", is_flag=True, help="Write CSV.")
@json_option
@connection_options
def history(where: Where, run: str, as_csv: bool, as_json: bool) -> None:
    """The rounds of RUN as a table; with --json also the full records."""
    if as_csv and as_json:
        raise ConfigError("--csv", "goes without --json")
    store = where.open()
    run_id = runs.find_run(store, run).run_id
    records = store.control.history(run_id)
    rows = report.rows(records, scores.test_metrics(store, run_id), store.control.late(run_id))
    if as_json:
        write_json(
            {"rounds": report.to_json(rows), "records": [asdict(record) for record in records]}
        )
    elif as_csv:
        click.echo(report.to_csv(rows), nl=False)
    else:
        Console().print(report.table(rows))


@click.command()
@json_option
@connection_options
def clients(where: Where, as_json: bool) -> None:
    """Every client ever heard of: alive or not, examples, where it runs, what it did last."""
    store = where.open()
    found = [
        _client(store, client, age) for client, age in sorted(store.control.client_ids().items())
    ]
    if as_json:
        write_json(found)
        return
    table = Table("Client", "Alive", "Last seen", "Examples", "Host", "Pid", "Last event")
    for entry in found:
        table.add_row(
            entry["client"],
            "yes" if entry["alive"] else "no",
            f"{max(0.0, entry['last_seen_s']):.0f} s ago",
            entry["num_examples"] or "-",
            entry["host"] or "-",
            entry["pid"] or "-",
            entry["doing"],
        )
    Console().print(table)


def _client(store: Store, client: str, age: float) -> dict[str, Any]:
    holder = store.control.lease(names.client_holder(client))
    last = store.control.last_event(names.client_events(client))
    doing = "-"
    if last:
        tail = f" epoch {last['epoch']}/{last['epochs']}" if last["event"] == "epoch" else ""
        doing = (
            f"{last['event']}{tail}, run {last['run']} round {last['round']}"
            if last["event"] != "epoch"
            else f"{tail.strip()}, run {last['run']} round {last['round']}"
        )
    return {
        "client": client,
        "alive": bool(holder),
        "last_seen_s": round(age, 1),
        "num_examples": store.control.client(client).get("num_examples", ""),
        "host": holder.get("host", ""),
        "pid": holder.get("pid", ""),
        "worker": holder.get("worker", ""),
        "doing": doing,
    }


@click.command()
@click.argument("run")
@click.option("--follow", is_flag=True, help="Go on as events happen, until Ctrl-C.")
@json_option
@connection_options
def events(where: Where, run: str, follow: bool, as_json: bool) -> None:
    """The events of RUN, oldest first; with --json one document a line."""
    store = where.open()
    stream = names.events(runs.find_run(store, run).run_id)
    cursor = "0-0"
    while True:
        for _, entry, event in store.control.read_events(
            {stream: cursor}, 1000 if follow else None
        ):
            cursor = entry
            _write_event(entry, event, as_json)
        if not follow:
            return


def _write_event(entry: str, event: dict[str, Any], as_json: bool) -> None:
    at = int(entry.split("-")[0]) / 1000
    if as_json:
        click.echo(dumps({"at": at, **event}))
        return
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    click.echo(f"{stamp} {display.describe(event) or event['event'].replace('_', ' ')}")


@click.command()
@click.argument("run")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="PNG file.",
)
@connection_options
def plot(where: Where, run: str, output: Path) -> None:
    """Draw accuracy and loss of RUN by version."""
    store = where.open()
    run_id = runs.find_run(store, run).run_id
    report.plot(output, store.control.history(run_id), scores.test_metrics(store, run_id))
    click.echo(str(output))


@click.command()
@click.argument("run")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="safetensors file.",
)
@click.option("--version", type=click.IntRange(min=0), help="Default: the newest.")
@click.option("--best", is_flag=True, help="The version that run.select names.")
@connection_options
def export(where: Where, run: str, output: Path, version: int | None, best: bool) -> None:
    """Write a model version of RUN as safetensors, for load_state_dict."""
    store = where.open()
    state = runs.find_run(store, run)
    loaded = runs.current_config(store, state.run_id)
    if best and version is not None:
        raise ConfigError("--best", "goes without --version")
    if best:
        version = scores.best_version(store, state.run_id, loaded)
        if version is None:
            raise RunStateError(
                state.name,
                f"no version has been evaluated by {loaded.run['select']}; wait, or start an evaluator",
            )
    chosen = state.version if version is None else version
    if chosen is None:
        raise RunStateError(state.name, "has no version yet; wait for version 0")
    manifest, body = models.load_version(
        store, state.run_id, chosen, loaded.redis["chunk_bytes"], where.state_dir
    )
    digest = store.control.versions(state.run_id)[chosen]["digest"]
    checkpoint.export(
        body, manifest, output, {"run": state.name, "version": str(chosen), "digest": digest}
    )
    click.echo(f"{output}: version {chosen}, digest {digest}")


@click.command()
@click.argument("run")
@click.argument("number", metavar="ROUND", type=click.IntRange(min=0))
@click.argument("client")
@json_option
@connection_options
def inspect(where: Where, run: str, number: int, client: str, as_json: bool) -> None:
    """What became of the update of CLIENT in a round of RUN: its receipt."""
    store = where.open()
    state = runs.find_run(store, run)
    receipts = store.control.receipts(state.run_id, number)
    found = {
        key: asdict(value) for key, value in receipts.items() if key.partition(":")[0] == client
    }
    found = found or _from_history(store, state, number, client)
    if as_json:
        write_json(found)
        return
    for key, receipt in found.items():
        click.echo(key)
        for field, value in receipt.items():
            if value not in ("", {}, 0, 0.0):
                click.echo(f"  {field}: {value}")


def _from_history(store: Store, state: RunState, number: int, client: str) -> dict[str, Any]:
    for record in store.control.history(state.run_id):
        if record.round != number:
            continue
        if client in record.accepted:
            metrics = record.client_validation.get(client, {})
            return {
                client: asdict(
                    Receipt(
                        "accepted",
                        digest=record.accepted[client],
                        weight=record.weights[client],
                        metrics=metrics,
                    )
                )
            }
        if client in record.rejected:
            return {client: {"status": "rejected", "reason": record.rejected[client]}}
        what = "nothing came from it" if client in record.cohort else "it was not in the cohort"
        raise RunStateError(
            state.name,
            f"round {number}, client {client}: {what}; cohort: {', '.join(record.cohort)}",
        )
    raise RunStateError(
        state.name,
        f"round {number}, client {client}: no receipt (the run is at round {state.round})",
    )


@click.group("config")
def config_group() -> None:
    """Look at configs."""


@config_group.command("show")
@click.argument("config", required=False)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Override a field; may be repeated.",
)
@click.option("--defaults", is_flag=True, help="Every field with its meaning and default.")
@json_option
def config_show(
    config: str | None, overrides: tuple[str, ...], defaults: bool, as_json: bool
) -> None:
    """The config a run would get, after file, environment and --set; passwords masked."""
    if defaults:
        click.echo(configs.render_defaults(), nl=False)
        return
    loaded = configs.load(config, overrides)
    if as_json:
        write_json(configs.masked(loaded))
    else:
        click.echo(configs.to_toml(configs.masked(loaded)), nl=False)


@click.command("doctor")
@click.option(
    "--data", type=click.Path(path_type=Path), default=None, help="Also check this data folder."
)
@json_option
@connection_options
def doctor_command(where: Where, data: Path | None, as_json: bool) -> None:
    """Check both Redis roles, clocks, workers and data, and say what to do."""
    findings = doctor.examine(where.url, where.blob_url, where.state_dir, data)
    if as_json:
        write_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            click.echo(
                f"{finding.level:4}  {finding.what}" + (f"; {finding.fix}" if finding.fix else "")
            )
    doctor.raise_on_failure(findings)
