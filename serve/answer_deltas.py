"""An engine's steps in, what a caller may see of them out: text, tokens with their log-probabilities, the prompt.

Knows no engine, no Ray and no HTTP.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from actors.generation.protocol import GenerationStep, TokenLogprob
from serve.detokenizer import AnswerText
from serve.logprobs import ReportedToken, TokenReporter
from serve.request import Delta, Echo, Finish, GenerationRequest

if TYPE_CHECKING:
    from actors.modeling.policy import PolicyText

CONTEXT_IDS = 4
"""Last ids of an answer's beginning: a tokenizer may write the next one without its space where it stands first."""


class AnswerDeltas:
    """One answer as it grows."""

    def __init__(self, request: GenerationRequest, prompt_ids: Sequence[int], text: "PolicyText"):
        self._request, self._prompt_ids, self._decode = request, prompt_ids, text.decode
        self._is_raw = request.prompt is not None
        context = prompt_ids[-CONTEXT_IDS:] if self._is_raw or request.begun else ()
        self._answer = AnswerText(text.decode, request.stop, context, trimmed=not self._is_raw)
        self._reporter = None if request.sampling.logprobs is None else TokenReporter(text.name_of, text.decode)
        self._text, self._tokens = "", list[ReportedToken]()
        self._echo: Echo | None = None
        self._has_echoed = not request.echo
        self._num_tokens = 0

    def push(self, step: GenerationStep) -> Finish | None:
        """How the answer ended, if it did with this step, which is none of the failures."""
        if not self._has_echoed:
            self._echo, self._has_echoed = self._repeated(step.prompt_logprobs or ()), True
        last = step.finish is not None
        self._num_tokens += len(step.token_ids)
        self._text += self._answer.push(step.token_ids, last=last)
        if self._reporter is not None:
            self._tokens += self._reporter.push(step.token_ids, step.logprobs or (), last)
            if self._is_raw and step.end_id is not None:
                self._tokens += self._reporter.push([step.end_id], [step.end_logprob], last=True)
        if self._answer.stopped:
            return "stop"
        return None if not last else "length" if step.finish == "length" else "stop"

    @property
    def is_empty(self) -> bool:
        """Is there nothing to see since the last `take`?"""
        return not self._text and not self._tokens and self._echo is None

    @property
    def num_tokens(self) -> int:
        """Of the answer so far."""
        return self._num_tokens

    def take(self, finish: Finish | None = None) -> Delta:
        """All that is new."""
        delta = Delta(self._text, self._num_tokens, finish, tuple(self._tokens), self._echo)
        self._text, self._tokens, self._echo = "", [], None
        return delta

    def _repeated(self, logprobs: Sequence[TokenLogprob | None]) -> Echo:
        prompt = self._request.prompt
        text = prompt if isinstance(prompt, str) else self._decode(list(self._prompt_ids))
        tokens = () if self._reporter is None else tuple(self._reporter.push(self._prompt_ids, logprobs))
        return Echo(text, tokens)
