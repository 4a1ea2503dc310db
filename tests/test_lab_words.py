"""The synthetic world's sentences: each has one meaning, and none can be taken for another."""

import itertools
from collections import Counter

from data.lab import MAX_FACTS, MAX_SUBJECTS, Lab, LabSettings
from data.lab_mix import HIGH
from data.lab_words import FACTS, FILLER, IMAGES, INSULTS, JOKES


def test_no_sentence_has_two_meanings() -> None:
    """Kinds of sentences, subjects and their facts are disjoint in the largest world, so in every smaller one."""
    lab = Lab(LabSettings(num_subjects=MAX_SUBJECTS, facts_per_subject=MAX_FACTS))
    num_facts = MAX_SUBJECTS * MAX_FACTS
    kinds = Counter((sentence.attribute, bool(sentence.true_of)) for sentence in lab.sentences.values())
    assert kinds == {
        ("helpfulness", True): num_facts,
        ("helpfulness", False): num_facts * (MAX_SUBJECTS - 1),
        ("creativity", False): len(IMAGES),
        ("humor", False): len(JOKES) * MAX_SUBJECTS,
        ("toxicity", False): len(INSULTS),
        ("verbosity", False): len(FILLER),
    }
    assert len({fact for facts in FACTS.values() for fact in facts}) == num_facts


def test_every_sentence_is_one_short_sentence() -> None:
    lab = Lab(LabSettings(num_subjects=MAX_SUBJECTS, facts_per_subject=MAX_FACTS))
    for text in lab.sentences:
        assert text.isascii(), text
        assert [i for i, character in enumerate(text) if character in ".!?"] == [len(text) - 1], text
        assert 3 <= len(text.split()) <= 8, text
    assert min(map(len, (IMAGES, JOKES, INSULTS, FILLER))) >= HIGH


def test_no_subject_hides_in_another() -> None:
    assert all(subject.isalpha() and subject.islower() for subject in FACTS)
    assert not [pair for pair in itertools.permutations(FACTS, 2) if pair[0] in pair[1]]
