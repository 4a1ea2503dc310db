"""What the words of answers show: how varied they are, which are refusals or loops. Knows no model and no rating."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

SHINGLE_WORDS = 3
"""Words of a shingle: near-duplicates share most of theirs."""
LOOP_TIMES = 4
"""A group of words that comes so many times in a row is a loop."""
LOOP_WORDS = 12
"""Longest group of words that is looked for."""
REFUSAL_CHARACTERS = 160
"""Refusals begin with one; later in an answer the same words are mostly about something else."""
_WORD = re.compile(r"\w+")
_REFUSAL = re.compile(
    r"\b(i'?m sorry,? but|i am sorry,? but|"
    r"i (?:can ?not|can'?t|am unable to|'?m unable to|am not able to|'?m not able to|won'?t) "
    r"(?:help|assist|answer|provide|fulfil|do that|comply|respond|discuss|support)|"
    r"as an? (?:ai|artificial intelligence|language model)|i must decline)",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """Lower-case words, without punctuation."""
    return _WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(tokens[i:] for i in range(n)), strict=False)


def shingles(text: str) -> set[str]:
    """The text's groups of three neighbouring words; a shorter text is one group."""
    tokens = words(text)
    return {" ".join(group) for group in ngrams(tokens, SHINGLE_WORDS)} or {" ".join(tokens)}


def variety(texts: Iterable[str]) -> dict[str, Any]:
    """`texts`, mean `words`, and `distinct_1`, `distinct_2`: different words (word pairs) over all of them.

    Source: arXiv 1510.03055, section 5.1.

    Distinct-n falls with the number of texts: compare it only between equally many answers to the same questions.
    """
    found: dict[int, Counter[tuple[str, ...]]] = {1: Counter(), 2: Counter()}
    count = 0
    for text in texts:
        tokens = words(text)
        count += 1
        for n, counter in found.items():
            counter.update(ngrams(tokens, n))
    shares = {f"distinct_{n}": round(len(counter) / max(1, counter.total()), 4) for n, counter in found.items()}
    return {"texts": count, "words": round(found[1].total() / max(1, count), 2), **shares}


def is_refusal(text: str) -> bool:
    """Does the answer begin by declining, in the words that English assistants use?"""
    return bool(_REFUSAL.search(text[:REFUSAL_CHARACTERS].replace("\u2019", "'")))


def is_loop(text: str) -> bool:
    """Does some group of up to twelve words come four times on end?"""
    tokens = words(text)
    for width in range(1, min(LOOP_WORDS, len(tokens) // LOOP_TIMES) + 1):
        run = 0
        for before, after in zip(tokens, tokens[width:], strict=False):
            run = run + 1 if before == after else 0
            if run == width * (LOOP_TIMES - 1):
                return True
    return False
