"""What callers send to POST /v1/completions, OpenAI's older route: raw prompts, and how to go on with them.

Knows no JSON, no HTTP server, no Ray and no model.
"""

from typing import Any

from pydantic import Field, model_validator

from actors.generation.protocol import MAX_LOGPROBS
from serve.protocol import ProtocolError
from serve.sampling_fields import SamplingFields

MAX_PROMPTS = 64
"""Of one request; each has answers of its own."""
PROMPT = "a text, a list of texts, a list of token ids, or a list of such lists"
DEFAULT_TOKENS = 16
"""OpenAI's, of an answer to a raw prompt."""


class CompletionRequest(SamplingFields):
    """Body of POST /v1/completions: no template, so no attributes, no profile and no score."""

    prompt: Any = None
    """A text or token ids, or a list of some; the policy goes on with each as it is."""
    max_tokens: int = Field(DEFAULT_TOKENS, ge=0)
    """Longest answer; 0 = the prompt alone, with echo."""
    echo: bool = False
    """Return the prompt before the answer?"""
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    """Return how likely each token was (with echo also the prompt's), with so many likeliest ones in its place."""
    add_special_tokens: bool = True
    """Put before a text what the tokenizer puts first of its own accord?"""
    guidance_from: Any = None
    """With guidance: the prompt that the answers are led away from, as text or token ids."""
    best_of: int | None = Field(None, ge=1)
    """Must be n: all answers are returned."""

    @model_validator(mode="after")
    def _consistent(self) -> "CompletionRequest":
        prompts_of(self.prompt)
        if self.guidance != 1 or self.guidance_from is not None:
            _ = self.unguided_prompt
        if not self.max_tokens and not self.echo:
            raise ProtocolError("max_tokens is 0, which is only allowed with echo: true", "max_tokens")
        if self.best_of not in (None, self.n):
            wrong = f"best_of is {self.best_of} and n is {self.n}"
            raise ProtocolError(f"{wrong}: all answers are returned here, so leave best_of out", "best_of")
        return self

    @property
    def unguided_prompt(self) -> str | tuple[int, ...]:
        """What the answers are led away from. Raises ProtocolError unless it is one prompt."""
        if self.guidance_from is None or isinstance(self.guidance_from, list | str):
            found = prompts_of(self.guidance_from) if self.guidance_from else []
            if len(found) == 1 and not (isinstance(self.guidance_from, list) and isinstance(found[0], str)):
                return found[0]
        wrong = f"guidance_from is {_kind(self.guidance_from)}"
        allowed = "a text or a list of token ids: the prompt that guidance leads away from"
        raise ProtocolError(f"{wrong}; allowed with guidance: {allowed}", "guidance_from")

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """Each of them."""
        return prompts_of(self.prompt)


def prompts_of(prompt: object) -> list[str | tuple[int, ...]]:
    """Each prompt of a request, as text or as token ids. Raises ProtocolError for what is none."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise ProtocolError(f"prompt is {_kind(prompt)}: it must be {PROMPT}, not empty", "prompt")
    if _is_id(prompt[0]):
        for place, item in enumerate(prompt):
            if not _is_id(item):
                raise ProtocolError(f"prompt[{place}] is {_kind(item)}: prompt must be {PROMPT}", f"prompt[{place}]")
        return [tuple(prompt)]
    if len(prompt) > MAX_PROMPTS:
        raise ProtocolError(f"prompt has {len(prompt)} texts: at most {MAX_PROMPTS} are allowed", "prompt")
    return [_prompt(item, f"prompt[{place}]", type(prompt[0])) for place, item in enumerate(prompt)]


def _prompt(item: object, where: str, kind: type) -> str | tuple[int, ...]:
    """`kind`: of the first item, which all others must be."""
    if type(item) is kind:
        if isinstance(item, str):
            return item
        if isinstance(item, list) and item and all(_is_id(i) for i in item):
            return tuple(item)
    raise ProtocolError(f"{where} is {_kind(item)}: prompt must be {PROMPT}, not empty", where)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: object) -> str:
    if value is None:
        return "missing"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    names = {dict: "an object", bool: "true or false", int: "a number", float: "a number", str: "a text"}
    return names.get(type(value), "no such value")
