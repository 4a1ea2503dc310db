"""The worker of sampling, without Ray: guidance of a row, and what fits."""

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from actors.generation.protocol import Sampling
from actors.generation.sampler import Sampler
from actors.generation.settings import EngineSettings
from data.attributes import shipped
from data.conversation import Message, from_table
from data.counters import counters_of
from data.prompts import prompt, prompts_table
from data.selection import FINISH, TOO_LONG

SCHEMA = shipped("lab")
QUESTIONS = [[Message("user", f"Tell me about {what}.")] for what in ("bees", "the sea", "volcanoes")]


def _prompts(values: dict[str, float]) -> pa.Table:
    """With seeds that do not depend on the values, so that answers differ by the prompt alone."""
    made = (prompt("s", "g", "", question, values, n, 0) for n, question in enumerate(QUESTIONS))
    return prompts_table(replace(p, seed=n) for n, p in enumerate(made))


def _answers(policy: str, values: dict[str, float], guidance: float, **more: Any) -> list[str]:
    sampler = Sampler(
        policy,
        SCHEMA,
        Sampling(16, temperature=1, guidance=guidance),
        EngineSettings(max_num_seqs=4),
        "float32",
        1,
        **more,
    )
    table = sampler(_prompts(values))
    sampler.engine.close()
    assert {"tokens", "cut_off", "cpu_seconds", "wall_seconds"} == set(counters_of(table.schema))
    return [row.messages[-1].content for row in from_table(table)]


def test_a_row_is_led_away_from_no_request_or_from_a_named_one(wide_policy: str) -> None:
    plain = _answers(wide_policy, {"humor": 4}, 1.0)
    assert _answers(wide_policy, {"humor": 4}, 8.0) != plain
    unset = _answers(wide_policy, {}, 1.0)
    assert _answers(wide_policy, {"humor": 4}, 0.0) == unset
    named = _answers(wide_policy, {"humor": 0, "verbosity": 1}, 1.0)
    requested = {"humor": 4.0, "verbosity": 1.0}
    assert _answers(wide_policy, requested, 0.0, guidance_from={"humor": 0}) == named


def test_a_row_without_a_request_has_nothing_to_be_led_to(wide_policy: str) -> None:
    assert _answers(wide_policy, {}, 5.0) == _answers(wide_policy, {}, 1.0)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_prompt_without_room_gets_no_answer_where_that_is_wanted(wide_policy: str, guidance: float) -> None:
    sampling = Sampling(16, guidance=guidance)
    sampler = Sampler(wide_policy, SCHEMA, sampling, EngineSettings(max_num_seqs=2), "float32", 1, keep_too_long=True)
    long = [Message("user", "the sea " * 400)]
    table = sampler(prompts_table([prompt("s", "g", "", long, {"humor": 1}, 0, 0)]))
    assert table.column(FINISH).to_pylist() == [TOO_LONG]
    sampler.engine.close()
