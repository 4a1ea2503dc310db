"""The endpoint on a Ray cluster: an ingress that speaks HTTP, replicas that hold the policy, started and stopped as one application.

Knows how requests are queued, turned away and retried; knows neither the wire's fields nor the engine.
"""

import asyncio
import logging
import socket
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.serve
import ray.serve.config
import ray.serve.exceptions
import ray.serve.handle
from fastapi import FastAPI

from serve.app import Limits, application
from serve.locate import Located
from serve.replica import ReplicaDeployment
from serve.settings import ServeSettings
from serve.wire import Card, Delta, Event, Failed, Job, Started

logger = logging.getLogger("ray.serve")

APPLICATION = "steerlm"
PAGE = Path(__file__).with_name("playground.html")

RETRIES = 3
"""How often a job whose replica died before it had written any text is sent to another one."""
HEALTH_CHECK_PERIOD_S = 3
"""Serve replaces a replica after three failed checks in a row, so a dead engine is gone in about ten seconds."""
SPARE_INGRESS_REQUESTS = 1000
"""Room in the ingress beyond what the replicas take: for the page and the schema, and for turning callers away in OpenAI's error shape rather than Ray's."""
POLICY_LOST = Failed("the policy was lost while it worked on this request: send it again", 503, code="policy_lost")


@ray.serve.ingress()
class Ingress:
    """HTTP on one side, handles to the replicas on the other."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits a constructor that asks for it
        self, policy: ray.serve.handle.DeploymentHandle, limits: Limits, page: str, retry_after_s: int
    ):
        self._jobs = policy.generate.options(stream=True)
        self._card: Card = await policy.card.remote()
        self._limits, self._page, self._retry_after_s = limits, page, retry_after_s

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve once the constructor is done."""
        return application(self._card, self.generate, self._limits, self._page)

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """The events of a job, whichever replica it takes; closing the generator cancels it there."""
        started = spoke = False
        for _ in range(RETRIES + 1):
            events = self._jobs.remote(job)
            try:
                async for event in events:
                    if not (started and isinstance(event, Started)):  # a second replica starts the job again
                        yield event
                    started = True
                    spoke = spoke or isinstance(event, Delta)
                return
            except (GeneratorExit, asyncio.CancelledError):
                events.cancel()  # the caller is gone
                raise
            except ray.serve.exceptions.BackPressureError:
                lost = Failed(f"all replicas are busy: try again in {self._retry_after_s} s", 429, code="overloaded", retry_after_s=self._retry_after_s)
                break
            except ray.exceptions.RayActorError as error:
                logger.error("a replica died during a job: %s", type(error).__name__)
                lost = POLICY_LOST
                if spoke:
                    break
            except (ray.exceptions.RayTaskError, ray.serve.exceptions.RayServeException) as error:
                logger.error("a job failed: %s", error)
                lost = POLICY_LOST
                break
        yield lost


def bound(settings: ServeSettings, policy: Located) -> Any:
    """The application as Ray Serve takes it."""
    turned_away = ray.serve.config.BackpressureConfig(status_code=429, retry_after_s=settings.retry_after_s)
    replica = ReplicaDeployment.options(
        ray_actor_options={
            "num_cpus": settings.num_cpus,
            "num_gpus": settings.num_gpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(settings.threads)}},  # torch reads it when it is imported
        },
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing_requests,
        },
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=turned_away,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
    ).bind(
        policy=policy.uri,
        name=settings.name or policy.name,
        dtype=settings.dtype,
        max_slots=settings.max_slots,
        max_new_tokens=settings.max_new_tokens,
    )
    ingress = ray.serve.deployment(Ingress).options(
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=settings.max_replicas * settings.max_ongoing_requests + settings.max_queued_requests + SPARE_INGRESS_REQUESTS,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=turned_away,
    )
    limits = Limits(settings.max_new_tokens, settings.max_body_bytes)
    return ingress.bind(replica, limits, PAGE.read_text(encoding="utf-8"), settings.retry_after_s)


def require_free_port(host: str, port: int) -> None:
    """Raises ValueError if something listens there: Ray's proxy would fail in the background, long after the start."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Lingering connections of an earlier server are no obstacle, a listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"port {port} on {host} cannot be used ({error.strerror}): stop what listens there, or set port to another") from None


def start(settings: ServeSettings, policy: Located) -> str:
    """Run the endpoint on the connected cluster; its URL, once it answers. Raises ValueError if the port is taken, RuntimeError if it does not come up."""
    require_free_port(settings.host, settings.port)
    # Below ERROR, Serve says a line for every request that is turned away.
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    ray.serve.start(
        # One proxy, where we are: without keys nobody else may reach it.
        proxy_location="HeadOnly",
        http_options=ray.serve.config.HTTPOptions(host=settings.host, port=settings.port),
        logging_config=quiet,
    )
    try:
        ray.serve.run(bound(settings, policy), name=APPLICATION, route_prefix="/", logging_config=quiet)
        url = f"http://{settings.host}:{settings.port}"
        _wait_until_ready(url, settings.start_timeout_s)
    except BaseException:
        stop()
        raise
    return url


def stop() -> None:
    """Take the endpoint down; the cluster stays."""
    ray.serve.shutdown()


def _wait_until_ready(url: str, timeout_s: float) -> None:
    """The application is up before its proxy knows the route."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"the endpoint did not answer at {url}/healthz within {timeout_s:g} s: see the replica's log, or raise start_timeout_s")
