"""``fl-queue try-task``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from fl_queue.cli.completion import config_argument
from fl_queue.cli.options import data_folder, device_options, json_option, set_option
from fl_queue.cli.output import print_json, print_line, warn
from fl_queue.client import disclosure
from fl_queue.common import collector
from fl_queue.config import loading, metric_choice
from fl_queue.errors import DataError
from fl_queue.reporting import event_lines


@click.command("try-task")
@config_argument(metavar="CONFIG")
@click.option(
    "--data", default="", metavar="FOLDER", help="Data folder. Default: data.dir of the config."
)
@device_options
@click.option(
    "--max-examples",
    default=0,
    type=click.IntRange(min=0),
    help="Train with at most this many examples. Default: all.",
)
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Train with torch.compile, as `worker client --compile`.",
)
@click.option(
    "--show-update",
    is_flag=True,
    help="Show everything that a site would send: each field of the header, each tensor.",
)
@click.option(
    "--twice",
    is_flag=True,
    help="Also train two rounds in fresh processes and in one that stays, and name what differs.",
)
@set_option()
@json_option
def try_task(
    config: str,
    data: str,
    max_examples: int,
    show_update: bool,
    twice: bool,
    compiled: bool,
    overrides: tuple[str, ...],
    as_json: bool,
    **machine: Any,
) -> None:
    """
    Train one round of CONFIG on this machine, without Redis.

    Shows its time, memory, metrics and the size of its update. The first client's part is trained with
    the code of a client's worker, and the update is checked as in a run; nothing is sent. A task of your
    own is imported from the current folder. Exits with 3 if a run would not accept the model or the
    update, or if the metric of run.select or run.stop_when is missing; with --twice also if a training
    process that stays from round to round makes another update than a fresh one.
    """
    loaded = loading.load(config, overrides)
    metric_choice.check_config(loaded)
    folder = data_folder(data)
    with collector.paused():
        from fl_queue.experiments import trial  # torch

    def show_epoch(number: int, count: int, found: Mapping[str, float]) -> None:
        warn(f"epoch {number} of {count}: {event_lines.describe_metrics(found)}")

    done = trial.run_trial(
        loaded,
        folder,
        on_epoch=show_epoch,
        max_examples=max_examples,
        show=show_update,
        compiled=compiled,
        **machine,
    )
    if as_json:
        print_json(asdict(done))
    else:
        for name, words in _described(asdict(done)).items():
            print_line(f"{name:12} {words}")
        for line in disclosure.format_update(done.leaves) if done.leaves else ():
            print_line(line)
    if done.problem:
        raise DataError("update", done.problem)
    if twice:
        warn(trial.check_twice(loaded, folder, max_examples=max_examples, **machine))


def _described(done: Mapping[str, Any]) -> dict[str, str]:
    """Describe the record of a trial: heading -> text."""
    data = "{client}: {num_examples} examples, {num_validation} to validate"
    if not done["num_validation"]:
        data += ", so no metrics; raise data.validation_fraction, or give more data"
    frozen = " ({frozen:,} of them frozen)" if done["frozen"] else ""
    size = "{parameters:,} numbers" + frozen + ", {model_bytes:,} bytes"
    largest = "{update_bytes:,} bytes; largest value {largest:.3g}, limit {limit:g}"
    time = "{data_s:.1f} s to begin, {train_s:.1f} s of training"
    if done["compile_s"]:
        time += ", {compile_s:.1f} s of all this compiling"
    if done["unused"]:
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(done["unused"].items()))
        data += f"; not used, or not as they are: {found.replace('{', '{{').replace('}', '}}')}"
    described = {
        "data": data.format(**done),
        "model": size.format(**done),
        "update": largest.format(**done),
        "time": time.format(**done),
        "memory": "{peak_bytes:,} bytes at most, torch included".format(**done),
        "before": event_lines.describe_metrics(done["base"]),
        "after": event_lines.describe_metrics(done["trained"]),
    }
    if done["logged"]:
        described["logged"] = event_lines.describe_metrics(done["logged"])
    return described
