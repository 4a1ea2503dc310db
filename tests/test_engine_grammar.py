"""Both engines write what a grammar asks for, whatever the model would say; vLLM: `make test-vllm`."""

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from support.engine_listener import Recorder
from support.engines import KINDS, prompts_of, running

from actors.generation.protocol import Engine, Grammar, Sampling, complete
from actors.generation.transformers_engine import TransformersEngine
from actors.modeling.policy import Policy

SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "humor": {"type": "integer", "minimum": 0, "maximum": 4},
            "tags": {"type": "array", "items": {"enum": ["bees", "sea"]}, "minItems": 1, "maxItems": 3},
            "inner": {"$ref": "#/$defs/point"},
        },
        "required": ["name", "humor", "tags", "inner"],
        "additionalProperties": False,
        "$defs": {
            "point": {
                "type": "object",
                "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}, "y": {"type": "boolean"}},
                "required": ["x"],
                "additionalProperties": False,
            }
        },
    },
    {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-z]{1,8}@[a-z]{1,5}[.]com$"}]},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": "é\n"}], "items": False, "minItems": 2},
]


@pytest.fixture(scope="module")
def policy(wide_policy: str) -> Policy:
    return Policy.load(wide_policy)


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest, wide_policy: str) -> Iterator[Engine]:
    with running(request.param, wide_policy) as engine:
        yield engine


@pytest.fixture(scope="module")
def prompts(policy: Policy) -> list[list[int]]:
    return [ids for ids in prompts_of(policy) if len(ids) < 80]


def _schema(number: int) -> Grammar:
    return Grammar("json_schema", json.dumps(SCHEMAS[number]))


def test_200_answers_of_a_random_model_parse_and_validate(
    engine: Engine, policy: Policy, prompts: list[list[int]]
) -> None:
    requests = [
        (
            prompts[i % len(prompts)],
            Sampling(400, temperature=(0.0, 0.7, 1.0, 2.0)[i % 4], seed=i, grammar=_schema(i % len(SCHEMAS))),
        )
        for i in range(200)
    ]
    for i, (ids, finish) in enumerate(complete(engine, requests)):
        text = policy.decode(ids)
        assert finish == "stop", text
        jsonschema.validate(json.loads(text), SCHEMAS[i % len(SCHEMAS)])


def test_every_kind_is_followed(engine: Engine, policy: Policy, prompts: list[list[int]]) -> None:
    call = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    tag = {
        "type": "structural_tag",
        "format": {
            "type": "sequence",
            "elements": [
                {"type": "const_string", "value": "<tool_call>\n"},
                {"type": "json_schema", "json_schema": {**call, "additionalProperties": False}},
                {"type": "const_string", "value": "\n</tool_call>"},
            ],
        },
    }
    grammars = [
        Grammar("regex", "(yes|no), [0-9]{3}"),
        Grammar("ebnf", 'root ::= "[" item ("," item){0,3} "]"\nitem ::= "bee" | "sea"'),
        Grammar("structural_tag", json.dumps(tag)),
    ]
    patterns = [r"(yes|no), [0-9]{3}", r"\[(bee|sea)(,(bee|sea)){0,3}\]", r"<tool_call>\n\{.*\}\n</tool_call>"]
    answers = complete(engine, [(prompts[0], Sampling(300, seed=i, grammar=g)) for i, g in enumerate(grammars)])
    for pattern, (ids, finish) in zip(patterns, answers, strict=True):
        assert finish == "stop"
        assert re.fullmatch(pattern, policy.decode(ids), re.DOTALL), policy.decode(ids)
    # A random model hardly closes an object of any keys: what it has written must be the beginning of one.
    [(ids, _)] = complete(engine, [(prompts[0], Sampling(40, seed=1, grammar=Grammar("json_object")))])
    assert policy.decode(ids).startswith("{")


def test_a_seed_gives_the_same_answer_alone_and_in_company(engine: Engine, prompts: list[list[int]]) -> None:
    requests = [
        (ids, Sampling(60, seed=i, temperature=0.9, top_k=50, grammar=_schema(i % 3) if i % 2 else None))
        for i, ids in enumerate([*prompts, *prompts])
    ]
    assert complete(engine, requests) == [complete(engine, [request])[0] for request in requests]


def test_bias_and_penalties_cannot_break_the_grammar(engine: Engine, policy: Policy, prompts: list[list[int]]) -> None:
    end = min(policy.stop_ids)
    rule = Sampling(
        80, seed=1, repetition_penalty=3, presence_penalty=2, logit_bias={end: 100.0}, grammar=_schema(2), logprobs=20
    )
    recorder = Recorder()
    engine.submit(prompts[0], rule, recorder)
    assert recorder.ended.wait(30)
    ids = [i for step in recorder.steps for i in step.token_ids]
    jsonschema.validate(json.loads(policy.decode(ids)), SCHEMAS[2])
    found = [logprob for step in recorder.steps for logprob in step.logprobs or []]
    assert len(found) == len(ids)
    # Only what the grammar allows is among the alternatives: "true" and "false" begin with few tokens.
    assert min(len(logprob.top) for logprob in found) < 20
    assert all(p > float("-inf") for logprob in found for _, p in logprob.top)


def test_a_cancelled_answer_leaves_the_others_their_grammar(
    engine: Engine, policy: Policy, prompts: list[list[int]]
) -> None:
    endless = Sampling(300, seed=1, grammar=Grammar("regex", "[a-z ]*"))
    recorder, beside = Recorder(), [Recorder() for _ in range(3)]
    [first, *_] = engine.submit_all(
        [
            (prompts[0], endless, recorder),
            *((prompts[0], Sampling(300, seed=i, grammar=_schema(0)), listener) for i, listener in enumerate(beside)),
        ]
    )
    assert recorder.started.wait(30)
    engine.cancel(first)
    assert all(listener.ended.wait(30) for listener in (recorder, *beside))
    assert re.fullmatch("[a-z ]*", policy.decode([i for step in recorder.steps for i in step.token_ids]))
    for listener in beside:
        text = policy.decode([i for step in listener.steps for i in step.token_ids])
        jsonschema.validate(json.loads(text), SCHEMAS[0])


def test_what_cannot_be_compiled_is_refused_before_anything_runs(engine: Engine, prompts: list[list[int]]) -> None:
    before = engine.load.prefilled_tokens
    good, bad = Sampling(5), Sampling(5, grammar=Grammar("json_schema", '{"type": "strin"}'))
    with pytest.raises(ValueError, match='the json schema is not understood: Unsupported type "strin"'):
        engine.submit_all([(prompts[0], good, Recorder()), (prompts[0], bad, Recorder())])
    assert (engine.load.prefilled_tokens, engine.load.waiting, engine.load.running) == (before, 0, 0)


def test_answers_go_on_while_a_grammar_is_compiled(policy: Policy, prompts: list[list[int]]) -> None:
    """One that is compiled only once another answer has grown."""
    engine, recorder, compiled = TransformersEngine(policy, max_num_seqs=2), Recorder(), Recorder()
    grown, compile_ = threading.Event(), engine._grammars._made
    engine._grammars._made = lambda grammar: compile_(grammar) if grown.wait(30) else None  # type: ignore[method-assign]
    thread = threading.Thread(
        target=engine.submit, args=(prompts[1], Sampling(5, seed=1, grammar=Grammar("regex", "[a-c]*")), compiled)
    )
    thread.start()
    request = engine.submit(prompts[0], Sampling(400, seed=1), recorder)
    assert recorder.started.wait(30)
    before = len(recorder.steps)
    while len(recorder.steps) < before + 3 and not recorder.ended.wait(0.01):
        pass
    assert not compiled.steps
    grown.set()
    assert compiled.ended.wait(30)
    assert compiled.steps[-1].finish in ("stop", "length")
    engine.cancel(request)
    thread.join(30)
    engine.close()
