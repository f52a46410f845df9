"""``fl-queue prepare``: a config of the task ``table`` with what its sites agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fl_queue.cli.completion import config_argument
from fl_queue.cli.options import (
    Deployment,
    connection_options,
    json_option,
    output_option,
    set_option,
    signing_option,
)
from fl_queue.cli.output import print_result, warn
from fl_queue.cli.statistics import computed
from fl_queue.common import files, toml_text
from fl_queue.config import loading
from fl_queue.errors import ConfigError
from fl_queue.experiments import launching
from fl_queue.experiments.preparation import Preparation


@click.command()
@config_argument(metavar="CONFIG")
@click.option(
    "--run",
    "name",
    default="",
    metavar="NAME",
    help="Name of the run that asks the sites. Default: the name of CONFIG, and -statistics.",
)
@set_option()
@output_option("File of the prepared config.")
@json_option
@connection_options
@signing_option
def prepare(
    deployment: Deployment,
    config: str,
    name: str,
    overrides: tuple[str, ...],
    output: Path,
    as_json: bool,
) -> None:
    """
    Have the sites agree on what a config of tables leaves open.

    Levels of categories, means and standard deviations of columns, medians and most frequent values for missing cells come from exact
    sums over all rows, within the sites' policies (`fl-queue statistics`). They are written into a config that
    `start-round` takes, and are then a part of the model. Called again after an interruption it goes on.
    """
    tables = loading.read_tables(config, overrides)
    wanted = Preparation.of_tables(tables, loading.read_tables(config, overrides, {}))
    if wanted.is_complete:
        raise ConfigError("task.columns", "leaves nothing open; start the run with this config")
    name = name or f"{launching.default_run_name(config)}-statistics"
    if wanted.unnamed:
        found = computed(deployment, wanted.vocabulary(), f"{name}-levels")
        wanted = wanted.with_levels(found)
    if not wanted.is_complete:
        found = computed(deployment, wanted.survey(), name)
    for line in _withheld(found):
        warn(line)
    made = wanted.agreed(found)
    about = f"{found['rows']:,} rows of {found['sites']} sites (run {name})"
    text = f"# Prepared by `fl-queue prepare` from statistics of {about}.\n{toml_text.dumps(made)}"
    files.write(output, text.encode())
    shown = {"run": name, "rows": found["rows"], "sites": found["sites"], "columns": made["task"]["columns"]}  # fmt: skip
    print_result(as_json, shown, [f"{output}: from statistics of {about}"])


def _withheld(found: dict[str, Any]) -> list[str]:
    """A line for each column of which a site shows less than all."""
    shown = {name: one["withheld"] for name, one in found["numbers"].items()}
    shown |= {name: max(one["withheld"] for one in levels) for name, levels in found["levels"].items()}  # fmt: skip
    return [
        f"Column {name}: {sites} of {found['sites']} sites withhold something of it; the rest is used."
        for name, sites in shown.items()
        if sites
    ]
