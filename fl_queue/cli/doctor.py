"""``fl-queue doctor``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from fl_queue.cli.options import Deployment, connection_options, json_option, signing_option
from fl_queue.cli.output import print_json, print_line
from fl_queue.reporting import doctor


@click.command("doctor")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FOLDER",
    help="Also check this data folder.",
)
@json_option
@connection_options
@signing_option
def doctor_command(deployment: Deployment, data: Path | None, as_json: bool) -> None:
    """
    Check servers, clocks, workers and data, and suggest fixes.

    Exits with 1 if a check fails, with 5 if Redis is not reachable.
    """
    findings = doctor.examine(
        deployment.url, deployment.blob_url, deployment.state_dir, data, deployment.operator_key
    )
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            fix = f"; {finding.fix}" if finding.fix else ""
            print_line(f"{finding.level:4}  {finding.what}{fix}")
    doctor.raise_on_failure(findings)
