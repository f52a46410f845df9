"""``fl-queue status``."""

from __future__ import annotations

from dataclasses import asdict

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import Deployment, connection_options, json_option
from fl_queue.cli.output import print_json, print_line
from fl_queue.coordinator.rounds import runs
from fl_queue.protocol.state import RunPhase
from fl_queue.reporting import diagnosis, run_status
from fl_queue.reporting.run_status import RunStatus


@click.command()
@run_argument(required=False)
@json_option
@connection_options
def status(deployment: Deployment, run: str | None, as_json: bool) -> None:
    """
    Show all runs, or RUN and what its open round waits for.

    With --json a list of runs, or one object for RUN.
    """
    store = deployment.open_control()
    states = [runs.find_run(store, run)] if run else run_status.living_runs(store)
    found = run_status.statuses(store, states)
    if as_json:
        records = [asdict(entry) for entry in found]
        print_json(records[0] if run else records)
        return
    if not found:
        print_line("no runs; start one with `fl-queue start-round CONFIG`")
    for entry in found:
        print_line(f"{entry.name} ({entry.run_id}) {entry.doing}")
        if run:
            for line in _details(entry):
                print_line(f"  {line}")
    if found and not run and any(entry.state == RunPhase.training for entry in found):
        for line in diagnosis.DiagnosisContext.look(store).lines:
            print_line(line)
    for line in found[0].enrolments if found else []:
        print_line(line)


def _details(entry: RunStatus) -> list[str]:
    """Lines that follow the state of one run."""
    lines = [*entry.waiting_for, *entry.floods, *entry.notices]
    lines += [entry.validation_line] if entry.validation_line else []
    lines.append(f"config {entry.config_digest}")
    if entry.base_part:
        lines.append(f"base part {entry.base_part}")
    if entry.tags:
        lines.append(f"tags {', '.join(f'{name} = {at}' for name, at in entry.tags.items())}")
    return lines if entry.initial is None else [*lines, str(entry.initial)]
