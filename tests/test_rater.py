"""One function rates conversations: the Annotator's rows hold its values, and so do the endpoint's replies."""

from dataclasses import replace

import numpy as np

from actors.generation.protocol import Sampling
from actors.scoring.annotator import Annotator
from actors.scoring.predictor import Predictor
from actors.scoring.rater import Rater
from data.attributes import shipped
from data.conversation import Conversation, Message
from data.lab import Lab, LabSettings
from serve.request import GenerationRequest
from serve.scorer import rate_answers

SCHEMA = shipped("lab")


def test_a_rate_is_what_the_annotator_writes(tiny_predictor: str) -> None:
    conversations = list(Lab(LabSettings(num_rows=12)).rows())
    long = Conversation(
        "t", "", (*conversations[0].messages, Message("user", "And? " * 90), Message("assistant", "So."))
    )
    rows = [*conversations, long]
    rated = Rater(Predictor.load(tiny_predictor, num_threads=1), 256, 128).rate(rows)
    annotated = Annotator(tiny_predictor, SCHEMA, "f", 256, 128, "float32", 1).annotated(rows)
    for values_SA, row in zip(rated, annotated, strict=True):
        written = [[values.get(name, np.nan) for name in SCHEMA.names] for values in row.predicted]
        np.testing.assert_array_equal(values_SA, np.array(written, np.float32))
    assert np.isnan(rated[-1]).all(1).tolist() == [True] * (long.num_answers - 1) + [False]


def test_the_endpoint_s_scores_are_rates_of_the_last_turn_and_an_empty_answer_has_none(tiny_predictor: str) -> None:
    request = GenerationRequest("", (Message("user", "Why?"),), (), {}, Sampling(9))
    answers = ["So.", "", "Because of the moon, the tides and the owls."]

    rater = Rater(Predictor.load(tiny_predictor, num_threads=1), 256, 128)
    rows = [Conversation("t", "", (*request.messages, Message("assistant", answer))) for answer in answers]
    last = [values[-1] for values in rater.rate(rows)]
    first, _, third = [dict(zip(SCHEMA.names, (round(float(v), 4) for v in values), strict=True)) for values in last]
    assert rate_answers(rater, [(request, answer) for answer in answers]) == [first, {}, third]


def test_a_continued_answer_is_rated_whole_and_a_conversation_may_begin_with_an_answer(tiny_predictor: str) -> None:
    asked, begun, greeting = Message("user", "Why?"), Message("assistant", "Because of "), Message("assistant", "Hi.")
    plain = GenerationRequest("", (asked,), (), {}, Sampling(9))
    continued, greeted = replace(plain, messages=(asked, begun)), replace(plain, messages=(greeting, asked))
    rater = Rater(Predictor.load(tiny_predictor, num_threads=1), 256, 128)
    whole = rate_answers(rater, [(plain, "Because of the moon.")])
    assert rate_answers(rater, [(continued, "the moon.")]) == whole
    assert set(rate_answers(rater, [(greeted, "The moon.")])[0]) == set(SCHEMA.names)
    assert rate_answers(rater, [(continued, "")])[0] != {}, "its beginning"
