"""``fl-queue verify``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import Deployment, connection_options, json_option, strategy_option
from fl_queue.cli.output import print_json, print_line
from fl_queue.coordinator.operations import verification
from fl_queue.coordinator.operations.verification import Verdict
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import DataError, RunFailed


@click.command("verify")
@run_argument()
@click.argument("number", metavar="[ROUND]", required=False, type=click.IntRange(min=1))
@strategy_option
@json_option
@connection_options
def verify_command(
    deployment: Deployment,
    run: str,
    number: int | None,
    strategy_allow: tuple[str, ...],
    as_json: bool,
) -> None:
    """
    Recompute rounds of RUN and compare the model digests.

    Of a model with frozen tensors its base part is compared, too.

    Needs the updates, which model.keep_updates = true keeps in the --state-dir of the aggregator. The
    signature of each update is checked too. Exits with 4 if a digest differs or a signature is wrong,
    with 3 if no round can be recomputed.
    """
    store = deployment.open()
    state = runs.find_run(store, run)
    base = verification.check_base_part(store, state.run_id, deployment.state_dir)
    if base is not None and not as_json:
        tail = f": {base.reason}" if base.reason else ""
        print_line(f"base part {base.digest[:16]}: {base.result}{tail}")
    verdicts = []
    for verdict in verification.verify(store, state, deployment.state_dir, number, strategy_allow):
        verdicts.append(verdict)
        if not as_json:
            tail = f": {verdict.reason}" if verdict.reason else ""
            print_line(
                f"round {verdict.round}, version {verdict.version}, digest {verdict.digest[:16]}: "
                f"{verdict.result}, {verdict.signatures}{tail}"
            )
    if as_json:
        found = asdict(base) if base is not None else None
        print_json([{**asdict(verdict), "base_part": found} for verdict in verdicts])
    if base is not None and base.result == "different":
        raise RunFailed(state.name, f"its base part was changed: {base.reason}")
    _raise_unless_equal(state.name, verdicts, deployment.state_dir)


def _raise_unless_equal(run: str, verdicts: Sequence[Verdict], state_dir: Path) -> None:
    if forged := [str(verdict.round) for verdict in verdicts if verdict.result == "forged"]:
        rounds = ", ".join(forged)
        raise RunFailed(
            run, f"signatures are wrong in rounds {rounds}; the clients are named above"
        )
    if different := [str(verdict.round) for verdict in verdicts if verdict.result == "different"]:
        rounds = ", ".join(different)
        raise RunFailed(
            run, f"digests differ in rounds {rounds}: their updates or bases were changed"
        )
    if all(verdict.result == "unknown" for verdict in verdicts):
        raise DataError(str(state_dir), "no round could be recomputed; the reasons are above")
