"""Measures of a text that need no person and no model: its length, its readability, the variety of its words.

Knows no attribute and no scale (`data.text_rater` does). Words, sentences and syllables are counted as English has
them; a text of another language has numbers, too, but they compare only with texts of the same language.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

TextMeasure = Literal["words", "characters", "sentences", "flesch_kincaid", "type_token_ratio"]

WINDOW_WORDS = 50
"""Of `type_token_ratio`. Over a whole text the ratio falls with the length; over a window of fixed size it does not."""
DIGITS = 6
"""Of measures that are no counts."""
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?…]+(?=[\s\"'”’)\]]|$)|\n+")
_VOWELS = re.compile(r"[aeiouy]+")
# Written vowels that are not spoken: "make", "names", "used", "safely". Not "table", "boxes", "wanted".
_SILENT = re.compile(
    r"(?:[^aeiouyl]|[aeiouyl]l)e$|(?:[^aeiouycgszxhl]|[aeiouyl]l|[^cs]h)es$|[^aeiouytd]ed$|"
    r"(?<=[^aeiouy])e(?=ly$|[^l]ment|ful|less|ness)"
)
# Neighboring vowels that are two syllables: "lion", "media", "being", "create". Not "nation", "special", "region".
_APART = re.compile(
    r"(?<![tscgx])i(?:a|o(?!us))|iu|[aeouy]ing|(?<![aeiou])rea(?=t[eio])|eo(?![pu])|[ai]ety|scien|(?<!f)rien|ism$|"
    r"[ds]n['’]t$|ua(?=[lt])|(?:^id|ar)ea"
)


@dataclass(frozen=True)
class Measured:
    """One measure."""

    of: Callable[[str], float]
    """NaN for a text without a word."""
    meaning: str
    unit: str


def words(text: str) -> list[str]:
    """The words as they stand; "don't" and "well-known" are one each."""
    return _WORD.findall(text)


def num_sentences(text: str) -> int:
    """Parts with a word in them, between ends of sentences and of lines: an item of a list needs no full stop."""
    return sum(bool(_WORD.search(part)) for part in _SENTENCE_END.split(text))


def num_syllables(word: str) -> int:
    """Syllables of an English word by its spelling, at least 1. A word with a digit or without a vowel counts as 1."""
    lower = word.lower()
    return max(1, len(_VOWELS.findall(lower)) - bool(_SILENT.search(lower)) + len(_APART.findall(lower)))


def flesch_kincaid(text: str) -> float:
    """The school grade (years) of a text: .39 words a sentence + 11.8 syllables a word - 15.59; NaN without a word.

    Kincaid, Fishburne, Rogers and Chissom 1975, Research Branch Report 8-75. HelpSteer shows its complexity by it
    (arXiv 2311.09528, section 7).
    """
    found = words(text)
    if not found:
        return math.nan
    syllables = sum(map(num_syllables, found))
    # Rounded: equally hard texts of different lengths must not differ in the last bit, which is a rank.
    return round(0.39 * len(found) / num_sentences(text) + 11.8 * syllables / len(found) - 15.59, DIGITS)


def type_token_ratio(text: str) -> float:
    """Different words as a share of all, mean over all windows of WINDOW_WORDS words; a shorter text is one window.

    Covington and McFall 2010, doi 10.1080/09296171003643098. NaN without a word.
    """
    found = [word.lower() for word in words(text)]
    size = min(WINDOW_WORDS, len(found))
    if not size:
        return math.nan
    window = Counter(found[:size])
    total = len(window)
    for gone, come in zip(found, found[size:], strict=False):
        window[come] += 1
        window[gone] -= 1
        if not window[gone]:
            del window[gone]
        total += len(window)
    return round(total / (len(found) - size + 1) / size, DIGITS)


def _counted(count: Callable[[str], int]) -> Callable[[str], float]:
    return lambda text: float(count(text)) if _WORD.search(text) else math.nan


MEASURES: Mapping[TextMeasure, Measured] = {
    "words": Measured(_counted(lambda text: len(words(text))), "Number of words.", "words"),
    "characters": Measured(_counted(lambda text: len(text.strip())), "Number of characters.", "characters"),
    "sentences": Measured(_counted(num_sentences), "Number of sentences, items of lists included.", "sentences"),
    "flesch_kincaid": Measured(
        flesch_kincaid, "Flesch-Kincaid grade: the years of school that a reader of English needs.", "grade"
    ),
    "type_token_ratio": Measured(
        type_token_ratio, f"Different words as a share of all, in windows of {WINDOW_WORDS} words.", "share"
    ),
}
"""The closed list: what a preset may name."""
