"""How few tokens a text can have, without tokenizing it. Knows no policy and no engine."""

import json
from typing import Any

from tokenizers import models
from transformers import PreTrainedTokenizerBase

PLAIN_PIECES = {"ByteLevel", "Digits", "Split"}
"""Pre-tokenizers that cut a text and lose none of it."""


def longest_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The most characters that become one token; None where there is no bound.

    Byte-level BPE keeps every character. Others may drop some, join runs of them, or read any long word as one unknown
    token, so a long text can have few tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is not None or not isinstance(backend.model, models.BPE):
        return None
    if not _keeps_everything(backend.pre_tokenizer):
        return None
    added = tokenizer.added_tokens_decoder.values()
    if any(token.lstrip or token.rstrip for token in added):  # it takes the spaces beside it along
        return None
    return max(len(token) for token in tokenizer.get_vocab())


def _keeps_everything(pre_tokenizer: Any) -> bool:
    if pre_tokenizer is None:
        return False
    found = json.loads(pre_tokenizer.__getstate__())
    parts = found["pretokenizers"] if found["type"] == "Sequence" else [found]
    kinds = {part["type"] for part in parts}
    drops = any(part.get("behavior") == "Removed" for part in parts)
    return "ByteLevel" in kinds and kinds <= PLAIN_PIECES and not drops


def fewest_tokens(texts: list[str], longest: int | None) -> int:
    """Of a prompt that holds `texts`, each trimmed; 0 where there is no bound."""
    return 0 if longest is None else sum(len(text.strip()) for text in texts) // longest
