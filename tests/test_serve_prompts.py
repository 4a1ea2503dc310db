"""Prompts on a replica: tokenized beside its loop, once for all candidates, and not at all if they cannot fit."""

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from actors.generation.prompt_length import fewest_tokens, longest_token
from actors.generation.protocol import Sampling
from actors.modeling.tokenizer import encoder, train_tokenizer
from data.conversation import Message
from data.errors import UserError
from data.template import Unrenderable
from serve.engine_request import refused
from serve.prompts import INLINE_CHARS, Prompts
from serve.request import GenerationRequest

TOKENIZER = train_tokenizer(["an owl, a mole and a vole", "another owl     is an owl"], 300)
SHORT = GenerationRequest("", (Message("user", "Why?"),), (), {"humor": 1}, Sampling(5))
LONG = replace(SHORT, messages=(Message("user", "owl " * INLINE_CHARS),))


class SlowText:
    """The text side of a policy whose tokenizer needs its time for any prompt, and counts them."""

    def __init__(self, seconds: float = 0.05) -> None:
        self.tokenizer, self.num_prompts, self._seconds = TOKENIZER, 0, seconds
        self.threads: set[str] = set()

    def prompt(self, system: str, messages: Sequence[Message], *labels: object) -> list[int]:
        self.num_prompts += 1
        self.threads.add(threading.current_thread().name)
        time.sleep(self._seconds)
        return [len(messages[-1].content)]


def prompts(text: SlowText, context: int = 10**6) -> Prompts:
    return Prompts(text, context)  # type: ignore[arg-type]


@pytest.mark.case("B10: a long prompt is tokenized beside the loop")
def test_a_long_prompt_does_not_hold_the_loop() -> None:
    text = SlowText(0.3)

    async def go() -> tuple[list[int], int]:
        ids, turns = asyncio.ensure_future(prompts(text).ids(LONG)), 0
        while not ids.done():
            await asyncio.sleep(0.001)
            turns += 1
        return await ids, turns

    ids, turns = asyncio.run(go())
    assert ids == [len(LONG.messages[0].content)]
    assert turns > 10
    assert text.threads == {"tokenizer_0"}


def test_a_short_prompt_needs_no_thread() -> None:
    text = SlowText()
    assert asyncio.run(prompts(text).ids(SHORT)) == [4]
    assert text.threads == {"MainThread"}


@pytest.mark.case("B10: sixteen candidates have one prompt")
def test_the_candidates_of_a_request_are_tokenized_once() -> None:
    text = SlowText()
    other = replace(LONG, attributes={"humor": 2})

    async def go() -> list[list[int]]:
        found = prompts(text)
        candidates = [*(replace(LONG, sampling=Sampling(seed=i)) for i in range(16)), other]
        first = await asyncio.gather(*map(found.ids, candidates))
        await found.ids(LONG)
        assert not found._running, "nothing is kept"
        return first

    assert len(asyncio.run(go())) == 17
    assert text.num_prompts == 3


@pytest.mark.case("B10: callers that leave while their prompts wait for the tokenizer")
def test_a_prompt_that_nobody_waits_for_is_not_begun() -> None:
    text = SlowText()

    async def go() -> list[int]:
        found = prompts(text)
        waiting = [asyncio.ensure_future(found.ids(replace(LONG, system=str(i)))) for i in range(10)]
        pairs = [asyncio.ensure_future(found.ids(LONG)) for _ in range(2)]
        await asyncio.sleep(0.01)
        for task in [*waiting, pairs[0]]:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await waiting[0]
        return await pairs[1]

    assert asyncio.run(go()) == [len(LONG.messages[0].content)], "the other of the two still waits"
    assert text.num_prompts == 2, "the one that ran already, and the one that somebody waits for"


@pytest.mark.case("B10: a megabyte that cannot fit")
def test_a_prompt_that_cannot_fit_is_refused_by_its_characters() -> None:
    text = SlowText()
    longest = longest_token(TOKENIZER)
    assert longest is not None
    megabyte = replace(SHORT, messages=(Message("user", "x" * 2**20),))
    with pytest.raises(UserError, match=f"at least {2**20 // longest} tokens, the policy's context 512"):
        asyncio.run(prompts(text, context=512).ids(megabyte))
    blank = replace(SHORT, messages=(Message("user", "why?" + " " * 2**20),))
    assert asyncio.run(prompts(text, context=512).ids(blank)) != [], "templates trim"
    assert text.num_prompts == 1


def test_what_the_template_refuses_reaches_everyone_who_waits() -> None:
    text = SlowText()

    def refuse(*_: object) -> list[int]:
        raise UserError("no system message")

    text.prompt = refuse  # type: ignore[method-assign]

    async def go() -> list[Any]:
        found = prompts(text)
        return await asyncio.gather(found.ids(LONG), found.ids(LONG), found.ids(SHORT), return_exceptions=True)

    assert [str(problem) for problem in asyncio.run(go())] == ["no system message"] * 3


@given(st.text(max_size=200) | st.text(alphabet=" owlanmvthe,", max_size=400))
def test_no_text_has_fewer_tokens_than_the_bound(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert fewest_tokens([text], longest_token(TOKENIZER)) <= len(encoder(TOKENIZER)(text))


def byte_level(**changes: Any) -> PreTrainedTokenizerFast:
    changed = tokenizers.Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str())
    for name, value in changes.items():
        setattr(changed, name, value)
    return PreTrainedTokenizerFast(tokenizer_object=changed)


def test_the_bound_is_the_longest_token_where_every_character_counts() -> None:
    vocabulary = json.loads(TOKENIZER.backend_tokenizer.to_str())["model"]["vocab"]
    assert longest_token(TOKENIZER) == max(map(len, [*vocabulary, "<extra_id_0>"]))
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    assert longest_token(byte_level(pre_tokenizer=digits)) == longest_token(TOKENIZER)


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level(normalizer=normalizers.BertNormalizer()),
        byte_level(normalizer=normalizers.Replace(" ", "")),
        byte_level(pre_tokenizer=pre_tokenizers.Whitespace()),
        byte_level(
            pre_tokenizer=pre_tokenizers.Sequence(
                [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        ),
        byte_level(pre_tokenizer=None),
        PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))),
        PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(models.Unigram([("a", 0.0)], 0))),
    ],
)
def test_there_is_no_bound_where_a_tokenizer_may_drop_or_join(tokenizer: PreTrainedTokenizerFast) -> None:
    assert longest_token(tokenizer) is None
    assert fewest_tokens(["x" * 10**6], None) == 0


def test_an_added_token_that_takes_spaces_along_leaves_no_bound() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    assert longest_token(tokenizer) is None


def test_a_conversation_that_the_template_refuses_is_no_matter_of_length() -> None:
    assert refused(Unrenderable("no tables"), SHORT, 0).code == "invalid_messages"
