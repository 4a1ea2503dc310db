"""A copy of the policy on a Ray Serve replica: generation requests in, text out as it is written.

Knows no HTTP and no profiles. Imports torch and transformers only when the replica starts: the ingress has neither.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import ray.serve

from actors.generation.protocol import Engine, Sampling
from data.errors import UserError
from serve.answer_deltas import AnswerDeltas
from serve.engine_request import out_of_memory, refused, sampling_of, submitted
from serve.prompts import Prompts
from serve.request import Delta, Event, Failed, GenerationRequest, PolicyInfo, Revision, Started, Tokenized
from serve.revisions import wanted
from serve.settings import ServedEngineSettings
from serve.telemetry import EngineMetrics
from serve.token_stream import Pace, TokenStream
from serve.tools import MARKERS, ToolFormat, format_of

if TYPE_CHECKING:
    from actors.modeling.policy import PolicyText

logger = logging.getLogger("ray.serve")

METRICS_S = 5.0
"""How often the engine's metrics are updated."""
PROGRESS_S = 1.0
"""How often a request without stream reports its tokens: what its team is charged if the caller leaves."""
RETIRE_CHECK_S = 0.2
"""How often a replaced engine is checked: is its last answer written?"""
ENGINE_FAILED = Failed("the policy failed while it worked on this request: send it again", 503, code="engine_failed")


@dataclass(frozen=True)
class _Running:
    """A request in the engine."""

    loaded: "_Loaded"
    """The policy that answers."""
    prompt_ids: list[int]
    sampling: Sampling
    number: int


@dataclass(frozen=True)
class _Loaded:
    """A policy and the engine that runs it."""

    text: "PolicyText"
    prompts: Prompts
    engine: Engine
    revision: Revision
    since: int = field(default_factory=lambda: int(time.time()))
    """Unix time, s: when it was loaded, whenever an ingress asks."""


def tool_format(text: "PolicyText") -> ToolFormat | None:
    """How the policy writes calls of tools; None = its chat template has none, or decoding leaves their mark out."""
    form = format_of(text.tools_template)
    mark = MARKERS[form] if form else ""
    ids = text.tokenizer.encode(mark, add_special_tokens=False) if mark else []
    return form if text.decode(ids).strip() == mark else None


class Replica:
    """One policy and one engine."""

    def __init__(self, name: str, revision: Revision, settings: ServedEngineSettings):
        self._name, self._settings = name, settings
        self._loaded = self._load(revision)
        self._pace = Pace(settings.stream_every_s)
        self._swapping = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._metrics: EngineMetrics | None = None

    async def info(self) -> PolicyInfo:
        format, engine = self._loaded.text.format, self._loaded.engine
        records = (record.model_dump_json() for record in (format.schema, format.calibration, format.text_rater))
        schema, calibration, text_rater = records
        return PolicyInfo(
            self._name,
            schema,
            self._loaded.revision.policy,
            calibration,
            text_rater,
            self._loaded.since,
            tool_format(self._loaded.text),
            engine.no_guidance,
            context=engine.context,
        )

    async def num_running(self) -> int:
        """Answers that are being written right now."""
        return self._loaded.engine.load.running

    async def check_health(self) -> None:
        """Raises if the engine is dead; Ray Serve then starts another replica."""
        if self._metrics is None:  # here, because Ray Serve calls it in the replica's own loop, and often
            self._metrics = EngineMetrics(self._name)
            self._start(self._update_metrics())
        error = self._loaded.engine.error
        if error is not None:
            raise RuntimeError(f"the engine died: {error}")

    async def swap(self, revision: Revision) -> PolicyInfo:
        """Answer new requests from another checkpoint; running ones end on the old one.

        Raises UserError if it is no policy with the same schema.
        """
        async with self._swapping:
            old = self._loaded
            if revision.policy == old.revision.policy:
                self._loaded = replace(old, revision=max(old.revision, revision, key=lambda r: r.number))
            elif revision.number > old.revision.number:
                new = await asyncio.to_thread(self._load, revision)
                ours, theirs = f"model {self._name!r}", f"the policy at {revision.policy}"
                try:
                    old.text.schema.require_same(new.text.schema, ours, theirs)
                except UserError:
                    new.engine.close()
                    raise
                self._loaded = new
                self._start(self._retire(old))
                logger.info("model %s now answers from %s", self._name, revision.policy)
        return await self.info()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Started, then text; closing the generator cancels the request in the engine."""
        self._catch_up(request.revision)
        steps = TokenStream(self._pace)
        counted: list[int] = []
        try:
            running = await self._submitted(request, steps, counted)
        except UserError as problem:
            yield refused(problem, request, len(counted))
            return
        except RuntimeError as problem:
            logger.error("a request was not taken: %s", problem)
            self._failed(self._loaded)
            yield ENGINE_FAILED
            return
        loaded = running.loaded
        try:
            yield Started(len(running.prompt_ids), len(running.sampling.unguided_ids))
            with self._pace.stream() if request.stream else nullcontext():
                answer = AnswerDeltas(request, running.prompt_ids, loaded.text)
                async for event in self._deltas(steps, answer, loaded, request):
                    yield event
        finally:
            loaded.engine.cancel(running.number)

    async def tokenized(self, request: GenerationRequest, names: bool) -> Tokenized | Failed:
        """The request's prompt, as the policy would get it; `names`: with the text of each token."""
        loaded = self._loaded
        try:
            ids = await loaded.prompts.ids(request)
        except UserError as problem:
            return refused(problem, request, 0)
        return Tokenized(ids, [loaded.text.name_of(i) for i in ids] if names else None)

    async def _submitted(self, request: GenerationRequest, steps: TokenStream, counted: list[int]) -> _Running:
        """`counted` gets all tokens that were counted.

        Raises UserError if the request cannot be answered, and RuntimeError if the engine is down.
        """
        while True:
            loaded = self._loaded
            counted[:] = prompt_ids = await loaded.prompts.ids(request)
            unguided = request.unguided
            unguided_ids = [] if unguided is None else await loaded.prompts.ids(unguided)
            counted += unguided_ids
            sampling = sampling_of(request, loaded.engine, prompt_ids, unguided_ids)
            if loaded.engine is not self._loaded.engine:  # a swap came meanwhile, and may have closed the old one
                continue
            try:
                number = await submitted(loaded.engine, request, prompt_ids, sampling, steps)
                return _Running(loaded, prompt_ids, sampling, number)
            except RuntimeError:
                if loaded.engine is self._loaded.engine:
                    raise

    async def _deltas(
        self, steps: TokenStream, answer: AnswerDeltas, loaded: _Loaded, request: GenerationRequest
    ) -> AsyncGenerator[Event, None]:
        """Text as it settles; without a stream all of it at the end, and the number of tokens every PROGRESS_S."""
        sent_s = time.monotonic()
        while True:
            for step in await steps.take(loaded.engine):
                if step.finish == "memory":
                    yield out_of_memory(request)
                    return
                if step.finish in ("error", "cancelled"):
                    logger.error("a request ended with %s; engine: %s", step.finish, loaded.engine.error or "alive")
                    self._failed(loaded)
                    yield ENGINE_FAILED
                    return
                if finish := answer.push(step):
                    yield answer.take(finish)
                    return
            if request.stream and not answer.is_empty:
                yield answer.take()
            elif not request.stream and time.monotonic() - sent_s > PROGRESS_S:
                yield Delta("", answer.num_tokens)
                sent_s = time.monotonic()

    def _failed(self, loaded: _Loaded) -> None:
        """A request failed on this engine."""

    def _load(self, revision: Revision) -> _Loaded:
        from actors.generation.factory import load_engine

        text, engine = load_engine(self._settings, revision.policy, self._settings.dtype)
        return _Loaded(text, Prompts(text, engine.context), engine, revision)

    def _catch_up(self, wanted: Revision | None) -> None:
        """A replica that came up after a swap learns of it from its first request."""
        if wanted is not None and wanted.number > self._loaded.revision.number and not self._swapping.locked():
            self._start(self._swap_quietly(wanted))

    async def _swap_quietly(self, wanted: Revision) -> None:
        try:
            await self.swap(wanted)
        except (UserError, OSError) as problem:
            logger.error("model %s stays at %s: %s", self._name, self._loaded.revision.policy, problem)

    async def _retire(self, old: _Loaded) -> None:
        while old.engine.error is None and (old.engine.load.running or old.engine.load.waiting):
            await asyncio.sleep(RETIRE_CHECK_S)
        old.prompts.close()
        await asyncio.to_thread(old.engine.close)

    async def _update_metrics(self) -> None:
        assert self._metrics is not None
        while True:
            self._metrics.update(self._loaded.engine.load)
            await asyncio.sleep(METRICS_S)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself forgets a task that nobody holds
        task.add_done_callback(self._tasks.discard)


class ServedReplica(Replica):
    """The replica in a process of its own, which ends with its engine.

    A replica that only fails is the fastest of all, so the router would send it all requests until the health check has
    failed three times. A replica that is gone loses nothing: requests without text yet go to another one.
    """

    def __init__(self, name: str, revision: Revision, settings: ServedEngineSettings):
        application = ray.serve.get_replica_context().app_name
        super().__init__(name, wanted(application, name, revision.policy), settings)

    def _failed(self, loaded: _Loaded) -> None:
        if loaded is self._loaded and loaded.engine.error is not None:
            logger.error("the engine died, and the replica with it: %s", loaded.engine.error)
            os._exit(1)


ReplicaDeployment = ray.serve.deployment(ServedReplica)
