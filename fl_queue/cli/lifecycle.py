"""
The commands that change a run: ``resume``, ``cancel``, ``redrive``, ``delete``; and ``verify``.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import (
    Where,
    connection_options,
    json_option,
    say,
    signing_option,
    strategy_option,
    write_json,
)
from fl_queue.common import escaping
from fl_queue.coordinator.operations import controls, deletion, verification
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import DataError, RunFailed
from fl_queue.store import UPLOADS


@click.command()
@run_argument()
@connection_options
@signing_option
def resume(where: Where, run: str) -> None:
    """
    Have RUN go on after a failure or a cancel.

    It goes on from its newest version towards the rounds it was started with, and what is missing is
    published at once, instead of at the healer's next look. A run that trains and seems stuck takes
    it, too; repeating it does no harm.
    """
    store = where.open(UPLOADS)  # It may restore models on the data server.
    state, done = controls.resume(store, run, where.state_dir)
    for line in done or ["nothing was missing"]:
        say(line)
    say(f"{state.name} {runs.describe_state(store, state)}")


@click.command()
@run_argument()
@connection_options
def cancel(where: Where, run: str) -> None:
    """
    Stop RUN; its model and history stay.

    Its open round ends as cancelled, and clients stop training within seconds. `fl-queue resume` has
    it go on.
    """
    store = where.open_control()
    state = controls.cancel(store, run)
    now = runs.describe_state(store, state)
    if state.state == "cancelled":
        say(f"{state.name} {now}; go on with `fl-queue resume {state.name}`")
    else:  # Somebody was quick to have it go on.
        say(f"{state.name} was cancelled, and {now}")


@click.command()
@run_argument()
@json_option
@connection_options
def redrive(where: Where, run: str, as_json: bool) -> None:
    """
    Show why jobs of RUN failed; try them again.

    The healer does that by itself, with growing pauses for a job that keeps failing: after mending
    what was wrong, there is no need to wait for it.
    """
    failures = controls.redrive(where.open(UPLOADS), run, where.state_dir)
    if as_json:
        write_json([asdict(failure) for failure in failures])
        return
    for failure in failures:
        if failure.answered:
            what = "answered that it cannot train; asked again in the next round"
        else:
            what = f"attempt {failure.attempt} failed, tried again"
        say(f"{failure.who}: {what}: {failure.reason}")
    if not failures:
        say("no job has failed")


@click.command()
@run_argument()
@click.option("--yes", is_flag=True, help="Do not ask.")
@connection_options
def delete(where: Where, run: str, yes: bool) -> None:
    """
    Delete RUN whole.

    Its state, history and blobs on both servers go, and this machine's checkpoints of it. Nothing of it can be had back, except from a file of `fl-queue backup` or `fl-queue export`.
    """
    store = where.open()
    state = runs.find_run(store, run)
    deletion.refuse_training(state.name, state.active)
    versions = len(store.control.versions.all(state.run_id))
    what = f"run {state.name} ({state.run_id}) with {versions} versions and its history"
    if not yes and not _confirmed(f"Delete {what}?"):
        say("nothing was deleted")
        return
    deletion.delete(store, state, where.state_dir)
    say(f"{state.name} ({state.run_id}) is deleted")


def _confirmed(question: str) -> bool:
    try:
        return click.confirm(escaping.line(question))
    except click.Abort:
        if sys.stdin.isatty():
            raise  # Ctrl-C.
        raise click.UsageError("there is no terminal to ask on; use --yes") from None


@click.command("verify")
@run_argument()
@click.argument("number", metavar="[ROUND]", required=False, type=click.IntRange(min=1))
@strategy_option
@json_option
@connection_options
def verify_command(
    where: Where, run: str, number: int | None, strategy_allow: tuple[str, ...], as_json: bool
) -> None:
    """
    Recompute rounds of RUN; compare digests.

    From kept updates: needs model.keep_updates = true, and the --state-dir of the aggregator. Checks the signature
    of each kept update, too. Exits with 4 when a digest differs or a signature does not hold, with 3 when no round
    could be recomputed.
    """
    store = where.open()
    state = runs.find_run(store, run)
    verdicts = []
    for verdict in verification.verify(store, state, where.state_dir, number, strategy_allow):
        verdicts.append(verdict)
        if not as_json:
            tail = f": {verdict.reason}" if verdict.reason else ""
            say(
                f"round {verdict.round}, version {verdict.version}, digest {verdict.digest[:16]}: "
                f"{verdict.result}, {verdict.signatures}{tail}"
            )
    if as_json:
        write_json([asdict(verdict) for verdict in verdicts])
    if forged := [str(verdict.round) for verdict in verdicts if verdict.result == "forged"]:
        raise RunFailed(
            state.name,
            f"signatures do not hold in rounds {', '.join(forged)}: see above whose",
        )
    different = [str(verdict.round) for verdict in verdicts if verdict.result == "different"]
    if different:
        raise RunFailed(
            state.name,
            f"digests differ in rounds {', '.join(different)}: their updates or bases were changed",
        )
    if all(verdict.result == "unknown" for verdict in verdicts):
        raise DataError(str(where.state_dir), "no round could be recomputed; the reasons are above")
