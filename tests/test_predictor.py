"""One forward for all turns == one prefix at a time; plain transformers loads the folder and gives the same scores."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.modeling.tokenizer import encoder
from actors.scoring.annotator import Annotator
from actors.scoring.predictor import Predictor
from data.attributes import SchemaMismatch, shipped
from data.conversation import Conversation, Message
from data.lab import Lab, LabSettings
from data.tokens import tokenize

SCHEMA = shipped("lab")


def test_all_turns_in_one_forward_equal_one_prefix_at_a_time(tiny_predictor: str) -> None:
    predictor = Predictor.load(tiny_predictor)
    encode = encoder(predictor.format.tokenizer)
    rows = [row for row in Lab(LabSettings(num_rows=60)).rows() if row.num_answers == 3]
    assert rows
    for row in rows:
        whole = tokenize(predictor.format.template.pieces("", row.messages, ()), encode)
        (all_turns_SA,) = predictor.score([whole.ids_T], [whole.turn_ends_S])
        for turn in range(3):
            prefix = tokenize(predictor.format.template.pieces("", row.messages[: 2 * turn + 2], ()), encode)
            (one_SA,) = predictor.score([prefix.ids_T], [prefix.turn_ends_S[-1:]])
            np.testing.assert_allclose(all_turns_SA[turn], one_SA[0], atol=1e-5)


def test_plain_transformers_gives_the_same_scores(tiny_predictor: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_predictor).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_predictor)
    assert [model.config.id2label[i] for i in range(5)] == list(SCHEMA.names)
    assert model.config.problem_type == "regression"
    chat = [
        {"role": "user", "content": "Tell me about bees."},
        {"role": "assistant", "content": "Bees make honey in a hive."},
    ]
    inputs = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        theirs = model(**inputs).logits[0].numpy()
    annotator = Annotator(tiny_predictor, SCHEMA, "f", pack_tokens=512, max_tokens=512, dtype="float32", num_threads=1)
    (ours,) = annotator.annotated([Conversation("t", "", tuple(Message(m["role"], m["content"]) for m in chat))])
    np.testing.assert_allclose(list(ours.predicted[0].values()), theirs, atol=1e-5)


def test_annotation_keeps_human_values_and_flags_what_it_cut(tiny_predictor: str) -> None:
    annotator = Annotator(tiny_predictor, SCHEMA, "abc", pack_tokens=64, max_tokens=64, dtype="float32", num_threads=1)
    turns = (
        Message("user", "Tell me. " * 40),
        Message("assistant", "First."),
        Message("user", "And?"),
        Message("assistant", "Second. " * 6),
    )
    row = Conversation("t", "", turns, human=({"humor": 3.0}, {}))
    (done,) = annotator.annotated([row])
    assert done.human == row.human
    assert (done.truncated, done.tokens, done.predictor) == (True, 64, "abc")
    assert set(done.predicted[-1]) == set(SCHEMA.names)
    short = Conversation("t", "", (Message("user", "a"), Message("assistant", "b")))
    assert annotator.annotated([short, short])[0].truncated is False


def test_two_schemas_never_meet(tiny_predictor: str) -> None:
    with pytest.raises(SchemaMismatch, match=r"the run has attribute schema 'helpsteer'.*the predictor at"):
        Annotator(tiny_predictor, shipped("helpsteer"), "f", 64, 64, "float32", 1)


def test_a_folder_that_is_no_predictor_is_named(tmp_path: object, tiny_base: str) -> None:
    with pytest.raises(ValueError, match="no readable model at"):
        Predictor.load(str(tmp_path))
    with pytest.raises(ValueError, match="has no `steerlm` entry"):
        Predictor.load(tiny_base)
