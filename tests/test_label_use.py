"""Which labels a policy reads: the loss of held-out answers with their own labels against labels of others."""

import numpy as np
import pytest

from data.attributes import shipped
from data.examples import Example
from data.label_use import Labels, LabelUse, label_use, probes, shuffled_labels

SCHEMA = shipped("lab")
LABELS: list[Labels] = [[{"humor": float(i % 5), "toxicity": 1.0}] for i in range(40)]


def test_a_shuffle_deals_one_attribute_anew_and_leaves_the_others() -> None:
    found = shuffled_labels(LABELS, "humor", SCHEMA, 0)
    changed = [(i, answers) for i, answers in enumerate(found) if answers is not None]
    assert 20 < len(changed) < 40  # about a fifth draw an equal label
    assert all(answers[0]["humor"] != LABELS[i][0]["humor"] for i, answers in changed)
    assert all(answers[0]["toxicity"] == 1.0 for _, answers in changed)
    assert found == shuffled_labels(LABELS, "humor", SCHEMA, 0)
    assert found != shuffled_labels(LABELS, "humor", SCHEMA, 1)


def test_labels_that_are_all_equal_or_missing_change_nothing() -> None:
    assert not any(shuffled_labels(LABELS, "toxicity", SCHEMA, 0))
    assert not any(shuffled_labels(LABELS, "verbosity", SCHEMA, 0))


def test_every_rated_turn_of_a_conversation_is_dealt() -> None:
    talk: Labels = [{"humor": 0.0}, {}, {"humor": 4.0}]
    found = [shuffled_labels([talk], "humor", SCHEMA, seed)[0] for seed in range(20)]
    changed = [[v.get("humor") for v in answers] for answers in found if answers is not None]
    assert changed
    assert all(values == [4.0, None, 0.0] for values in changed)
    assert talk == [{"humor": 0.0}, {}, {"humor": 4.0}]


def test_a_conversation_that_does_not_fit_is_no_probe() -> None:
    def example(number: int, labels: Labels) -> Example | None:
        ids = np.array([number, int(labels[0]["humor"])])
        return None if number == 3 else Example(ids, ids > -1, ids[:1], np.zeros((1, 0)))

    found = probes(LABELS, SCHEMA, 0, example)
    assert len(found) == 39
    assert {name for probe in found for name in probe.shuffled} == {"humor"}
    assert all(probe.shuffled["humor"].ids_T[1] != probe.own.ids_T[1] for probe in found if probe.shuffled)


def test_a_label_of_a_turn_that_was_cut_off_is_no_difference() -> None:
    same = Example(np.arange(3), np.ones(3, bool), np.array([2]), np.zeros((1, 0)))
    assert not any(probe.shuffled for probe in probes(LABELS, SCHEMA, 0, lambda number, labels: same))


def test_a_label_that_is_read_is_worth_nats_and_one_that_is_not_is_worth_none() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(20, 200, 100)
    read = label_use(0.05 * tokens + rng.normal(0, 1, 100), tokens)
    assert read.nats == pytest.approx(0.05, abs=0.003)
    assert 0 < read.low < read.nats < read.high
    assert read.conversations == 100
    ignored = label_use(rng.normal(0, 1, 100), tokens)
    assert ignored.low < 0 < ignored.high


def test_mean_is_over_tokens_as_in_a_hand_computed_example() -> None:
    use = label_use([1.0, 3.0], [10.0, 30.0])
    assert use == LabelUse(nats=0.1, low=0.1, high=0.1, conversations=2)
