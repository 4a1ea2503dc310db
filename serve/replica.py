"""A copy of the policy on a Ray Serve replica: jobs in, text as it is written out.

Knows no HTTP and no profiles. Imports the weights' libraries only where the replica starts, so that the ingress stays free of them.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import ray.serve

from serve.text import Answer
from serve.wire import Card, Delta, Event, Failed, Job, Started

if TYPE_CHECKING:
    from actors.generator import Step

logger = logging.getLogger("ray.serve")

ENGINE_CHECK_S = 5.0
"""How often a waiting job looks whether the engine still lives."""

ENGINE_FAILED = "the policy failed while it worked on this request: send it again"


class Replica:
    """One policy and one engine. `ReplicaDeployment` is the same for Ray Serve."""

    def __init__(self, policy: str, name: str, dtype: str, max_slots: int, max_new_tokens: int):
        from actors.generator import Sampling, TransformersEngine
        from actors.policy import Policy

        self._sampling = Sampling
        self._policy = Policy.load(policy, dtype)
        self._engine = TransformersEngine(self._policy, max_slots)
        self._max_new_tokens = max_new_tokens
        self._card = Card(name=name, schema_json=self._policy.schema.model_dump_json(), context_tokens=self._policy.max_tokens)

    async def card(self) -> Card:
        return self._card

    async def num_running(self) -> int:
        """Answers that are being written right now."""
        return self._engine.num_running

    async def check_health(self) -> None:
        """Raises if the engine is dead; Ray Serve then starts another replica."""
        if self._engine.error is not None:
            raise RuntimeError(f"the engine died: {self._engine.error}")

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """Started, then text as it settles; closing the generator frees the slot."""
        steps: asyncio.Queue[Step] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(step: "Step") -> None:
            loop.call_soon_threadsafe(steps.put_nowait, step)

        try:
            prompt_ids = self._policy.prompt(job.system, job.messages, job.attributes, job.labels)
            sampling = self._sampling(
                max_tokens=self._room(len(prompt_ids), job.max_tokens),
                temperature=job.temperature,
                top_p=job.top_p,
                top_k=job.top_k,
                seed=None if job.seed is None else job.seed % 2**64,  # numpy takes no negative ones
            )
            request = self._engine.submit(prompt_ids, sampling, tell)
        except ValueError as problem:
            yield Failed(str(problem), 400, "messages", "context_length_exceeded")
            return
        except RuntimeError as problem:
            logger.error("a job was not taken: %s", problem)
            yield Failed(ENGINE_FAILED, 503, code="engine_failed")
            return
        try:
            yield Started(len(prompt_ids))
            async for event in self._text(steps, Answer(self._policy.decode, job.stop)):
                yield event
        finally:
            self._engine.cancel(request)

    async def _text(self, steps: "asyncio.Queue[Step]", answer: Answer) -> AsyncGenerator[Event, None]:
        num_tokens = 0
        while True:
            text = ""
            for step in await self._arrived(steps):
                if step.finish in ("error", "cancelled"):
                    logger.error("a job ended with %s; engine: %s", step.finish, self._engine.error or "alive")
                    yield Failed(ENGINE_FAILED, 503, code="engine_failed")
                    return
                num_tokens += len(step.token_ids)
                text += answer.push(step.token_ids, last=step.finish is not None)
                if answer.stopped or step.finish is not None:
                    yield Delta(text, num_tokens, "length" if step.finish == "length" and not answer.stopped else "stop")
                    return
            if text:
                yield Delta(text, num_tokens)

    async def _arrived(self, steps: "asyncio.Queue[Step]") -> "list[Step]":
        """At least one step, and all that have come meanwhile: sending them together costs one message, not many."""
        while True:
            try:
                arrived = [await asyncio.wait_for(steps.get(), ENGINE_CHECK_S)]
                break
            except TimeoutError:
                await self.check_health()
        while not steps.empty():
            arrived.append(steps.get_nowait())
        return arrived

    def _room(self, prompt_tokens: int, asked: int | None) -> int:
        """Tokens an answer may have; what is asked for must fit (the engine refuses it else), what is not is cut to the context."""
        room = self._policy.max_tokens - prompt_tokens
        if room < 1:
            raise ValueError(
                f"the conversation has {prompt_tokens} tokens, the policy's context {self._policy.max_tokens}, and the answer needs room: shorten messages"
            )
        return min(self._max_new_tokens, room) if asked is None else asked


ReplicaDeployment = ray.serve.deployment(Replica)
