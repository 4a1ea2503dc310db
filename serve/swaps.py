"""Which checkpoint each model answers from, the same at every ingress: swaps, and learning of those of others.

Knows no HTTP and no engine.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import ray.exceptions
import ray.serve.exceptions
import ray.serve.handle

from data.errors import UserError, is_user_error
from serve.locate import locate, require_adapter, require_name
from serve.models import ServedPolicies
from serve.request import PolicyInfo, Revision
from serve.revisions import claimed, keep, wanted, wanted_adapters
from serve.settings import ServeSettings

logger = logging.getLogger("ray.serve")


UNKNOWN = Revision("", -1)
"""Before anything is known of an adapter."""


class Swaps:
    """Of all models, as one ingress knows them. The owner awaits `learn` before anything else."""

    def __init__(
        self,
        application: str,
        models: ServedPolicies,
        handles: Mapping[str, ray.serve.handle.DeploymentHandle],
        configured: Mapping[str, str],
        adapters: Mapping[str, str],
        settings: ServeSettings,
        announce: Callable[[str, PolicyInfo | None, Revision], Awaitable[None]],
    ):
        """`configured`: model -> the policy of the settings; `adapters`: of the first one, the same; `announce` a swap
        to all ingresses."""
        self._application, self._models, self._handles = application, models, handles
        self._configured, self._adapters = configured, adapters
        self._settings, self._announce = settings, announce
        self._revisions = {name: Revision(policy, 0) for name, policy in configured.items()}

    def revision(self, model: str) -> Revision:
        """What a model is to be answered from."""
        return self._revisions[model]

    def adopt(self, model: str, info: PolicyInfo | None, revision: Revision) -> None:
        """A model was swapped, here or by another ingress; None = it was an adapter, and is removed."""
        if revision.number > self._revisions.get(model, UNKNOWN).number:
            self._revisions[model] = revision
            if info is None:
                self._models.remove(model)
            else:
                self._models.put(info)

    async def learn(self) -> None:
        """Of swaps whose announcement did not come: the cluster's head keeps the last one."""
        for model, policy in self._configured.items():
            revision = await asyncio.to_thread(wanted, self._application, model, policy)
            if revision.number > self._revisions[model].number:
                info: PolicyInfo = await self._handles[model].info.remote()
                if info.policy == revision.policy:
                    self.adopt(model, info, revision)
                else:  # that replica is the late one: a request with this revision tells it
                    self._revisions[model] = revision
        base, policy = next(iter(self._configured.items()))
        found = await asyncio.to_thread(wanted_adapters, self._application, policy, self._adapters)
        for name, revision in found.items():
            if revision.number > self._revisions.get(name, UNKNOWN).number:
                loaded = await self._handles[base].adapter_info.remote(name) if revision.policy else None
                if loaded is not None or not revision.policy:  # else that replica does not know it yet: next time
                    self.adopt(name, loaded, revision)

    async def swap(self, model: str, policy: str) -> PolicyInfo:
        """Answer a model's requests from another checkpoint; raises UserError if a replica cannot: then all stay."""
        if model not in self._configured:
            raise UserError(f'{model} is an adapter: send {{"adapter": FOLDER}}')
        located = await asyncio.to_thread(locate, policy, self._settings.storage)
        async with self._claimed(model):
            before = self._models.named(model).info.policy
            info = await self._swap_or_stay(model, model, located.uri, before)
        assert info is not None, "a policy is not removed"
        return info

    async def adapt(self, name: str, adapter: str) -> PolicyInfo:
        """Serve an adapter under a name, a new one or another version; raises UserError if a replica cannot: then all
        stay."""
        require_name(name)
        await asyncio.to_thread(require_adapter, name, adapter)
        info = await self._changed(name, adapter)
        assert info is not None, "it was not removed"
        return info

    async def remove(self, name: str) -> None:
        """Stop serving an adapter; raises UserError if the model is none."""
        await self._changed(name, "")

    async def _changed(self, name: str, adapter: str) -> PolicyInfo | None:
        if name in self._configured:
            raise UserError(f"{name} is a policy, no adapter: name an adapter, or take another name for a new one")
        if len(self._configured) > 1:
            raise UserError("adapters are served beside one policy, and `models` lists several: set policy instead")
        base = next(iter(self._configured))
        async with self._claimed(name):
            before = self._revisions.get(name, UNKNOWN).policy
            return await self._swap_or_stay(name, base, adapter, before)

    @contextlib.asynccontextmanager
    async def _claimed(self, model: str) -> AsyncIterator[None]:
        """No other ingress swaps it meanwhile, and all earlier swaps are known."""
        claim = claimed(self._application, model, 3 * self._settings.start_timeout_s)
        await asyncio.to_thread(claim.__enter__)
        try:
            await self.learn()
            yield
        finally:
            await asyncio.to_thread(claim.__exit__, None, None, None)

    async def _swap_or_stay(self, model: str, base: str, policy: str, before: str) -> PolicyInfo | None:
        try:
            return await self._swap_replicas(model, base, policy)
        except UserError:
            with contextlib.suppress(UserError):  # the first problem is the one to report
                await self._swap_replicas(model, base, before)  # those that could
            raise

    async def _swap_replicas(self, model: str, base: str, policy: str) -> PolicyInfo | None:
        """Every replica of `base` answers a model's requests from `policy` from now on, future ones too; what one of
        them reports."""
        revision, timeout_s = Revision(policy, time.time_ns()), self._settings.start_timeout_s
        replicas = self._handles[base]
        if model == base:
            replies = replicas.broadcast("swap", revision)
        else:
            replies = replicas.broadcast("swap_adapter", model, revision)
        try:
            infos: list[PolicyInfo | None] = await replies.results_async(timeout_s=timeout_s)
        except ray.exceptions.RayTaskError as error:
            if not is_user_error(error.cause):
                raise
            raise UserError(str(error.cause)) from None
        except TimeoutError:
            message = f"the replicas did not load {policy} within {timeout_s:g} s: raise start_timeout_s"
            raise UserError(message) from None
        if not infos:
            raise UserError(f"no replica of {base} answers: wait until /readyz reports one")
        # For those that start later.
        configured = self._adapters.get(model, self._configured[base])
        await asyncio.to_thread(keep, self._application, model, configured, revision, adapter=model != base)
        self.adopt(model, infos[0], revision)
        try:
            await self._announce(model, infos[0], revision)
        except (TimeoutError, ray.exceptions.RayError, ray.serve.exceptions.RayServeException) as error:
            logger.warning("an ingress learns of a swap only in a while: %s", error)
        return infos[0]
