"""The endpoint as one Ray Serve application: an ingress that speaks HTTP, and replicas that hold the policies.

Knows neither the protocol's fields nor the engine.
"""

import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.serve
import ray.serve.config

from actors.kernels.machine_memory import MachineShare
from cluster.preflight import ClusterNode, Demand, may_grow, nodes_now
from data.errors import UserError
from serve import instance, scrape, shared_limits
from serve.auth import KEYS_VARIABLE
from serve.ingress import Ingress
from serve.locate import Located, locate_all
from serve.replica import ReplicaDeployment
from serve.request import Revision
from serve.revisions import forget, kept
from serve.scorer import ScorerDeployment
from serve.settings import IngressSettings, ServeSettings
from serve.shared_limits import LimitsDeployment

APPLICATION = "steerlm"
PAGE = Path(__file__).with_name("playground.html")

HEALTH_CHECK_PERIOD_S = 3
"""Serve replaces a replica after three failed checks in a row, so a dead engine is gone in about ten seconds."""
SPARE_INGRESS_REQUESTS = 1000
"""What the ingress takes beyond the replicas: for the page, and to refuse callers in OpenAI's error shape."""


MOST_INGRESSES = 1000
"""Each has one exchange with the ledger of the limits at a time."""


def deployment_name(model: str) -> str:
    """Name of a model's replicas in the Ray dashboard."""
    return f"policy-{model}"


def bound(settings: ServeSettings, models: Sequence[Located], predictor: str | None) -> Any:
    """The application as Ray Serve takes it."""
    in_replicas = len(models) * settings.max_replicas * settings.max_ongoing_requests
    ingress = ray.serve.deployment(Ingress).options(
        name="ingress",
        ray_actor_options={"num_cpus": 0},
        autoscaling_config=_autoscaling(settings, settings.ingress),
        max_ongoing_requests=in_replicas + settings.max_queued_requests + SPARE_INGRESS_REQUESTS,
        graceful_shutdown_timeout_s=settings.drain_s,
    )
    return ingress.bind(
        [_policy(settings, model, replica_share(settings, len(models))) for model in models],
        [model.weight for model in models],
        {model.name: model.uri for model in models},
        models[0].adapters,
        None if predictor is None else _scorer(settings, predictor),
        _limits(settings),
        settings,
        os.environ.get(KEYS_VARIABLE, "") if settings.keys is None else "",
        PAGE.read_text(encoding="utf-8"),
    )


def application(settings: ServeSettings) -> Any:
    """The application for Serve's own configuration files (`import_path: serve.deploy:application`).

    Their `args` are the settings; host and port are those of `http_options`. Example: cluster/kuberay/rayservice.yaml.
    """
    return bound(settings, *locate_all(settings))


def replica_share(settings: ServeSettings, num_models: int) -> MachineShare:
    """Of the machine's memory: what one of all replicas may use on a CPU."""
    return MachineShare(num_models * settings.max_replicas, settings.num_cpus, settings.memory_gib)


def _policy(settings: ServeSettings, model: Located, share: MachineShare) -> Any:
    return ReplicaDeployment.options(
        name=deployment_name(model.name),
        **_placement(settings),
        autoscaling_config=_autoscaling(settings, settings),
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=ray.serve.config.BackpressureConfig(status_code=429, retry_after_s=settings.retry_after_s),
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_timeout_s=settings.drain_s,
    ).bind(
        name=model.name,
        revision=Revision(model.uri, 0),
        settings=settings.engine,
        adapters={name: Revision(folder, 0) for name, folder in model.adapters.items()},
        share=share,
    )


def _autoscaling(settings: ServeSettings, own: ServeSettings | IngressSettings) -> dict[str, float]:
    return {
        "min_replicas": own.min_replicas,
        "max_replicas": own.max_replicas,
        "target_ongoing_requests": own.target_ongoing_requests,
        "upscale_delay_s": settings.upscale_delay_s,
        "downscale_delay_s": settings.downscale_delay_s,
    }


def _limits(settings: ServeSettings) -> Any:
    """One for all ingresses; None = no team has limits."""
    limited = [team for team in settings.teams if team.is_limited]
    if not limited:
        return None
    return LimitsDeployment.options(
        name="limits",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=MOST_INGRESSES,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
    ).bind(limited)


def _scorer(settings: ServeSettings, predictor: str) -> Any:
    return ScorerDeployment.options(
        name="predictor",
        ray_actor_options=_actor_options(settings.scorer.num_cpus, settings.scorer.num_gpus, settings.threads),
        max_ongoing_requests=settings.scorer.max_ongoing_requests,
        max_queued_requests=settings.scorer.max_queued_requests,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
    ).bind(
        predictor=predictor,
        dtype=settings.scorer.dtype or settings.engine.dtype,
        pack_tokens=settings.scorer.pack_tokens,
        max_tokens=settings.scorer.max_tokens,
        packing=settings.scorer.packing == "on",
        num_threads=settings.threads,
    )


def _placement(settings: ServeSettings) -> dict[str, Any]:
    """What Serve sets aside for a replica, as options of its deployment.

    With stages on several nodes a bundle for each GPU, as vLLM wants them, which its own actors take; the replica is in
    the first one. PACK fills a node before it takes the next; the replica refuses what splits a stage.
    """
    if settings.engine.pipeline_parallel == 1:
        return {"ray_actor_options": _actor_options(settings.num_cpus, settings.num_gpus, settings.threads)}
    others = [{"GPU": 1.0} for _ in range(settings.engine.num_parts - 1)]
    return {
        "ray_actor_options": _actor_options(settings.num_cpus, 0, settings.threads),
        "placement_group_bundles": [{"CPU": settings.num_cpus, "GPU": 1.0}, *others],
        "placement_group_strategy": "PACK",
    }


def _actor_options(num_cpus: float, num_gpus: float, threads: int) -> dict[str, Any]:
    runtime_env = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}  # torch reads it when it is imported
    return {"num_cpus": num_cpus, "num_gpus": num_gpus, "runtime_env": runtime_env}


def require_gpus(settings: ServeSettings, num_models: int, rates: bool, nodes: Sequence[ClusterNode]) -> None:
    """Raises UserError if the cluster cannot hold the GPUs of all replicas: Serve would wait for them without end."""
    wanted = [("num_gpus", settings.num_gpus, num_models * settings.min_replicas)]
    wanted += [("scorer.num_gpus", settings.scorer.num_gpus, 1)] if rates else []
    if settings.engine.pipeline_parallel > 1:
        _require_stages(settings, num_models * settings.min_replicas, nodes)
        del wanted[0]
    for setting, each, copies in wanted:
        demand = Demand(setting, copies, copies, 0, each)
        fit = sum(demand.fit_on(node) for node in nodes) if each else copies
        if fit < copies:
            there = sum(node.gpus for node in nodes)
            has = f"has {there:g} GPUs, enough for {fit} of {copies} replicas" if there else "has no GPU"
            if there and each > 1 and not fit:
                has += f", because no node has {each:g}"
            fewer = f", or lower min_replicas to {fit}" if fit and num_models == 1 else ""
            spread = ", or take them from several nodes with engine.pipeline_parallel"
            spread = spread if setting == "num_gpus" and there >= each > 1 and not fit else ""
            remedy = f"set {setting}=0 to run on the CPU, or start Ray where there are GPUs{fewer}{spread}"
            raise UserError(f"{setting} is {each:g}, but Ray {has}: {remedy}")


def _require_stages(settings: ServeSettings, copies: int, nodes: Sequence[ClusterNode]) -> None:
    """Raises UserError if the cluster cannot hold the stages of so many replicas, each stage on one node."""
    parts, stages = settings.engine.tensor_parallel, settings.engine.pipeline_parallel
    there = sum(Demand("a stage", copies * stages, copies * stages, 0, parts).fit_on(node) for node in nodes)
    if there < copies * stages:
        gpus = ", ".join(f"{node.gpus:g}" for node in nodes if node.gpus) or "none"
        raise UserError(
            f"engine.pipeline_parallel is {stages} and engine.tensor_parallel {parts}, so {copies} replica(s) need "
            f"{parts} GPUs of one node {copies * stages} times, and Ray has that {there} times (GPUs of its nodes: "
            f"{gpus}): start nodes with {parts} GPUs or a multiple of it, or take more stages with fewer GPUs each"
        )


def require_free_port(host: str, port: int) -> None:
    """Raises UserError if something listens there: Ray's proxy would fail in the background, long after the start."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Lingering connections of an earlier server are no obstacle, a listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            remedy = "stop what listens there, or set port to another"
            raise UserError(f"port {port} on {host} cannot be used ({error.strerror}): {remedy}") from None


@dataclass(frozen=True)
class RunningEndpoint:
    """What `start` started."""

    url: str
    models: tuple[str, ...]
    drain_s: float
    owns_serve: bool
    """Did Ray Serve start for it?"""
    targets: Path | None = None
    """The list that lets Prometheus find its metrics, where Ray has none."""

    def stop(self) -> None:
        """Take the endpoint down; the cluster stays, and Serve with the applications of others."""
        if self.targets is not None:
            self.targets.unlink(missing_ok=True)
        instance.delete(APPLICATION, self.drain_s)
        _forget(self.models)
        if self.owns_serve and not instance.applications():
            instance.shut_down()


def start(settings: ServeSettings, models: Sequence[Located], predictor: str | None = None) -> RunningEndpoint:
    """Run the endpoint on the connected cluster; returns once it answers.

    Raises UserError if its address or its GPUs cannot be had, RuntimeError if the endpoint does not come up.
    """
    if not may_grow():
        require_gpus(settings, len(models), predictor is not None, nodes_now())
    # Below ERROR, Serve logs a line for every request that is turned away.
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    owns_serve = not instance.running()
    if owns_serve:
        require_free_port(settings.host, settings.port)
        ray.serve.start(
            # One proxy, where we are: without keys nobody else may reach it.
            proxy_location="HeadOnly",
            http_options=ray.serve.config.HTTPOptions(host=settings.host, port=settings.port),
            logging_config=quiet,
        )
    else:
        instance.require_address(settings.host, settings.port)
        _require_place()
    names = tuple(model.name for model in models)
    url, targets = f"http://{settings.host}:{settings.port}", scrape.targets_file(settings.port)
    endpoint = RunningEndpoint(url, names, settings.drain_s, owns_serve, targets)
    try:
        _forget(names)
        ray.serve.run(bound(settings, models, predictor), name=APPLICATION, route_prefix="/", logging_config=quiet)
        _wait_until_ready(endpoint.url, settings.start_timeout_s)
        if endpoint.targets is not None:
            scrape.announce(endpoint.targets, scrape.agents())
    except BaseException:
        endpoint.stop()
        raise
    return endpoint


def _forget(models: Sequence[str]) -> None:
    """What the cluster's head keeps of an application."""
    forget(APPLICATION, {*models, *kept(APPLICATION)})
    shared_limits.forget(APPLICATION)


def _require_place() -> None:
    """Raises UserError if the running Serve has the endpoint already: it would be replaced."""
    if APPLICATION in instance.applications():
        remedy = f"stop it where it was started, or `serve.delete({APPLICATION!r})` from a driver"
        raise UserError(f"an application {APPLICATION} already runs on this cluster: {remedy}")


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
    remedy = "see the replica's log, or raise start_timeout_s"
    raise RuntimeError(f"the endpoint did not answer at {url}/healthz within {timeout_s:g} s: {remedy}")
