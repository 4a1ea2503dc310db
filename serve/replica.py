"""A copy of the policy on a Ray Serve replica: generation requests in, text out as it is written.

Knows no HTTP and no profiles. Imports torch and transformers only when the replica starts: the ingress has neither.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import ray.serve

from actors.generation.protocol import Sampling
from actors.kernels.machine_memory import ALONE, MachineShare
from data.errors import UserError
from serve.answer_deltas import AnswerDeltas
from serve.engine_request import Refusal, out_of_memory, refused, sampling_of, submitted
from serve.loaded import LoadedPolicy, load, load_beside
from serve.request import Delta, Event, Failed, GenerationRequest, PolicyInfo, Revision, Started, Tokenized
from serve.revisions import wanted, wanted_adapters
from serve.settings import ServedEngineSettings
from serve.telemetry import EngineMetrics
from serve.token_stream import Pace, TokenStream

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

    loaded: LoadedPolicy
    """The policy that answers."""
    prompt_ids: list[int]
    sampling: Sampling
    number: int


class Replica:
    """One policy with its adapters, and one engine."""

    def __init__(
        self,
        name: str,
        revision: Revision,
        settings: ServedEngineSettings,
        adapters: Mapping[str, Revision] = MappingProxyType({}),
        share: MachineShare = ALONE,
    ):
        """`adapters`: of the policy, by the names of their models; one whose policy is "" was removed. `share`: of the
        machine's memory, on a CPU."""
        self._name, self._settings, self._share = name, settings, share
        self._revisions = dict(adapters)
        there = {adapter: wanted for adapter, wanted in adapters.items() if wanted.policy}
        self._loaded, self._adapters = load(settings, revision, there, share)
        self._pace = Pace(settings.stream_every_s)
        self._swapping = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._metrics: EngineMetrics | None = None

    async def info(self) -> PolicyInfo:
        return self._loaded.info(self._name)

    async def adapter_info(self, name: str) -> PolicyInfo | None:
        """None = there is no such adapter."""
        loaded = self._adapters.get(name)
        return None if loaded is None else loaded.info(name, self._name)

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

        Raises UserError if it is no policy with the same schema, or if an adapter does not belong to it.
        """
        async with self._swapping:
            old = self._loaded
            if revision.policy == old.revision.policy:
                self._loaded = replace(old, revision=max(old.revision, revision, key=lambda r: r.number))
            elif revision.number > old.revision.number:
                beside = {name: loaded.revision for name, loaded in self._adapters.items()}
                new, adapters = await asyncio.to_thread(load, self._settings, revision, beside, self._share)
                ours, theirs = f"model {self._name!r}", f"the policy at {revision.policy}"
                try:
                    old.text.schema.require_same(new.text.schema, ours, theirs)
                except UserError:
                    await asyncio.to_thread(new.engine.close)
                    raise
                self._loaded, self._adapters = new, adapters
                self._start(self._retire(old))
                logger.info("model %s now answers from %s", self._name, revision.policy)
        return await self.info()

    async def swap_adapter(self, name: str, revision: Revision) -> PolicyInfo | None:
        """The same for an adapter, which may be new, or be removed: then None.

        Raises UserError if it does not belong to the policy, or has another schema than the one before it.
        """
        async with self._swapping:
            known, old = self._revisions.get(name), self._adapters.get(name)
            if known is None or revision.number > known.number:
                if not revision.policy:
                    self._adapters.pop(name, None)
                    self._loaded.engine.remove_adapter(name)
                elif old is not None and revision.policy == old.revision.policy:
                    self._adapters[name] = replace(old, revision=revision)
                else:
                    self._adapters[name] = await asyncio.to_thread(load_beside, self._loaded, name, revision, old)
                self._revisions[name] = revision
                logger.info("adapter %s of model %s: %s", name, self._name, revision.policy or "removed")
        return await self.adapter_info(name)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Started, then text; closing the generator cancels the request in the engine."""
        self._catch_up(request)
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
        try:
            loaded = await self._answering(request)
            ids = await loaded.prompts.ids(request)
        except UserError as problem:
            return refused(problem, request, 0)
        return Tokenized(ids, [loaded.text.name_of(i) for i in ids] if names else None)

    async def _submitted(self, request: GenerationRequest, steps: TokenStream, counted: list[int]) -> _Running:
        """`counted` gets all tokens that were counted.

        Raises UserError if the request cannot be answered, and RuntimeError if the engine is down.
        """
        while True:
            loaded = await self._answering(request)
            counted[:] = prompt_ids = await loaded.prompts.ids(request)
            unguided = request.unguided
            unguided_ids = [] if unguided is None else await loaded.prompts.ids(unguided)
            counted += unguided_ids
            sampling = sampling_of(request, loaded.engine, prompt_ids, unguided_ids)
            if loaded.text is not (await self._answering(request)).text:  # a swap came, and may have closed the old one
                continue
            try:
                number = await submitted(loaded.engine, request, prompt_ids, sampling, steps)
                return _Running(loaded, prompt_ids, sampling, number)
            except RuntimeError:
                if loaded.engine is self._loaded.engine:
                    raise

    async def _answering(self, request: GenerationRequest) -> LoadedPolicy:
        """What answers a request. An adapter that was added before this replica knew is loaded first.

        Raises Refusal (404) if it is gone, and RuntimeError if it cannot be loaded.
        """
        name, revision = request.adapter, request.revision
        if not name:
            return self._loaded
        if name not in self._adapters and revision is not None:
            try:
                await self.swap_adapter(name, revision)
            except UserError as problem:
                raise RuntimeError(str(problem)) from None
        if name not in self._adapters:
            raise Refusal(f"model {name!r} is no longer served", "model", "model_not_found", 404)
        return self._adapters[name]

    async def _deltas(
        self, steps: TokenStream, answer: AnswerDeltas, loaded: LoadedPolicy, request: GenerationRequest
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

    def _failed(self, loaded: LoadedPolicy) -> None:
        """A request failed on this engine."""

    def _catch_up(self, request: GenerationRequest) -> None:
        """A replica that came up after a swap learns of it from its first request."""
        own = self._adapters.get(request.adapter) if request.adapter else self._loaded
        late = own is not None and request.revision is not None and request.revision.number > own.revision.number
        if late and not self._swapping.locked():
            self._start(self._swap_quietly(request))

    async def _swap_quietly(self, request: GenerationRequest) -> None:
        assert request.revision is not None, "only who is late catches up"
        try:
            if request.adapter:
                await self.swap_adapter(request.adapter, request.revision)
            else:
                await self.swap(request.revision)
        except (UserError, OSError) as problem:
            logger.error("model %s stays as it is: %s", request.adapter or self._name, problem)

    async def _retire(self, old: LoadedPolicy) -> None:
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

    def __init__(
        self,
        name: str,
        revision: Revision,
        settings: ServedEngineSettings,
        adapters: Mapping[str, Revision],
        share: MachineShare,
    ):
        application = ray.serve.get_replica_context().app_name
        beside = wanted_adapters(application, revision.policy, {n: r.policy for n, r in adapters.items()})
        super().__init__(name, wanted(application, name, revision.policy), settings, beside, share)

    def _failed(self, loaded: LoadedPolicy) -> None:
        if loaded.engine is self._loaded.engine and loaded.engine.error is not None:
            logger.error("the engine died, and the replica with it: %s", loaded.engine.error)
            os._exit(1)


ReplicaDeployment = ray.serve.deployment(ServedReplica)
