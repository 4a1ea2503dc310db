"""A request's prompt as token ids, without holding up the replica: long prompts are tokenized in a thread.

A prompt that cannot fit is refused by its characters, before it is tokenized. Knows no engine and no HTTP.
"""

import asyncio
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.errors import UserError
from serve.request import GenerationRequest

if TYPE_CHECKING:
    from actors.modeling.policy import PolicyText

INLINE_CHARS = 4096
"""Shorter prompts are tokenized at once: some milliseconds, and nothing to wait for."""
MESSAGE_CHARS = 64
"""What a message costs beyond its text, in characters."""


@dataclass
class _Running:
    """A prompt that is being tokenized."""

    ids: asyncio.Future[list[int]]
    num_waiting: int = 0


class Prompts:
    """The prompts of one policy."""

    def __init__(self, text: "PolicyText", context: int):
        """`context`: most tokens of prompt and answer together."""
        from actors.generation.prompt_length import longest_token

        self._text, self._context = text, context
        self._longest = longest_token(text.tokenizer)
        self._thread = ThreadPoolExecutor(1, "tokenizer")
        self._running: dict[Hashable, _Running] = {}

    async def ids(self, request: GenerationRequest) -> list[int]:
        """Raises UserError if the prompt cannot fit, or if the template refuses the conversation."""
        if isinstance(request.prompt, tuple):
            return list(request.prompt)
        self._require_possible(request)
        if sum(map(len, request.texts)) + MESSAGE_CHARS * len(request.messages) <= INLINE_CHARS:
            return self._tokenized(request)
        return await self._shared(request)

    def close(self) -> None:
        """What waits is still tokenized."""
        self._thread.shutdown(wait=False)

    def _require_possible(self, request: GenerationRequest) -> None:
        from actors.generation.prompt_length import fewest_tokens

        fewest = fewest_tokens(request.texts[1:], self._longest)
        if fewest >= self._context:
            sizes = f"{request.input_name} has at least {fewest} tokens, the policy's context {self._context}"
            raise UserError(f"{sizes}, and the answer needs room: shorten {request.input_field}")

    def _tokenized(self, request: GenerationRequest) -> list[int]:
        if isinstance(request.prompt, str):
            return self._text.raw_prompt(request.prompt, request.special_tokens)
        if request.tool_chat is not None:
            return self._text.tool_prompt(request.system, request.tool_chat, request.attributes, request.labels)
        return self._text.prompt(request.system, request.messages, request.attributes, request.labels)

    async def _shared(self, request: GenerationRequest) -> list[int]:
        """The candidates of one request arrive together and have one prompt: it is tokenized once.

        When nobody waits for it any more, it is not begun.
        """
        key = (
            request.prompt,
            request.special_tokens,
            request.system,
            request.messages,
            request.tool_chat,
            repr((request.attributes, request.labels)),
        )
        if key not in self._running:
            loop = asyncio.get_running_loop()
            self._running[key] = _Running(loop.run_in_executor(self._thread, self._tokenized, request))
        running = self._running[key]
        running.num_waiting += 1
        try:
            return await asyncio.shield(running.ids)
        finally:
            running.num_waiting -= 1
            if not running.num_waiting:
                del self._running[key]
                running.ids.cancel()
