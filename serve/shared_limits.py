"""The ledger of the teams' limits as a deployment of its own, one for all ingresses. Knows no team's limits itself.

If it dies, Ray Serve starts another one; the cluster's head knows which ingresses that one has to hear before it grants
anything.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence

import ray.serve
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from serve.auth import Team
from serve.ledger import Ledger, Reply, Report

NAMESPACE = b"steerlm-ingresses"


def ingresses(application: str) -> list[str]:
    """Those that the last ledger of an application knew."""
    kept = _internal_kv_get(application.encode(), namespace=NAMESPACE)
    return [] if kept is None else json.loads(kept)


def keep(application: str, names: Iterable[str]) -> None:
    _internal_kv_put(application.encode(), json.dumps(sorted(names)).encode(), overwrite=True, namespace=NAMESPACE)


def forget(application: str) -> None:
    """The application begins, or is gone."""
    _internal_kv_del(application.encode(), namespace=NAMESPACE)


class SharedLimits:
    """On a Ray Serve replica; there is one."""

    def __init__(self, teams: Sequence[Team]):
        self._application = ray.serve.get_replica_context().app_name
        self._ledger = Ledger(teams, expected=ingresses(self._application))
        self._kept = self._ledger.ingresses

    async def sync(self, report: Report) -> Reply:
        """An exchange with one ingress."""
        reply = self._ledger.sync(report)
        names = self._ledger.ingresses
        if names != self._kept:  # before it can use anything: a successor has to know it
            self._kept = names
            await asyncio.to_thread(keep, self._application, names)
        return reply


LimitsDeployment = ray.serve.deployment(SharedLimits)
