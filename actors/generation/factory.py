"""Make the engine of a policy by the settings. Knows nothing of how engines work."""

from collections.abc import Sequence

import torch

from actors.generation.choice import chosen
from actors.generation.protocol import Engine
from actors.generation.settings import ENDPOINT, EnginePlace, EngineSettings
from actors.generation.vllm_installed import is_installed
from actors.generation.vllm_stages import folder_of_stages, stage_dtype
from actors.kernels.devices import own_device
from actors.kernels.machine_memory import ALONE, MachineShare
from actors.kernels.precision import usable_dtype
from actors.modeling.adapter_weights import adapter_record, adapter_text
from actors.modeling.model_folder import local_folder
from actors.modeling.policy import Policy, PolicyText


def load_engine(
    settings: EngineSettings,
    policy: str,
    dtype: str,
    place: EnginePlace = ENDPOINT,
    num_threads: int | None = None,
    adapters: Sequence[str] = (),
    share: MachineShare = ALONE,
) -> tuple[PolicyText, Engine]:
    """The policy at a folder or URI and an engine that runs it, on this process's own device; `num_threads` of a CPU,
    for each part of a policy that is split.

    `adapters`: folders or URIs of those that are put beside it afterwards. `share`: of the machine's memory, on a CPU.

    Prints which engine it is, and why. Raises UserError if there is no such policy, or the engine cannot run it.
    """
    device, spans_nodes = own_device(), settings.pipeline_parallel > 1
    # What this process has says nothing of the GPUs of stages.
    dtype = stage_dtype(dtype) if spans_nodes else usable_dtype(dtype, device, place.dtype_setting)
    if num_threads:
        torch.set_num_threads(num_threads)
    ranks = tuple(adapter_record(uri, local_folder(uri)).rank for uri in adapters)

    def refused() -> str:
        from actors.generation.vllm_start import VllmStart

        return VllmStart(settings, place, local_folder(policy), dtype, ranks, num_threads).refused()

    choice = chosen(settings, place, device.type != "cpu", is_installed, refused)
    print(choice.line(place), flush=True)  # Ray brings what a worker prints to the driver's terminal
    if choice.kind == "vllm":
        from actors.generation.vllm_engine import VllmEngine
        from actors.generation.vllm_start import VllmStart

        text = PolicyText.load(policy)
        folder = folder_of_stages(policy, settings, place) if spans_nodes else local_folder(policy)
        return text, VllmEngine(text, VllmStart(settings, place, folder, dtype, ranks, num_threads))
    from actors.generation.transformers_engine import TransformersEngine

    loaded = Policy.load(policy, dtype)
    own = settings
    return loaded, TransformersEngine(
        loaded, own.max_num_seqs, own.prefix_cache_tokens, own.max_model_len, own.kv_cache_gib, share
    )


def adapter_beside(text: PolicyText, name: str, adapter: str) -> tuple[str, PolicyText]:
    """The exported adapter at a folder or URI: its folder on this machine, for `Engine.put_adapter`, and its text side.

    Raises UserError if there is none, or if its prompts are not those of the policy with `text`.
    """
    folder = local_folder(adapter)
    return folder, adapter_text(name, folder, text)
