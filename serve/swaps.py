"""Which checkpoint each model answers from, the same at every ingress: swaps, and learning of those of others.

Knows no HTTP and no engine.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

import ray.exceptions
import ray.serve.exceptions
import ray.serve.handle

from data.errors import UserError, is_user_error
from serve.locate import locate
from serve.models import ServedPolicies
from serve.request import PolicyInfo, Revision
from serve.revisions import claimed, keep, wanted
from serve.settings import ServeSettings

logger = logging.getLogger("ray.serve")


class Swaps:
    """Of all models, as one ingress knows them. The owner awaits `learn` before anything else."""

    def __init__(
        self,
        application: str,
        models: ServedPolicies,
        handles: Mapping[str, ray.serve.handle.DeploymentHandle],
        configured: Mapping[str, str],
        settings: ServeSettings,
        announce: Callable[[PolicyInfo, Revision], Awaitable[None]],
    ):
        """`configured`: model -> the policy of the settings; `announce` a swap to all ingresses."""
        self._application, self._models, self._handles = application, models, handles
        self._configured, self._settings, self._announce = configured, settings, announce
        self._revisions = {name: Revision(policy, 0) for name, policy in configured.items()}

    def revision(self, model: str) -> Revision:
        """What a model is to be answered from."""
        return self._revisions[model]

    def adopt(self, info: PolicyInfo, revision: Revision) -> None:
        """A model was swapped, here or by another ingress."""
        if revision.number > self._revisions[info.name].number:
            self._revisions[info.name] = revision
            self._models.put(info)

    async def learn(self) -> None:
        """Of swaps whose announcement did not come: the cluster's head keeps the last one."""
        for model, policy in self._configured.items():
            revision = await asyncio.to_thread(wanted, self._application, model, policy)
            if revision.number > self._revisions[model].number:
                info: PolicyInfo = await self._handles[model].info.remote()
                if info.policy == revision.policy:
                    self.adopt(info, revision)
                else:  # that replica is the late one: a request with this revision tells it
                    self._revisions[model] = revision

    async def swap(self, model: str, policy: str) -> PolicyInfo:
        """Answer a model's requests from another checkpoint; raises UserError if a replica cannot: then all stay."""
        located = await asyncio.to_thread(locate, policy, self._settings.storage)
        claim = claimed(self._application, model, 3 * self._settings.start_timeout_s)
        await asyncio.to_thread(claim.__enter__)
        try:
            await self.learn()
            before = self._models.named(model).info.policy
            try:
                return await self._swap_replicas(model, located.uri)
            except UserError:
                with contextlib.suppress(UserError):  # the first problem is the one to report
                    await self._swap_replicas(model, before)  # those that could
                raise
        finally:
            await asyncio.to_thread(claim.__exit__, None, None, None)

    async def _swap_replicas(self, model: str, policy: str) -> PolicyInfo:
        """Every replica of a model answers from `policy` from now on, future ones too; what one of them reports."""
        revision, timeout_s = Revision(policy, time.time_ns()), self._settings.start_timeout_s
        replies = self._handles[model].broadcast("swap", revision)
        try:
            infos: list[PolicyInfo] = await replies.results_async(timeout_s=timeout_s)
        except ray.exceptions.RayTaskError as error:
            if not is_user_error(error.cause):
                raise
            raise UserError(str(error.cause)) from None
        except TimeoutError:
            message = f"the replicas did not load {policy} within {timeout_s:g} s: raise start_timeout_s"
            raise UserError(message) from None
        if not infos:
            raise UserError(f"no replica of {model} answers: wait until /readyz reports one")
        configured = self._configured[model]
        await asyncio.to_thread(keep, self._application, model, configured, revision)  # for those that start later
        self.adopt(infos[0], revision)
        try:
            await self._announce(infos[0], revision)
        except (TimeoutError, ray.exceptions.RayError, ray.serve.exceptions.RayServeException) as error:
            logger.warning("an ingress learns of a swap only in a while: %s", error)
        return infos[0]
