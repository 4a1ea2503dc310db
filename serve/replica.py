"""A copy of the policy on a Ray Serve replica: jobs in, text as it is written out.

Knows no HTTP and no profiles. Imports the weights' libraries only where the replica starts, so that the ingress stays free of them.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray.serve

from data.errors import UserError
from serve.detokenizer import Answer
from serve.request import Card, Delta, Event, Failed, Job, Revision, Started
from serve.settings import EngineSettings
from serve.telemetry import EngineMetrics
from serve.token_stream import Pace, TokenStream

if TYPE_CHECKING:
    from actors.generation.protocol import Engine
    from actors.modeling.policy import PolicyText

logger = logging.getLogger("ray.serve")

TELL_S = 5.0
"""How often the engine's metrics are told."""
PROGRESS_S = 1.0
"""How often a job that does not stream says how many tokens it has written: what its team is charged if the caller leaves."""
RETIRE_LOOK_S = 0.2
"""How often an engine that was replaced is looked at: is its last answer written?"""

ENGINE_FAILED = "the policy failed while it worked on this request: send it again"


@dataclass(frozen=True)
class _Loaded:
    """A policy and the engine that runs it."""

    text: "PolicyText"
    engine: "Engine"
    revision: Revision


class Replica:
    """One policy and one engine."""

    def __init__(self, name: str, revision: Revision, settings: EngineSettings, max_new_tokens: int):
        from actors.generation.protocol import Sampling

        self._sampling = Sampling
        self._name, self._settings, self._max_new_tokens = name, settings, max_new_tokens
        self._loaded = self._load(revision)
        self._pace = Pace(settings.stream_every_s)
        self._swapping = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._metrics: EngineMetrics | None = None

    async def card(self) -> Card:
        text = self._loaded.text
        return Card(
            name=self._name,
            schema_json=text.schema.model_dump_json(),
            context_tokens=text.max_tokens,
            policy=self._loaded.revision.policy,
        )

    async def num_running(self) -> int:
        """Answers that are being written right now."""
        return self._loaded.engine.load.running

    async def check_health(self) -> None:
        """Raises if the engine is dead; Ray Serve then starts another replica."""
        if self._metrics is None:  # here, because Ray Serve calls it in the replica's own loop, and often
            self._metrics = EngineMetrics(self._name)
            self._start(self._tell())
        error = self._loaded.engine.error
        if error is not None:
            raise RuntimeError(f"the engine died: {error}")

    async def swap(self, revision: Revision) -> Card:
        """Answer new jobs from another checkpoint; those that run end on the old one. Raises UserError if it is no policy with the same schema."""
        async with self._swapping:
            old = self._loaded
            if revision.policy == old.revision.policy:
                self._loaded = replace(old, revision=max(old.revision, revision, key=lambda r: r.number))
            elif revision.number > old.revision.number:
                new = await asyncio.to_thread(self._load, revision)
                try:
                    old.text.schema.require_same(
                        new.text.schema, f"model {self._name!r}", f"the policy at {revision.policy}"
                    )
                except UserError:
                    new.engine.close()
                    raise
                self._loaded = new
                self._start(self._retire(old))
                logger.info("model %s now answers from %s", self._name, revision.policy)
        return await self.card()

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """Started, then text; closing the generator frees the slot."""
        self._catch_up(job.revision)
        steps, loaded = TokenStream(self._pace), self._loaded
        try:
            prompt_ids = loaded.text.prompt(job.system, job.messages, job.attributes, job.labels)
            sampling = self._sampling(
                max_tokens=self._room(loaded.text.max_tokens, len(prompt_ids), job.max_tokens),
                temperature=job.temperature,
                top_p=job.top_p,
                top_k=job.top_k,
                seed=None if job.seed is None else job.seed % 2**63,  # no sampler takes negative ones
            )
            request = loaded.engine.submit(prompt_ids, sampling, steps)
        except UserError as problem:
            yield Failed(str(problem), 400, "messages", "context_length_exceeded")
            return
        except RuntimeError as problem:
            logger.error("a job was not taken: %s", problem)
            self._failed(loaded)
            yield Failed(ENGINE_FAILED, 503, code="engine_failed")
            return
        try:
            yield Started(len(prompt_ids))
            with self._pace.stream() if job.stream else nullcontext():
                async for event in self._text(steps, Answer(loaded.text.decode, job.stop), loaded, job.stream):
                    yield event
        finally:
            loaded.engine.cancel(request)

    async def _text(
        self, steps: TokenStream, answer: Answer, loaded: _Loaded, stream: bool
    ) -> AsyncGenerator[Event, None]:
        """Text as it settles; without `stream` all of it at the end, and every so often how many tokens there are."""
        num_tokens, text, told_s = 0, "", time.monotonic()
        while True:
            for step in await steps.take(loaded.engine):
                if step.finish in ("error", "cancelled"):
                    logger.error("a job ended with %s; engine: %s", step.finish, loaded.engine.error or "alive")
                    self._failed(loaded)
                    yield Failed(ENGINE_FAILED, 503, code="engine_failed")
                    return
                num_tokens += len(step.token_ids)
                text += answer.push(step.token_ids, last=step.finish is not None)
                if answer.stopped or step.finish is not None:
                    yield Delta(
                        text, num_tokens, "length" if step.finish == "length" and not answer.stopped else "stop"
                    )
                    return
            if stream and text:
                yield Delta(text, num_tokens)
                text = ""
            elif not stream and time.monotonic() - told_s > PROGRESS_S:
                yield Delta("", num_tokens)
                told_s = time.monotonic()

    def _failed(self, loaded: _Loaded) -> None:
        """A job failed on this engine."""

    def _load(self, revision: Revision) -> _Loaded:
        from actors.generation.factory import load_engine

        own = self._settings
        text, engine = load_engine(
            own.kind, revision.policy, own.dtype, own.max_num_seqs, own.prefix_cache_tokens, own.gpu_memory_share
        )
        return _Loaded(text, engine, revision)

    def _catch_up(self, wanted: Revision | None) -> None:
        """A replica that came up after a swap was told of it by nobody; the first job does."""
        if wanted is not None and wanted.number > self._loaded.revision.number and not self._swapping.locked():
            self._start(self._swap_quietly(wanted))

    async def _swap_quietly(self, wanted: Revision) -> None:
        try:
            await self.swap(wanted)
        except (UserError, OSError) as problem:
            logger.error("model %s stays at %s: %s", self._name, self._loaded.revision.policy, problem)

    async def _retire(self, old: _Loaded) -> None:
        while old.engine.error is None and (old.engine.load.running or old.engine.load.waiting):
            await asyncio.sleep(RETIRE_LOOK_S)
        await asyncio.to_thread(old.engine.close)

    async def _tell(self) -> None:
        assert self._metrics is not None
        while True:
            load = self._loaded.engine.load
            self._metrics.log_event(
                load.running,
                load.waiting,
                prefilled=load.prefilled_tokens,
                reused=load.reused_tokens,
                generated=load.generated_tokens,
            )
            await asyncio.sleep(TELL_S)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself forgets a task that nobody holds
        task.add_done_callback(self._tasks.discard)

    def _room(self, context: int, prompt_tokens: int, asked: int | None) -> int:
        """Tokens an answer may have; what is asked for must fit (the engine refuses it else), what is not is cut to the context."""
        room = context - prompt_tokens
        if room < 1:
            raise UserError(
                f"the conversation has {prompt_tokens} tokens, the policy's context {context}, and the answer needs room: shorten messages"
            )
        return min(self._max_new_tokens, room) if asked is None else asked


class ServedReplica(Replica):
    """The replica in a process of its own, which ends with its engine.

    A replica that only fails its jobs is the fastest of all, so the router sends it the jobs of the others too, until the health check has
    failed three times. One that is gone loses nothing: what had not yet begun to answer is sent to another one, and Serve starts a new one.
    """

    def _failed(self, loaded: _Loaded) -> None:
        if loaded is self._loaded and loaded.engine.error is not None:
            logger.error("the engine died, and the replica with it: %s", loaded.engine.error)
            os._exit(1)


ReplicaDeployment = ray.serve.deployment(ServedReplica)
