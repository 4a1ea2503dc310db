"""Predictor examples: a decoder's is a conversation, an encoder's a rated answer; labels are counted as given."""

import math

import numpy as np
import pyarrow as pa
import pytest
from support.tiny_backbones import save_backbone

from actors.modeling.tokenizer import encoder
from actors.training.examples import ExampleSpec, PredictorExamples, TextExamples, label_counts
from data.attributes import shipped
from data.conversation import Conversation, Message, to_table
from data.counters import added, counters_of
from data.examples import Examples
from data.tokens import tokenize

SCHEMA = shipped("lab")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_backbone("bert", str(tmp_path_factory.mktemp("bert")))


def _row(*human: dict[str, float], words: int = 4) -> Conversation:
    turns = [
        m
        for i in range(len(human))
        for m in (Message("user", f"Question {i}?"), Message("assistant", f"Answer {i} " + "and so on " * words))
    ]
    return Conversation("t", "", tuple(turns), human=human)


def _examples(base: str, rows: list[Conversation], max_tokens: int = 256) -> Examples:
    return Examples([PredictorExamples(ExampleSpec(base, SCHEMA, "steerlm", max_tokens))(to_table(rows, SCHEMA))])


def test_an_encoder_has_one_example_for_each_rated_answer_and_never_sees_later_ones(bert: str) -> None:
    row = _row({"humor": 1.0}, {}, {"humor": 3.0, "toxicity": 0.0})
    maker = PredictorExamples(ExampleSpec(bert, SCHEMA, "steerlm", 256))
    loader = Examples([maker(to_table([row], SCHEMA))])
    tokenizer = maker.format.tokenizer
    assert len(loader) == 2
    for example, num_messages, humor in ((loader[0], 2, 1.0), (loader[1], 6, 3.0)):
        whole = tokenize(maker.format.template.pieces("", row.messages[:num_messages], ()), encoder(tokenizer))
        assert example.ids_T.tolist() == [tokenizer.cls_token_id, *whole.ids_T, tokenizer.sep_token_id]
        assert example.turn_ends_S.tolist() == [0]
        assert example.values_SA[:, SCHEMA.names.index("humor")].tolist() == [humor]
    assert len(set(loader.groups)) == 1, "both answers are in the conversation's group"


def test_an_early_answer_of_a_long_conversation_stays_an_encoders_example(tiny_base: str, bert: str) -> None:
    row = _row({"humor": 1.0}, {}, {}, {}, {}, words=12)
    assert len(_examples(bert, [row], max_tokens=128)) == 1
    # A decoder reads the conversation once, and the cut takes the rated turn with it.
    assert _examples(tiny_base, [row], max_tokens=128).rejected == {"rated_turns_cut": 1}


def test_what_no_example_could_be_made_of_is_counted_by_reason(bert: str) -> None:
    rows = [_row({}), _row({"humor": 1.0}, words=200), _row({"humor": 9.0, "toxicity": -1.0})]
    loader = _examples(bert, rows)
    assert (len(loader), loader.rejected) == (0, {"no_label_in_range": 1, "over_long": 1, "unrated": 1})


def test_a_backbone_with_too_few_positions_is_refused_before_anything_is_read(bert: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"max_tokens is 1024, but .* reads at most 256 tokens; set predictor.learner.max_tokens to at most 256",
    ):
        PredictorExamples(ExampleSpec(bert, SCHEMA, "steerlm", 1024))


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_labels_are_counted_by_attribute_as_people_gave_them(kind: str, tiny_base: str, bert: str) -> None:
    maker = PredictorExamples(ExampleSpec(tiny_base if kind == "decoder" else bert, SCHEMA, "steerlm", 256))
    first = [
        _row({"humor": 1.0, "toxicity": 7.0}),
        _row({"humor": math.nan, "verbosity": 0.0}),
        _row({"helpfulness": 2.0, "humor": -0.5}),
    ]
    tables = [
        maker(to_table(first, SCHEMA)),
        maker(to_table([_row({"humor": 5.0})], SCHEMA)),
        maker(to_table([], SCHEMA)),
    ]
    counts = label_counts(tables, SCHEMA)
    assert counts["humor"] == {"valid": 1, "missing": 1, "out_of_range": 2}
    assert counts["toxicity"] == {"valid": 0, "missing": 3, "out_of_range": 1}
    assert counts["creativity"] == {"valid": 0, "missing": 4, "out_of_range": 0}
    assert {sum(c.values()) for c in counts.values()} == {4}
    counters = added(counters_of(table.schema) for table in tables)
    assert {f"label/{a}/{k}": n for a, kinds in counts.items() for k, n in kinds.items()}.items() <= counters.items()
    assert counters["example/examples"] + counters["example/no_label_in_range"] == 4
    # They stay in the examples as they were; the task leaves them out of the loss.
    assert np.nanmax(Examples(tables)[0].values_SA) <= 7


def test_a_long_text_is_cut_into_windows_and_a_lone_token_is_left_out(tiny_base: str) -> None:
    maker = TextExamples(ExampleSpec(tiny_base, SCHEMA, "steerlm", 4))
    text = "owls hunt mice at night"
    num_tokens = len(maker.encode(text)) + 1  # the end of the text
    table = maker(pa.table({"id": ["t"], "text": [text]}))
    kept = [size for start in range(0, num_tokens, 4) if (size := min(4, num_tokens - start)) > 1]
    assert [len(ids) for ids in table.column("ids").to_pylist()] == kept
    assert len(kept) > 1
    assert [sum(trained) for trained in table.column("trained").to_pylist()] == [size - 1 for size in kept]
    assert not TextExamples.ROW_FOR_ROW
