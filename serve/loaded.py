"""What a replica answers from: a policy, the adapters beside it, and the one engine of them all.

Knows no request and no Ray. Imports torch and transformers only when something is loaded.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.generation.protocol import Engine
from actors.kernels.machine_memory import MachineShare
from serve.prompts import Prompts
from serve.request import PolicyInfo, Revision
from serve.settings import ServedEngineSettings
from serve.tools import MARKERS, ToolFormat, format_of

if TYPE_CHECKING:
    from actors.modeling.policy import PolicyText


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy or an adapter, and the engine that runs it."""

    text: "PolicyText"
    prompts: Prompts
    engine: Engine
    revision: Revision
    since: int = field(default_factory=lambda: int(time.time()))
    """Unix time, s: when it was loaded, whenever an ingress asks."""

    def info(self, name: str, base: str = "") -> PolicyInfo:
        """`base`: the model that it is an adapter of."""
        format = self.text.format
        records = (record.model_dump_json() for record in (format.schema, format.calibration, format.text_rater))
        schema, calibration, text_rater = records
        return PolicyInfo(
            name,
            schema,
            self.revision.policy,
            calibration,
            text_rater,
            self.since,
            tool_format(self.text),
            self.engine.no_guidance,
            base,
            context=self.engine.context,
        )


def load(
    settings: ServedEngineSettings, revision: Revision, adapters: Mapping[str, Revision], share: MachineShare
) -> tuple[LoadedPolicy, dict[str, LoadedPolicy]]:
    """A policy, and each adapter beside it. Raises UserError if there is no such policy, or if one of them does not
    belong to it."""
    from actors.generation.factory import load_engine

    uris = [adapter.policy for adapter in adapters.values()]
    text, engine = load_engine(settings, revision.policy, settings.dtype, adapters=uris, share=share)
    policy = LoadedPolicy(text, Prompts(text, engine.context), engine, revision)
    try:
        return policy, {name: load_beside(policy, name, adapter) for name, adapter in adapters.items()}
    except BaseException:
        engine.close()
        raise


def load_beside(
    policy: LoadedPolicy, name: str, revision: Revision, before: LoadedPolicy | None = None
) -> LoadedPolicy:
    """An adapter of a policy that is loaded, in place of the one of that name `before`.

    Raises UserError if it does not belong to the policy, or has another schema than the one before: then that stays.
    """
    from actors.generation.factory import adapter_beside

    folder, text = adapter_beside(policy.text, name, revision.policy)
    if before is not None:
        before.text.schema.require_same(text.schema, f"model {name!r}", f"the adapter at {revision.policy}")
    policy.engine.put_adapter(name, folder)
    return LoadedPolicy(text, Prompts(text, policy.engine.context), policy.engine, revision)


def tool_format(text: "PolicyText") -> ToolFormat | None:
    """How the policy writes calls of tools; None = its chat template has none, or decoding leaves their mark out."""
    form = format_of(text.tools_template)
    mark = MARKERS[form] if form else ""
    ids = text.tokenizer.encode(mark, add_special_tokens=False) if mark else []
    return form if text.decode(ids).strip() == mark else None
