import json
import threading

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from actors.generation import grammar as module
from actors.generation.grammar import GrammarCompiler
from actors.generation.protocol import Grammar
from actors.modeling.policy import PolicyText

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "yes"]}}, "required": ["a"]}


@pytest.fixture(scope="module")
def text(wide_policy: str) -> PolicyText:
    return PolicyText.load(wide_policy)


@pytest.fixture(scope="module")
def tokenizer(text: PolicyText) -> PreTrainedTokenizerBase:
    return text.tokenizer


@pytest.fixture
def compiler(text: PolicyText) -> GrammarCompiler:
    return GrammarCompiler(text.tokenizer, 640, text.stop_ids)


def test_only_what_the_grammar_goes_on_with_is_allowed(compiler: GrammarCompiler, text: PolicyText) -> None:
    state = compiler.state(compiler.compile(Grammar("regex", "ab|ac")))
    pieces = {text.tokenizer.decode([i]) for i in state.allowed().nonzero()[:, 0].tolist()}
    assert pieces <= {"a", "ab", "ac"}
    assert "a" in pieces
    [first] = text.tokenizer.encode("a", add_special_tokens=False)
    state.accept(first)
    assert {text.tokenizer.decode([i]) for i in state.allowed().nonzero()[:, 0].tolist()} == {"b", "c"}


def test_an_answer_ends_where_the_grammar_does_and_nowhere_else(compiler: GrammarCompiler, text: PolicyText) -> None:
    state = compiler.state(compiler.compile(Grammar("json_schema", json.dumps(SCHEMA))))
    stops = sorted(text.stop_ids)
    for token in text.tokenizer.encode('{"a": "yes"}', add_special_tokens=False):
        allowed_V = state.allowed()
        assert not allowed_V[stops].any()
        assert allowed_V[token]
        state.accept(token)
    assert state.allowed().nonzero()[:, 0].tolist() == stops


@pytest.mark.parametrize("bound", [{"maxLength": 4}, {"minLength": 2}, {"minLength": 2, "maxLength": 4}, {}])
def test_a_string_holds_no_control_characters_and_its_length(
    compiler: GrammarCompiler, text: PolicyText, bound: dict[str, int]
) -> None:
    compiled = compiler.compile(Grammar("json_schema", json.dumps({"type": ["string", "null"], **bound})))

    def accepts(answer: str) -> bool:
        state, stops = compiler.state(compiled), sorted(text.stop_ids)
        for token in text.tokenizer.encode(answer, add_special_tokens=False):
            if not state.allowed()[token]:
                return False
            state.accept(token)
        return bool(state.allowed()[stops].all())

    assert not any(accepts(f'"a{character}b"') for character in ("\t", "\n", "\x05", "\r", "\x00"))
    assert accepts('"abé"')
    assert accepts("null")
    assert not accepts('"a"') or "minLength" not in bound
    assert not accepts('"abcde"') or "maxLength" not in bound


def test_control_tokens_and_padding_are_no_text(compiler: GrammarCompiler, text: PolicyText) -> None:
    """A string of JSON may hold any character, but no token that is left out when it is shown."""
    allowed_V = compiler.state(compiler.compile(Grammar("regex", "(.|\n)+"))).allowed()
    special = {i for i, token in text.tokenizer.added_tokens_decoder.items() if token.special}
    assert special
    assert not allowed_V[sorted(special)].any()
    assert not allowed_V[len(text.tokenizer) :].any()
    assert allowed_V.sum() > 500


def test_a_grammar_is_compiled_once_and_two_answers_do_not_mix(compiler: GrammarCompiler, text: PolicyText) -> None:
    one = compiler.compile(Grammar("regex", "[ab]+"))
    other = compiler.compile(Grammar("regex", "[ab]+"))
    assert one is other
    first, second = compiler.state(one), compiler.state(other)
    stops, [a] = sorted(text.stop_ids), text.tokenizer.encode("a", add_special_tokens=False)
    first.accept(a)
    assert bool(first.allowed()[stops].all())
    assert not second.allowed()[stops].any()


def test_compiled_grammars_have_a_bound(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    size = compiler.compile(Grammar("regex", "[ab]{1,50}")).memory_size_bytes
    monkeypatch.setattr(module, "CACHE_BYTES", 3 * size)
    for last in "cdefgh":
        compiler.compile(Grammar("regex", f"[a{last}]{{1,50}}"))
    assert 1 <= len(compiler._compiled) <= 4
    assert Grammar("regex", "[ah]{1,50}") in compiler._compiled


def test_what_takes_too_long_is_refused_and_keeps_nobody_from_what_is_compiled(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = compiler.compile(Grammar("regex", "[ab]+"))
    monkeypatch.setattr(module, "COMPILE_S", 0.05)
    released = threading.Event()
    monkeypatch.setattr(compiler, "_made", lambda grammar: released.wait(20))
    for _ in range(module.COMPILING_THREADS):
        with pytest.raises(ValueError, match=r"the regex takes longer than 0\.05 s to compile: simplify it"):
            compiler.compile(Grammar("regex", "a"))
    with pytest.raises(ValueError, match="the regex waits for others to be compiled: send it again in a minute"):
        compiler.compile(Grammar("regex", "a"))
    assert compiler.compile(Grammar("regex", "[ab]+")) is known
    released.set()


def test_a_vocabulary_without_the_character_allows_nothing() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"a": 0, "b": 1, "[END]": 2}, unk_token="[END]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="[END]")
    compiler = GrammarCompiler(tokenizer, 3, {2})
    state = compiler.state(compiler.compile(Grammar("regex", "az")))
    assert state.allowed().tolist() == [True, False, False]
    state.accept(0)
    assert not state.allowed().any()
    assert state.allowed().dtype == torch.bool
