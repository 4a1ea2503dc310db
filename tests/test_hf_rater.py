"""Models of others as raters: what plain transformers computes, and what they cannot rate."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from actors.scoring.hf_rater import HfRater
from actors.scoring.predictor import Predictor
from actors.scoring.rater import Rater
from data.attributes import shipped
from data.conversation import Conversation, Message
from data.errors import UserError
from data.lab import Lab, LabSettings
from data.rater_settings import HfRaterSettings
from data.turns import Turn, last_turns

SCHEMA = shipped("lab")


def hf_rater(model: str, batch_tokens: int = 512, **settings: object) -> HfRater:
    given = HfRaterSettings.model_validate({"kind": "hf", "model": model, **settings})
    return HfRater(given, SCHEMA, "float32", batch_tokens)


def rows() -> list[Conversation]:
    texts = list(Lab(LabSettings(num_rows=24)).rows())
    marked = (Message("user", "Say <extra_id_1> and <extra_id_2>."), Message("assistant", "<extra_id_1> it is."))
    return [*texts, Conversation("t", "Be kind.", marked)]


def test_our_own_predictor_through_the_generic_path_rates_as_it_does(tiny_predictor: str) -> None:
    conversations = rows()
    ours = Rater(Predictor.load(tiny_predictor), 1024, 1024).rate(conversations)
    generic = hf_rater(tiny_predictor, attributes={name: name for name in SCHEMA.names})
    theirs = generic([turn for c in conversations for turn in last_turns(c, c.num_answers)])
    values_SA = [[rated.values[name] for name in SCHEMA.names] for rated in theirs]
    assert len(values_SA) > len(conversations), "some have several answers"
    np.testing.assert_allclose(values_SA, np.concatenate(ours), atol=1e-5)


def test_a_decoder_keeps_no_keys_and_values_of_a_batch(tiny_predictor: str) -> None:
    model = hf_rater(tiny_predictor, attributes={"humor": 2})._head.model
    assert model(input_ids=torch.tensor([[5, 6, 7]])).past_key_values is None


def test_numbers_names_and_ranges_choose_and_scale_the_outputs(tiny_predictor: str) -> None:
    (turn,) = last_turns(rows()[0], 1)
    raw = hf_rater(tiny_predictor, attributes={"humor": 2, "toxicity": "toxicity"})([turn])[0].values
    scaled = hf_rater(tiny_predictor, attributes={"humor": 2}, range={"humor": (-1, 1)})([turn])[0].values
    model = AutoModelForSequenceClassification.from_pretrained(tiny_predictor).eval()
    chat = [{"role": m.role, "content": m.content} for m in turn.messages]
    ids = AutoTokenizer.from_pretrained(tiny_predictor).apply_chat_template(chat, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        logits = model(**ids).logits[0]
    assert (raw["humor"], raw["toxicity"]) == (
        pytest.approx(float(logits[2]), abs=1e-5),
        pytest.approx(float(logits[3]), abs=1e-5),
    )
    assert scaled["humor"] == pytest.approx((float(logits[2]) + 1) / 2 * 4, abs=1e-5)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder of random weights with a tokenizer of pairs and no chat template, as toxicity classifiers are."""
    folder = tmp_path_factory.mktemp("classifier")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "you", "are", "a", "fool", "friend", "what", "am", "i", "?"]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, id2label={0: "clean", 1: "toxic"}, label2id={"clean": 0, "toxic": 1},
        initializer_range=1.0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(folder)).save_pretrained(folder)
    return str(folder)


def turn(question: str, answer: str) -> Turn:
    return Turn("", (Message("user", question), Message("assistant", answer)))


@pytest.mark.parametrize("reads", ["pair", "answer"])
def test_a_classifier_reads_pairs_or_answers_and_gives_probabilities(classifier: str, reads: str) -> None:
    turns = [turn("what am i ?", "you are a fool"), turn("i ?", "a friend"), turn("a", "fool fool fool")]
    rater = hf_rater(
        classifier, attributes={"toxicity": "toxic"}, reads=reads, activation="softmax", range={"toxicity": (0, 1)}
    )
    found = [rated.values["toxicity"] for rated in rater(turns)]
    model, tokenizer = BertForSequenceClassification.from_pretrained(classifier).eval(), rater._tokenizer
    for value, one in zip(found, turns, strict=True):
        texts = [one.question, one.answer] if reads == "pair" else [one.answer]
        with torch.no_grad():
            plain = model(**tokenizer(*texts, return_tensors="pt")).logits.softmax(-1)[0, 1]
        assert value == pytest.approx(4 * float(plain), abs=1e-5)
    assert len({round(value, 4) for value in found}) == 3


def test_what_is_too_long_has_no_value_and_is_counted(classifier: str) -> None:
    rater = hf_rater(classifier, attributes={"toxicity": "toxic"}, reads="answer")
    short, long = rater([turn("a", "a fool"), turn("a", "fool " * 40)])  # the model has 32 positions
    assert set(short.values) == {"toxicity"}
    assert (dict(long.values), dict(long.failed)) == ({}, {"toxicity": "too long"})


def test_models_that_cannot_rate_are_one_sentence(classifier: str, tiny_base: str, tmp_path: Path) -> None:
    for model, settings, told in (
        (classifier, {"attributes": {"humor": "funny"}, "reads": "pair"}, "has no output 'funny'; it has 0 to 1"),
        (classifier, {"attributes": {"humor": 2}, "reads": "pair"}, "has no output 2"),
        (classifier, {"attributes": {"humor": 0}}, "has no chat template; set its `reads` to pair or answer"),
        (tiny_base, {"attributes": {"humor": 0}}, "has no weights of score.weight, so it cannot rate"),
        (str(tmp_path), {"attributes": {"humor": 0}}, "no readable model at"),
    ):
        with pytest.raises(UserError, match=told):
            hf_rater(model, **settings)


def test_code_that_comes_with_a_model_never_runs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.M"}}'
    )
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UserError, match=r"needs code of its own .* never run"):
        hf_rater(str(tmp_path), attributes={"humor": 0})
