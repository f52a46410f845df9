"""
The base of the built-in tasks on texts: a transformers model, its tokenizer, and files of texts.

Imports torch; transformers when a model or data are made.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from blake3 import blake3
from torch import nn

from fl_queue.common import data_folder
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.protocol.model_usage import ModelUsage
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.hf import models, samples, text_files
from fl_queue.tasks.hf.samples import TokenSamples
from fl_queue.training.collation import pad

#: Of ``site_facts.FILE_KINDS``: a text of more than ``task.max_tokens``.
CUT = "cut text"
#: A row of a file: the text, then what ``columns`` names.
Row = tuple[str, ...]


class TextTask(Task):
    """A task on texts; ``[task]`` as ``config.text_options`` has it."""

    #: Class of transformers that makes the model.
    kind: ClassVar[str]
    #: Options that name a column besides the text's, in the order of a row.
    columns: ClassVar[tuple[str, ...]] = ()
    # A tokenizer notes how it was called last (truncation, padding), and each call sets all of it.
    unmarked: ClassVar[tuple[str, ...]] = ("tokenizer",)

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self._data_dir = config.data.dir

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer; raises as ``models.tokenizer_of``."""
        return models.tokenizer_of(self.options, self._data_dir)

    @abstractmethod
    def samples(self, path: Path, rows: Sequence[Row]) -> TokenSamples:
        """
        Make samples of a file's rows.

        Raises:
            DataError: A row cannot be used.
        """

    def labels(self, path: Path, rows: Sequence[Row]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return a class for each row, by which the partitions split; zeros where there are none."""
        return np.zeros(len(rows), np.int64)

    def build_model(self) -> nn.Module:
        """
        Build the model: of ``task.model``, or of ``task.architecture`` with fresh weights.

        Raises:
            ConfigError: An option does not fit the model; names it.
            DataError: Its folder cannot be read.
        """
        return models.build(self.kind, self.options, self._data_dir, self.tokenizer, **self.head())

    def head(self) -> dict[str, Any]:
        """Return fields of the model's config that the task decides."""
        return {}

    def client_data(self, context: ClientContext) -> ClientData:
        """
        The client's share of ``task.file``, or all of it with ``partition = "site"``.

        Raises:
            DataError: The file is missing, or a row cannot be used; names the line.
            ConfigError: No data folder, or no such share.
        """
        if not context.data_dir:
            raise ConfigError(
                "data.dir", "is empty; start the worker with --data FOLDER", public=True
            )
        path = data_folder.inside(context.data_dir, self.options["file"], "task.file")
        named = [*self.columns, "owner"] if self.options["owner"] else [*self.columns]
        rows = self._read(path, named)
        owners = np.array([row[-1] for row in rows]) if self.options["owner"] else None
        train, validation = self.split(self.labels(path, rows), context, owners)
        part, held = (
            self.samples(path, [rows[index] for index in some]) for some in (train, validation)
        )
        cut = {CUT: part.cut + held.cut} if part.cut + held.cut else {}
        return ClientData(part, held, unused=cut, counts=cut)

    def test_data(self, data_dir: str) -> TokenSamples | None:
        """
        The rows of ``task.test_file``; None on a machine without a data folder.

        Raises:
            DataError: The file is missing, or a row cannot be used; names the line.
        """
        if not data_dir:
            return None
        path = data_folder.inside(data_dir, self.options["test_file"], "task.test_file")
        return self.samples(path, self._read(path, [*self.columns]))

    def describe(self, data: ClientData) -> dict[str, str | list[str]]:
        """Return a check number of the tokenizer's vocabulary."""
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return {"tokenizer": blake3(repr(vocabulary).encode()).hexdigest()[:16]}

    def collate(self, samples_: list[Any]) -> dict[str, Any]:
        """Pad samples of unequal lengths."""
        made: dict[str, Any] = pad(samples_, samples.padding(self.tokenizer))
        return made

    def usage(self) -> ModelUsage:
        """Describe input and output: tokens, and what transformers' class returns."""
        named = self.options["tokenizer"] or self.options["model"] or models.BYTES
        return ModelUsage(
            "input_ids and attention_mask (B, tokens) of the tokenizer, int64",
            "the output of transformers' class, with logits",
            (),
            {"tokenizer": named, "class": self.kind},
        )

    def _read(self, path: Path, named: Sequence[str]) -> list[Row]:
        columns = [(self.options[key], f"task.{key}") for key in ("text", *named)]
        return text_files.read(path, columns)
