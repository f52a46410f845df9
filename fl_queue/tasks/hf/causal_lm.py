"""Language modelling by a causal transformers model (``run.task = "causal-lm"``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_queue.tasks.hf import samples
from fl_queue.tasks.hf.samples import IGNORED, TokenSamples
from fl_queue.tasks.hf.text_task import Row, TextTask


class CausalLanguageModel(TextTask):
    """
    Texts, joined and cut into blocks of ``task.max_tokens``; each block is an example.

    The partitions split texts, and not blocks.
    """

    kind = "AutoModelForCausalLM"

    def samples(self, path: Path, rows: Sequence[Row]) -> TokenSamples:
        """Make blocks of the texts."""
        texts = [row[0] for row in rows]
        return TokenSamples(samples.blocks(self.tokenizer, texts, self.options["max_tokens"]), None)

    def items(self, batch: Any) -> int:
        """Return the number of predicted tokens: the model predicts each but the first from those before it."""
        return int((batch["labels"][:, 1:] != IGNORED).sum())
