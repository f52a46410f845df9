"""``fl-queue tag``."""

from __future__ import annotations

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import Deployment, connection_options, json_option
from fl_queue.cli.output import print_result
from fl_queue.coordinator.operations import tagging
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError


@click.command()
@run_argument()
@click.argument("version", required=False, default="")
@click.argument("name", required=False, default="")
@click.option("--remove", default="", metavar="NAME", help="Remove this tag.")
@json_option
@connection_options
def tag(
    deployment: Deployment, run: str, version: str, name: str, remove: str, as_json: bool
) -> None:
    """
    Name a version of RUN, so that it is kept; list the names.

    VERSION is a number, a tag, `newest` or `best`; NAME begins with a letter. A tag can be
    used where a version is named: `fl-queue export RUN --version NAME`, `fl-queue start-round
    CONFIG --run RUN --from-version NAME`. A name that is there moves to the new version.

    A tagged version stays on the aggregator's disk whatever model.keep_versions is, and in the
    backups of the run.
    """
    if remove and version:
        raise ConfigError("--remove", "takes the name of the tag alone; leave VERSION out")
    if version and not name:
        raise ConfigError("NAME", "is missing; write `fl-queue tag RUN VERSION NAME`")
    lines = []
    if remove or name:
        store = deployment.open()
        if remove:
            number = tagging.untag(store, run, remove)
            lines.append(f"tag {remove} is removed from version {number}")
        else:
            number = tagging.tag(store, run, version, name)
            lines.append(f"version {number} is {name}")
        state = runs.find_run(store, run)
    else:
        state = runs.find_run(deployment.open_control(), run)
        lines += [f"{each}  version {state.tags[each]}" for each in sorted(state.tags)]
        lines = lines or ["no tags; name a version with `fl-queue tag RUN VERSION NAME`"]
    print_result(as_json, {"run": state.name, "tags": dict(sorted(state.tags.items()))}, lines)
