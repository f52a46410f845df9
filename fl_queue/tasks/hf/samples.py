"""Texts as token samples: of a classification, and of language modelling. Imports torch; no Redis here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

#: Label of a token that counts for no loss.
IGNORED = -100


class TokenSamples(Dataset[Any]):
    """
    Samples of tokens, each a mapping of tensors as a transformers model takes it.

    Args:
        tokens: Of each sample its token ids.
        labels: Of each sample its class; None: the tokens themselves are the labels.
        cut: How many of them lack the end of their text.
    """

    def __init__(
        self, tokens: Sequence[Sequence[int]], labels: Sequence[int] | None, cut: int = 0
    ) -> None:
        self.cut = cut
        self._tokens = [torch.tensor(one, dtype=torch.int64) for one in tokens]
        self._labels = None if labels is None else torch.tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = self._tokens[index]
        labels = tokens.clone() if self._labels is None else self._labels[index]
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "labels": labels,
        }


def encoded(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Token ids of each text with the tokenizer's special tokens, cut to ``max_tokens``."""
    found = tokenizer(list(texts), truncation=True, max_length=max_tokens, padding=False)
    return [list(ids) for ids in found["input_ids"]]


def count_cut(
    tokenizer: Any, texts: Sequence[str], tokens: Sequence[Sequence[int]], max_tokens: int
) -> int:
    """
    Count the texts that ``encoded`` has cut.

    Args:
        tokens: What it has made of the texts.
    """
    # Only those that fill a sample are encoded once more. A model's own limit is none here: no warning about it.
    full = [text for text, ids in zip(texts, tokens, strict=True) if len(ids) == max_tokens]
    whole = tokenizer(full, padding=False, verbose=False)["input_ids"] if full else []
    return sum(len(ids) > max_tokens for ids in whole)


def blocks(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """
    Texts for language modelling: joined, each ended by the end token, and cut every ``max_tokens``.

    The last block may be shorter; one of a single token, which predicts nothing, is left out.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    joined: list[int] = []
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []:
        joined += [*ids, *end]
    cut = [joined[start : start + max_tokens] for start in range(0, len(joined), max_tokens)]
    return [block for block in cut if len(block) > 1]


def padding(tokenizer: Any) -> Mapping[str, int]:
    """Filling of each part of a sample, for batches of unequal lengths."""
    return {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}
