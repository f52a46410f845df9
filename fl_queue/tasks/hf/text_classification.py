"""Classification of texts by a transformers model (``run.task = "text-classification"``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fl_queue.config.text_options import names_of
from fl_queue.errors import DataError
from fl_queue.protocol.model_usage import ModelUsage
from fl_queue.tasks.base import ClientData
from fl_queue.tasks.hf import samples
from fl_queue.tasks.hf.samples import TokenSamples
from fl_queue.tasks.hf.text_task import Row, TextTask


class TextClassification(TextTask):
    """Texts, each with one of ``task.classes``; one that is longer than ``task.max_tokens`` is cut."""

    kind = "AutoModelForSequenceClassification"
    columns = ("label",)

    def head(self) -> dict[str, Any]:
        """Return the classes, which the model's config keeps for an export."""
        classes = names_of(self.options["classes"])
        # Its id2label decides how many there are.
        return {
            "id2label": dict(enumerate(classes)),
            "label2id": {name: index for index, name in enumerate(classes)},
            "problem_type": "single_label_classification",
        }

    def samples(self, path: Path, rows: Sequence[Row]) -> TokenSamples:
        """Make a sample of each text."""
        texts, most = [row[0] for row in rows], self.options["max_tokens"]
        tokens = samples.encoded(self.tokenizer, texts, most) if texts else []
        cut = samples.count_cut(self.tokenizer, texts, tokens, most)
        return TokenSamples(tokens, self.labels(path, rows).tolist(), cut)

    def labels(self, path: Path, rows: Sequence[Row]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """
        Return the class of each row.

        Raises:
            DataError: A label is not one of ``task.classes``; its line is shown to the site alone, as the
                config chooses the classes and could read the file by them.
        """
        classes = {name: index for index, name in enumerate(names_of(self.options["classes"]))}
        found = np.array([classes.get(row[1], -1) for row in rows], np.int64)
        if (found < 0).any():
            number = int(np.argmin(found >= 0)) + 1
            raise DataError(
                str(path),
                f"row {number}: its {self.options['label']} is not one of task.classes: {', '.join(classes)}",
                public="a label (task.label) is not one of task.classes",
            )
        return found

    def describe(self, data: ClientData) -> dict[str, str | list[str]]:
        """Return the classes in the model's order, and a check number of the tokenizer."""
        return {"classes": names_of(self.options["classes"]), **super().describe(data)}

    def usage(self) -> ModelUsage:
        """Describe input and output, with the classes."""
        return replace(super().usage(), labels=tuple(names_of(self.options["classes"])))
