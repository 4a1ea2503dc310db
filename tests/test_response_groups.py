"""Groups travel as rows and as NeMo-Aligner's SteerLM2 JSONL; a prompt has one setting; what is wrong is named."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.attributes import shipped
from data.conversation import Message
from data.errors import UserError
from data.response_groups import (
    Response,
    ResponseGroup,
    group_prompts,
    groups_from,
    groups_table,
    read_steerlm2,
    response_group,
    to_steerlm2,
)

SCHEMA = shipped("lab")
MESSAGES = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Tell me about owls."))


def _group() -> ResponseGroup:
    responses = [Response("Owls hunt.", -0.5, -20.25, -18.0), Response("Owls sleep ünder trees.", -3.0, -30.0, -33.5)]
    return response_group("s", "g", "Be kind.", MESSAGES, {"helpfulness": 4.0, "toxicity": 0.0}, responses)


RECORD = {
    "system": "Be kind.",
    "prompt_turns": [
        {"from": "User", "value": "Hi"},
        {"from": "Assistant", "value": "Yes?"},
        {"from": "User", "value": "Tell me about owls."},
    ],
    "label": "helpfulness:4,toxicity:0",
    "responses": [
        {
            "from": "Assistant",
            "value": "Owls hunt.",
            "log(P(a|x,y))": -0.5,
            "log(P(y|x))": -20.25,
            "log(Q(y|a,x))": -18.0,
        },
        {
            "from": "Assistant",
            "value": "Owls sleep ünder trees.",
            "log(P(a|x,y))": -3.0,
            "log(P(y|x))": -30.0,
            "log(Q(y|a,x))": -33.5,
        },
    ],
}


def _written(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    return str(path)


def test_a_group_is_the_same_after_a_table() -> None:
    assert list(groups_from(groups_table([_group()]))) == [_group()]


def test_nemo_aligners_record_is_written_and_read(tmp_path: Path) -> None:
    assert to_steerlm2(_group(), SCHEMA) == RECORD
    [found] = read_steerlm2(_written(tmp_path / "one.jsonl", RECORD), SCHEMA, "theirs")
    assert found.source == "theirs"
    assert to_steerlm2(found, SCHEMA) == RECORD
    assert found.responses == _group().responses
    weights = np.exp([-0.5 - 20.25 + 18, -3 - 30 + 33.5])
    assert np.exp(found.log_target) == pytest.approx(weights / weights.sum())


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("responses", 0, "log(P(a|x,y))"), 0.5, r"log\(P\(a\|x,y\)\) is 0.5; it is the logarithm of a probability"),
        (("responses", 1, "log(Q(y|a,x))"), "v3", r"log\(Q\(y\|a,x\)\) is 'v3'"),
        (("responses", 0, "from"), "User", "a response is from Assistant"),
        (("responses", 0, "value"), " ", "empty_message"),
        (("responses",), [RECORD["responses"][0]], "1 responses; weights among them need two or more"),  # type: ignore[index]
        (("prompt_turns", 1, "from"), "Bot", "a turn is from 'Bot'"),
        (("prompt_turns",), [], "make no conversation"),
        (("label",), "grace:4", "label has none of the attributes"),
        (("label",), "humor:9", "rating 'humor' is 9.0, allowed is 0 to 4"),
    ],
)
def test_a_wrong_record_is_named(path: tuple[Any, ...], value: object, said: str, tmp_path: Path) -> None:
    wrong: Any = copy.deepcopy(RECORD)
    place = wrong
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file = _written(tmp_path / "two.jsonl", RECORD, wrong)
    with pytest.raises(UserError, match=f"two.jsonl, line 2: .*{said}"):
        list(read_steerlm2(file, SCHEMA, "theirs"))


def test_all_prompts_have_as_many_responses(tmp_path: Path) -> None:
    more = {**RECORD, "responses": [*RECORD["responses"], RECORD["responses"][0]]}  # type: ignore[dict-item]
    with pytest.raises(UserError, match="line 2: 3 responses, but the first prompt has 2"):
        list(read_steerlm2(_written(tmp_path / "more.jsonl", RECORD, more), SCHEMA, "theirs"))


def test_all_answers_to_a_prompt_are_asked_for_the_same() -> None:
    questions = [(f"g{n}", "", (Message("user", f"q{n}"),)) for n in range(40)]
    settings = [{"humor": n} for n in range(3)]
    prompts = group_prompts(questions, settings, 4, 7, "bootstrap-1")
    assert len(prompts) == 160
    assert len({p.id for p in prompts}) == len({p.seed for p in prompts}) == 160
    asked = [{tuple(p.requested.items()) for p in prompts[i : i + 4]} for i in range(0, 160, 4)]
    assert all(len(found) == 1 for found in asked)
    assert len(set.union(*asked)) == 3
    assert prompts[::4] == group_prompts(questions[::-1], settings, 4, 7, "bootstrap-1")[::4][::-1]
