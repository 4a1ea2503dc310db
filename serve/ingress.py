"""HTTP on one side, handles to the policies and the predictor on the other: queues, retries, swaps.

Knows neither the protocol's fields nor the engine.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import ray.exceptions
import ray.serve
import ray.serve.exceptions
import ray.serve.handle
from fastapi import FastAPI
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY

from data.errors import UserError
from serve import scrape
from serve.admission import RequestLimits
from serve.app import application
from serve.auth import Keys
from serve.backend import Backend
from serve.backlog import Backlog
from serve.disconnects import DisconnectsOfRay
from serve.feedback import Feedback
from serve.ledger import Reply, Report
from serve.live import Live
from serve.models import ServedPolicies, ServedPolicy
from serve.protocol import ProtocolError
from serve.rate_limits import LimitsUnavailable, RateLimiter
from serve.request import Delta, Event, Failed, GenerationRequest, PolicyInfo, Revision, Started, Tokenized
from serve.settings import ServeSettings
from serve.swaps import Swaps
from serve.telemetry import EndpointMetrics, Telemetry

logger = logging.getLogger("ray.serve")

MOST_REPLICAS = 4
"""How many replicas a request is given to, as long as they die before they have begun it."""
MOST_DEATHS = 2
"""How many replicas may die of one request: it is given to one more, in case the first died of something else."""
READY_TIMEOUT_S = 3.0
WATCH_S = 5.0
"""How often an ingress learns how many replicas run, and of swaps whose announcement was lost."""
LEDGER_TIMEOUT_S = 3.0
METRICS_TIMEOUT_S = 5.0
"""Of each node; Prometheus itself gives up after ten."""
POLICY_LOST = Failed("the policy was lost while it worked on this request: send it again", 503, code="policy_lost")

Handle: TypeAlias = ray.serve.handle.DeploymentHandle


@ray.serve.ingress()
class Ingress:
    """What callers talk to: one process, or several alike."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits a constructor that asks for it
        self,
        policies: Sequence[Handle],
        weights: Sequence[float],
        configured: Mapping[str, str],
        adapters: Mapping[str, str],
        scorer: Handle | None,
        limits: Handle | None,
        settings: ServeSettings,
        keys_text: str,
        page: str,
    ):
        self._settings, self._page, self._limits = settings, page, limits
        infos: list[PolicyInfo] = list(await asyncio.gather(*(handle.info.remote() for handle in policies)))
        self._models = ServedPolicies([ServedPolicy(info, weight) for info, weight in zip(infos, weights, strict=True)])
        self._handles = {info.name: handle for info, handle in zip(infos, policies, strict=True)}
        own = ray.serve.get_replica_context().app_name
        self._swaps = Swaps(own, self._models, self._handles, configured, adapters, settings, self._announce)
        await self._swaps.learn()
        self._backlogs = {
            name: Backlog(
                at_least_s=settings.retry_after_s,
                num_places=settings.min_replicas * settings.max_ongoing_requests,
                max_waiting=settings.max_queued_requests,
            )
            for name in self._handles
        }
        self._scorer = scorer
        self._keys = Keys(settings.teams, settings.keys, keys_text)
        _require_known_peers(self._keys)
        self._rate_limiter = RateLimiter(self._ledger)
        self._telemetry = Telemetry(EndpointMetrics(), settings.access_log)
        self._feedback = Feedback.of(settings.feedback, self._telemetry.unkept)
        self._live = None if scorer is None else Live.of(settings.live, self.score, self._telemetry)
        self._tasks = [asyncio.create_task(work, name=name) for name, work in self._works().items()]

    def _works(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What it does all the time, by what a message calls it."""
        works = {"watching": self._keep_watch(), "reporting to the limits": self._rate_limiter.keep_reporting()}
        if self._settings.keys is not None:
            works["reading the keys file"] = self._keys.keep_fresh()
        if self._feedback is not None:
            works["removing old feedback"] = self._feedback.keep_swept()
        return works if self._live is None else works | self._live.works()

    async def __del__(self) -> None:
        """Ray Serve awaits it once the last request has its answer."""
        if self._live is not None:
            await self._live.aclose()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve once the constructor is done."""
        backend = Backend(
            models=self._models,
            generate=self.generate,
            score=None if self._scorer is None else self.score,
            tokenize=self.tokenize,
            swap=self._swaps.swap,
            adapt=self._swaps.adapt,
            remove=self._swaps.remove,
            replicas=self.replicas,
            metrics=self.metrics,
            keys=self._keys,
            limits=RequestLimits.of(self._settings),
            telemetry=self._telemetry,
            rate_limiter=self._rate_limiter,
            page=self._page,
            feedback=self._feedback,
            live=self._live,
            root_path=self._settings.root_path,
            cors_origins=self._settings.cors_origins,
        )
        app = application(backend)
        app.add_middleware(DisconnectsOfRay)
        return app

    def check_health(self) -> None:
        """Raises if a task of its own has ended; Ray Serve then starts another ingress."""
        for task in self._tasks:
            if task.done():
                why = "cancelled" if task.cancelled() else repr(task.exception())
                raise RuntimeError(f"the ingress stopped {task.get_name()}: {why}")

    async def generate(self, model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """The events of a request, whichever replica takes it; closing the generator cancels it there."""
        backlog = self._backlogs[self._models.replicas_of(model)]
        if backlog.is_full:  # Ray would say so too, but later: then a stream has begun, which no client tries again
            yield self._busy(model)
            return
        with backlog.inside() as begin:
            async with contextlib.aclosing(self._generated(model, request)) as events:
                async for event in events:
                    begin()
                    yield event

    async def _generated(self, model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        request, replicas = self._addressed(model, request)
        started = has_text = False
        deaths = 0
        for _ in range(MOST_REPLICAS):
            events, begun = replicas.generate.options(stream=True).remote(request), False
            try:
                async for event in events:
                    if not (started and isinstance(event, Started)):  # a second replica starts again
                        yield event
                    started = begun = True
                    has_text = has_text or (isinstance(event, Delta) and event.shows)
                return
            except (GeneratorExit, asyncio.CancelledError):
                events.cancel()  # the caller is gone
                raise
            except ray.serve.exceptions.BackPressureError:
                lost = self._busy(model)
                break
            except ray.exceptions.RayActorError as error:
                logger.error("a replica died during a request: %s", type(error).__name__)
                lost, deaths = POLICY_LOST, deaths + begun
                if has_text or deaths == MOST_DEATHS:
                    break
            except (ray.exceptions.RayTaskError, ray.serve.exceptions.RayServeException) as error:
                logger.error("a request failed: %s", error)
                lost = POLICY_LOST
                break
        yield lost

    def _addressed(self, model: str, request: GenerationRequest) -> tuple[GenerationRequest, Handle]:
        """As the replicas take it, and these."""
        base = self._models.replicas_of(model)
        own = replace(request, revision=self._swaps.revision(model), adapter="" if model == base else model)
        return own, self._handles[base]

    async def tokenize(self, model: str, request: GenerationRequest, names: bool) -> Tokenized | Failed:
        """The prompt of a request, as a replica has it."""
        request, replicas = self._addressed(model, request)
        reply = replicas.tokenized.remote(request, names)
        try:
            found: Tokenized | Failed = await reply
        except ray.serve.exceptions.BackPressureError:
            return self._busy(model)
        except (ray.exceptions.RayError, ray.serve.exceptions.RayServeException) as error:
            logger.error("a text was not tokenized: %s", error)
            return POLICY_LOST
        return found

    async def score(self, request: GenerationRequest, answer: str) -> dict[str, float]:
        """The predictor's values of an answer; raises ProtocolError (503) if it fails, is too slow or has too many."""
        assert self._scorer is not None
        timeout_s = self._settings.scorer.timeout_s
        reply = self._scorer.score.remote((request, answer))
        try:
            return dict(await asyncio.wait_for(_awaited(reply), timeout_s))
        except ray.serve.exceptions.BackPressureError:
            raise self._unrated("has too many answers to rate") from None
        except TimeoutError:
            reply.cancel()
            raise self._unrated(f"did not rate this answer within {timeout_s:g} s") from None
        except (ray.exceptions.RayError, ray.serve.exceptions.RayServeException) as error:
            logger.error("an answer was not rated: %s", error)
            raise self._unrated("failed on this answer") from None

    async def _ledger(self, report: Report) -> Reply:
        """An exchange with the ledger of the teams' limits; raises LimitsUnavailable."""
        assert self._limits is not None, "there is one as soon as a team has limits"
        reply = self._limits.sync.remote(report)
        try:
            return await asyncio.wait_for(_awaited(reply), LEDGER_TIMEOUT_S)
        except TimeoutError:
            reply.cancel()
            raise LimitsUnavailable from None
        except (ray.exceptions.RayError, ray.serve.exceptions.RayServeException) as error:
            logger.error("the limits could not be checked: %s", type(error).__name__)
            raise LimitsUnavailable from None

    def _unrated(self, why: str) -> ProtocolError:
        message = f"the attribute predictor {why}: send it again, or without score and best_of"
        wait_s = self._settings.retry_after_s
        return ProtocolError(message, code="scorer_failed", status=503, retry_after_s=wait_s)

    def _busy(self, model: str) -> Failed:
        wait_s = self._backlogs[self._models.replicas_of(model)].retry_after_s()
        busy = f"all replicas are busy: try again in {wait_s} s"
        return Failed(busy, 429, code="overloaded", retry_after_s=wait_s)

    async def adopt(self, model: str, info: PolicyInfo | None, revision: Revision) -> None:
        """Another ingress swapped a model."""
        self._swaps.adopt(model, info, revision)

    async def _announce(self, model: str, info: PolicyInfo | None, revision: Revision) -> None:
        own = ray.serve.get_replica_context()
        ingresses = ray.serve.get_deployment_handle(own.deployment, own.app_name)
        await ingresses.broadcast("adopt", model, info, revision).results_async(timeout_s=READY_TIMEOUT_S)

    async def _keep_watch(self) -> None:
        """Learn every WATCH_S what other processes have changed: each ingress has its share of the replicas' places."""
        own = ray.serve.get_replica_context()
        while True:
            try:
                status = (await asyncio.to_thread(ray.serve.status)).applications[own.app_name]
                running = {name: d.replica_states.get("RUNNING", 0) for name, d in status.deployments.items()}
                share = 1 / max(1, running.get(own.deployment, 1))
                for model, backlog in self._backlogs.items():
                    replicas = max(self._settings.min_replicas, running.get(self._handles[model].deployment_name, 0))
                    backlog.num_places = math.ceil(share * replicas * self._settings.max_ongoing_requests)
                    backlog.max_waiting = math.ceil(share * self._settings.max_queued_requests)
                await self._swaps.learn()
            except (KeyError, ray.exceptions.RayError, ray.serve.exceptions.RayServeException) as error:
                logger.warning("the ingress does not learn what changes: %s", error)
            await asyncio.sleep(WATCH_S)

    async def metrics(self) -> str:
        """The metrics of the endpoint's processes on all nodes, which Ray's agents there have."""
        return await asyncio.to_thread(scrape.endpoint_metrics, METRICS_TIMEOUT_S)

    async def replicas(self) -> Mapping[str, int]:
        """How many replicas of each model answer within a moment."""

        async def answering(handle: Handle) -> int:
            try:
                found = await handle.broadcast("info").results_async(timeout_s=READY_TIMEOUT_S, return_exceptions=True)
            except (TimeoutError, ray.exceptions.RayError):
                return 0
            return sum(isinstance(info, PolicyInfo) for info in found)

        counts = await asyncio.gather(*map(answering, self._handles.values()))
        return dict(zip(self._handles, counts, strict=True))


def _require_known_peers(keys: Keys) -> None:
    """Raises UserError if nobody has a key and every request comes from Ray's HAProxy, whoever sent it."""
    if RAY_SERVE_ENABLE_HA_PROXY and not keys.any:
        who = "RAY_SERVE_ENABLE_HA_PROXY is 1, so the endpoint cannot see who calls, and no keys are set"
        raise UserError(f"{who}: set teams and keys (`python -m serve.keys TEAM` makes one), or unset it")


async def _awaited(reply: ray.serve.handle.DeploymentResponse) -> Any:
    return await reply
