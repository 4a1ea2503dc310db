"""log P of answers is what the policy itself says of them, and what a training on them begins with."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.modeling.policy import Policy
from actors.modeling.response_policy import GroupTask
from actors.modeling.tokenizer import encoder
from actors.scoring.log_likelihood import LogLikelihood
from actors.training.examples import ExampleSpec
from actors.training.group_examples import GroupExamples
from data.attribute_likelihood import divergence
from data.attributes import SchemaMismatch, shipped
from data.conversation import Conversation, Message, to_table
from data.counters import counters_of
from data.examples import Examples
from data.response_groups import Response, ResponseGroup, groups_table, response_group

SCHEMA = shipped("lab")
REQUESTED = {"helpfulness": 4.0, "humor": 1.0}
ANSWERS = ("Owls hunt mice.", "An owl is a bird. It flies without a sound.", "Why did the owl laugh?", "No.")
QUESTION = Message("user", "Tell me about owls.")
EARLIER = (Message("user", "Hello."), Message("assistant", "Good day."))


def _row(answer: str, earlier: tuple[Message, ...] = ()) -> Conversation:
    requested = ({},) * (len(earlier) // 2) + (REQUESTED,)
    return Conversation("s", "", (*earlier, QUESTION, Message("assistant", answer)), requested=requested)


ROWS = [*map(_row, ANSWERS), _row(ANSWERS[0], EARLIER)]


def _measured(policy: str, rows: list[Conversation], **more: Any) -> pa.Table:
    arguments: dict[str, Any] = {"labels": True, "pack_tokens": 128, "max_tokens": 128, "dtype": "float32"}
    return LogLikelihood(policy, SCHEMA, num_threads=1, **arguments | more)(to_table(rows, SCHEMA))


@torch.inference_mode()
def _expected(policy: Policy, row: Conversation, values: dict[str, float]) -> float:
    """Token by token, from plain transformers."""
    prompt = policy.prompt(row.system, row.messages[:-1], values)
    ids = [*prompt, *encoder(policy.tokenizer)(f"{row.messages[-1].content}\n<extra_id_1>")]
    logprobs = policy.model(torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
    return sum(float(logprobs[place - 1, ids[place]]) for place in range(len(prompt), len(ids)))


def test_it_is_what_the_policy_itself_says(wide_policy: str) -> None:
    policy = Policy.load(wide_policy)
    for labels, values in ((True, REQUESTED), (False, {})):
        table = _measured(wide_policy, ROWS, labels=labels)
        assert table.column("id").to_pylist() == [row.id for row in ROWS]
        expected = [_expected(policy, row, values) for row in ROWS]
        assert table.column("log_likelihood").to_pylist() == pytest.approx(expected, rel=1e-4)


def test_other_packs_give_the_same_and_what_does_not_fit_has_none(wide_policy: str) -> None:
    long = _row("Owls. " * 60)
    one_by_one = _measured(wide_policy, [long, *ROWS], pack_tokens=100, max_tokens=100)
    together = _measured(wide_policy, ROWS, pack_tokens=1000)
    found = one_by_one.column("log_likelihood").to_pylist()
    assert found[0] is None
    assert found[1:] == pytest.approx(together.column("log_likelihood").to_pylist(), rel=1e-4)
    assert counters_of(one_by_one.schema)["unread"] == 1
    with pytest.raises(SchemaMismatch):
        LogLikelihood(wide_policy, shipped("helpsteer"), True, 64, 64, "float32", 1)


def _group(policy: str, answers: tuple[str, ...], earlier: tuple[Message, ...] = ()) -> ResponseGroup:
    rows = [_row(answer, earlier) for answer in answers]
    own = _measured(policy, rows).column("log_likelihood").to_pylist()
    free = _measured(policy, rows, labels=False).column("log_likelihood").to_pylist()
    responses = [Response(a, -1.5 * n, f, o) for n, (a, f, o) in enumerate(zip(answers, free, own, strict=True))]
    return response_group("s", "g", "", (*earlier, QUESTION), REQUESTED, responses)


def _examples(base: str, groups: list[ResponseGroup], max_tokens: int = 128, pack_tokens: int = 512) -> Examples:
    spec = ExampleSpec(base, SCHEMA, "steerlm", max_tokens)
    return Examples([GroupExamples(spec, pack_tokens)(groups_table(groups))])


def test_a_training_that_starts_from_the_policy_begins_where_all_answers_share_alike(wide_policy: str) -> None:
    """So log Q' and the live policy's are of the same tokens."""
    groups = [_group(wide_policy, ANSWERS), _group(wide_policy, ANSWERS[:3], EARLIER)]
    examples = _examples(wide_policy, groups)
    assert len(examples) == 2
    task = GroupTask(wide_policy, SCHEMA, "steerlm")
    module = task.build().eval()
    with torch.no_grad():
        found = module(**task.inputs([examples[0], examples[1]], "cpu")).item()
    uniform = [np.full(len(g.responses), -math.log(len(g.responses))) for g in groups]
    expected = sum(divergence(g.log_target, own) for g, own in zip(groups, uniform, strict=True))
    assert found == pytest.approx(expected, abs=2e-3)
    assert expected > 0.5


def test_a_group_that_does_not_fit_is_counted(wide_policy: str) -> None:
    group = _group(wide_policy, ANSWERS)
    assert _examples(wide_policy, [group], pack_tokens=128).rejected == {"over_pack": 1}
    assert _examples(wide_policy, [group], max_tokens=20).rejected == {"over_long": 1}
