"""Commands that change a run: ``cancel``, ``resume``, ``redrive`` and ``delete``."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import (
    Deployment,
    connection_options,
    json_option,
    signing_option,
    yes_option,
)
from fl_queue.cli.output import print_json, print_line, print_result
from fl_queue.common import escaping
from fl_queue.coordinator.operations import controls, deletion
from fl_queue.coordinator.rounds import runs
from fl_queue.protocol.state import RunPhase
from fl_queue.reporting import run_status
from fl_queue.store import UPLOADS


@click.command()
@run_argument()
@json_option
@connection_options
@signing_option
def resume(deployment: Deployment, run: str, as_json: bool) -> None:
    """
    Continue RUN after a failure or a cancel.

    It goes on from its newest version, towards the rounds it was started with. Jobs that are missing
    are published at once. Also for a run that trains and seems stuck; repeating it does no harm. For a
    paused client see `fl-queue unpause`.
    """
    store = deployment.open(UPLOADS)  # Models may have to be restored on the data server.
    state, done = controls.resume(store, run, deployment.state_dir)
    if as_json:
        print_json({"run": asdict(run_status.run_status(store, state)), "done": done})
        return
    for line in done or ["nothing was missing"]:
        print_line(line)
    print_line(f"{state.name} {runs.describe_state(store, state)}")


@click.command()
@run_argument()
@json_option
@connection_options
def cancel(deployment: Deployment, run: str, as_json: bool) -> None:
    """
    Stop RUN; its model and history stay.

    Its open round ends as cancelled, and clients stop training within seconds. `fl-queue resume`
    continues it.
    """
    store = deployment.open_control()
    state = controls.cancel(store, run)
    if as_json:
        print_json(asdict(run_status.run_status(store, state)))
        return
    now = runs.describe_state(store, state)
    if state.state == RunPhase.cancelled:
        print_line(f"{state.name} {now}; continue it with `fl-queue resume {state.name}`")
    else:  # It was resumed meanwhile.
        print_line(f"{state.name} was cancelled, and {now}")


@click.command()
@run_argument()
@json_option
@connection_options
def redrive(deployment: Deployment, run: str, as_json: bool) -> None:
    """
    Show why jobs of RUN failed, and retry them now.

    The healer retries failed jobs too, after growing pauses. This command is for the time after you
    have fixed the cause.
    """
    failures = controls.redrive(deployment.open(UPLOADS), run, deployment.state_dir)
    if as_json:
        print_json([asdict(failure) for failure in failures])
        return
    for failure in failures:
        if failure.answered:
            what = "answered that it cannot train; asked again in the next round"
        else:
            what = f"attempt {failure.attempt} failed, tried again"
        print_line(f"{failure.who}: {what}: {failure.reason}")
    if not failures:
        print_line("no job has failed")


@click.command()
@run_argument()
@yes_option
@json_option
@connection_options
def delete(deployment: Deployment, run: str, yes: bool, as_json: bool) -> None:
    """
    Delete RUN: its state, history and models.

    They are removed from both servers, and this machine's checkpoints of RUN too. This cannot be
    undone; `fl-queue backup` keeps a copy.
    """
    store = deployment.open()
    state = runs.find_run(store, run)
    deletion.refuse_training(state.name, state.active)
    versions = len(store.control.versions.all(state.run_id))
    what = f"run {state.name} ({state.run_id}) with {versions} versions and its history"
    is_confirmed = yes or _confirmed(f"Delete {what}?")
    if is_confirmed:
        deletion.delete(store, state, deployment.state_dir)
        line = f"{state.name} ({state.run_id}) is deleted"
    else:
        line = "nothing was deleted"
    record = {"run": state.name, "run_id": state.run_id, "deleted": is_confirmed}
    print_result(as_json, record, [line])


def _confirmed(question: str) -> bool:
    try:
        return click.confirm(escaping.line(question), err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise  # Ctrl-C.
        raise click.UsageError("there is no terminal to ask on; use --yes") from None
