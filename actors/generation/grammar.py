"""Structured output by xgrammar, as vLLM has it: which tokens an answer may go on with. Knows no engine.

xgrammar is imported with the first grammar.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from actors.generation.grammar_check import enforceable, one_line
from actors.generation.protocol import Grammar
from data.errors import UserError

if TYPE_CHECKING:
    import xgrammar

COMPILE_S = 20.0
"""What takes longer is refused: usual schemas take milliseconds."""
COMPILING_THREADS = 2
CACHE_BYTES = 256 * 2**20
"""Of compiled grammars, the least recently used go first."""
MAX_WHITESPACE = 12
"""Blanks in one place of a JSON text: a model that likes them would write nothing else until max_tokens."""


class GrammarCompiler:
    """Compiles grammars for one tokenizer, in threads of its own. xgrammar holds no lock of Python's meanwhile."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_tokens: int, stop_ids: Collection[int]):
        """`num_tokens`: entries of the model's vocabulary; `stop_ids` end an answer, where the grammar lets it end."""
        self._tokenizer, self._num_tokens, self._stop_ids = tokenizer, num_tokens, sorted(stop_ids)
        self._pool = ThreadPoolExecutor(COMPILING_THREADS, "grammar")
        # Ours, because a look into xgrammar's own has to wait for a thread that compiles.
        self._compiled: OrderedDict[Grammar, xgrammar.CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()
        # Control tokens are no text: their names must not stand for characters.
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - set(stop_ids)
        self._plain_V = torch.ones(num_tokens, dtype=torch.bool)
        self._plain_V[[i for i in special if i < num_tokens]] = False

    def compile(self, grammar: Grammar) -> "xgrammar.CompiledGrammar":
        """From the cache if it is there. Raises UserError, in one sentence, if `grammar` cannot be followed."""
        name, grammar = grammar.kind.replace("_", " "), enforceable(grammar)
        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar]
        compiling = self._pool.submit(self._compile, grammar)
        try:
            return compiling.result(COMPILE_S)
        except TimeoutError:
            if compiling.cancel():  # it never began
                raise UserError(f"the {name} waits for others to be compiled: send it again in a minute") from None
            raise UserError(f"the {name} takes longer than {COMPILE_S:g} s to compile: simplify it") from None
        except RuntimeError as error:
            raise UserError(f"the {name} cannot be compiled: {one_line(error)}") from None

    def state(self, compiled: "xgrammar.CompiledGrammar") -> "GrammarState":
        """Of an answer without a token."""
        import xgrammar

        bits_1W = xgrammar.allocate_token_bitmask(1, self._num_tokens)
        return GrammarState(xgrammar.GrammarMatcher(compiled), bits_1W, self._plain_V)

    def _compile(self, grammar: Grammar) -> "xgrammar.CompiledGrammar":
        made = self._made(grammar)
        with self._lock:
            self._compiled[grammar] = made
            while len(self._compiled) > 1 and sum(g.memory_size_bytes for g in self._compiled.values()) > CACHE_BYTES:
                self._compiled.popitem(last=False)
        return made

    def _made(self, grammar: Grammar) -> "xgrammar.CompiledGrammar":
        compiler = self._compiler
        match grammar.kind:
            case "json_object":
                return compiler.compile_json_schema('{"type": "object"}', max_whitespace_cnt=MAX_WHITESPACE)
            case "json_schema":
                return compiler.compile_json_schema(grammar.text, max_whitespace_cnt=MAX_WHITESPACE)
            case "regex":
                return compiler.compile_regex(grammar.text)
            case "ebnf":
                return compiler.compile_grammar(grammar.text)
            case "structural_tag":
                return compiler.compile_structural_tag(grammar.text)

    @cached_property
    def _compiler(self) -> "xgrammar.GrammarCompiler":
        """Made with the first grammar: the vocabulary takes a tenth of a second, and memory."""
        import xgrammar

        vocabulary = xgrammar.TokenizerInfo.from_huggingface(
            self._tokenizer, vocab_size=self._num_tokens, stop_token_ids=self._stop_ids
        )
        return xgrammar.GrammarCompiler(vocabulary, max_threads=1, cache_enabled=False)


class GrammarState:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: "xgrammar.GrammarMatcher", bits_1W: torch.Tensor, plain_V: torch.Tensor):
        """`bits_1W`: xgrammar's own mask, 32 tokens a word; `plain_V`: tokens that are text or end an answer."""
        self._matcher, self._bits_1W, self._plain_V = matcher, bits_1W, plain_V
        self._places_32 = torch.arange(32, dtype=torch.int32)

    def allowed(self) -> torch.Tensor:
        """Which tokens may come next, bool [V] on the CPU. None at all where the vocabulary lacks a character."""
        self._matcher.fill_next_token_bitmask(self._bits_1W)
        bits_V = (self._bits_1W[0, :, None] >> self._places_32 & 1).flatten()[: len(self._plain_V)]
        return bits_V.bool() & self._plain_V

    def accept(self, token: int) -> None:
        """The answer goes on with `token`, one of those that were allowed."""
        accepted = self._matcher.accept_token(token)
        assert accepted, f"the grammar refuses token {token}, which it has just allowed"
