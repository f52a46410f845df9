"""Language modelling by a causal transformers model (``run.task = "causal-lm"``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fl_queue.metrics import Language, Metric
from fl_queue.tasks.hf import samples
from fl_queue.tasks.hf.samples import TokenSamples
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

    def metrics(self) -> Sequence[Metric | str]:
        """Return perplexity and token accuracy: the model predicts each token from those before it."""
        return [Language(shift=1)]
