"""``fl-queue export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import (
    Deployment,
    check_imports,
    collect,
    connection_options,
    data_folder,
    file_option,
    json_option,
    output_option,
)
from fl_queue.cli.output import print_result
from fl_queue.common import collector
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError
from fl_queue.models import whole_model
from fl_queue.reporting import model_card, model_export
from fl_queue.reporting.model_export import ExportedModel, ExportRequest
from fl_queue.store import RunState, Store


@dataclass(frozen=True)
class _Choice:
    """Which version is written, and how."""

    version: str | None
    best: bool
    kind: str | None
    allow: tuple[str, ...]
    data: str
    dtype: str | None
    adapters: Path | None

    def request(self, path: Path | None) -> ExportRequest:
        """Check the options. Raises ConfigError, DataError."""
        check_imports("--task-allow", self.allow)
        folder = data_folder(self.data)
        if (path is None) == (self.adapters is None):
            raise ConfigError("--output", "give either -o FILE, or --adapters FOLDER")
        if self.adapters is not None and self.kind:
            raise ConfigError("--format", "cannot be used with --adapters; leave it out")
        return ExportRequest(
            path or self.adapters or Path(),
            self.version,
            self.best,
            self.kind or "",
            self.allow,
            folder,
            self.dtype or "",
            self.adapters is not None,
        )


@click.command()
@run_argument()
@output_option("File to write.", required=False)
@collect(
    "choice",
    _Choice,
    click.option("--version", help="Number of the version, or its tag. Default: the newest."),
    click.option("--best", is_flag=True, help="The best version, by the metric of run.select."),
    click.option(
        "--format",
        "kind",
        type=click.Choice(model_export.FORMATS),
        help="Default: by the suffix: .onnx, .pt (torch), else safetensors. onnx needs the extra onnx.",
    ),
    click.option(
        "--task-allow",
        "allow",
        multiple=True,
        metavar="MODULE:NAME",
        help="Allow this task of your own to be imported, for onnx and the card; may be repeated.",
    ),
    click.option(
        "--data", default="", metavar="FOLDER", help="Data folder, if the model depends on it."
    ),
    click.option(
        "--dtype",
        type=click.Choice(whole_model.EXPORT_DTYPES),
        help="Cast floating-point tensors. Default: what was trained in float32, what is frozen as it is.",
    ),
    click.option(
        "--adapters",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="FOLDER",
        help="Write the adapters alone, as PeftModel.from_pretrained reads them, in place of -o.",
    ),
)
@file_option("--card", help="Also write a model card (Markdown), as README.md for example.")
@json_option
@connection_options
def export(
    deployment: Deployment,
    run: str,
    output: Path | None,
    choice: _Choice,
    card: Path | None,
    as_json: bool,
) -> None:
    """
    Write a model version of RUN to a file, with a model card.

    safetensors and torch files are the whole model, for load_state_dict. The ONNX graph takes a batch of any size as
    `input`. The model card has the use of the model, its training data and its metrics.
    """
    request = choice.request(output)
    store = deployment.open()
    state = runs.find_run(store, run)
    done = model_export.export_version(store, state, deployment.state_dir, request)
    lines = [f"{request.path}: version {done.version}, digest {done.digest}"]
    if card is not None:
        _write_card(store, state, card, request, done)
        lines.append(f"{card}: its model card")
    record = {
        "file": str(request.path),
        "run": state.name,
        "version": done.version,
        "digest": done.digest,
        "format": done.kind,
        "card": str(card) if card is not None else None,
    }
    print_result(as_json, record, lines)


def _write_card(
    store: Store, state: RunState, path: Path, request: ExportRequest, done: ExportedModel
) -> None:
    with collector.paused():
        from fl_queue.tasks import export as torch_export  # torch

    usage = torch_export.usage_of(done.config, request.allow, request.data_dir)
    facts = model_card.gather(store, state, done.config, done.version, usage)
    model_card.write(path, facts, request.path.name, done.kind)
