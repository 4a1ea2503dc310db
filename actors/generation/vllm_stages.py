"""Pipeline parallelism: one engine of vLLM on GPUs of several nodes, where Ray has placed them. Starts no engine.

The placement group of the process has a bundle with one GPU for each part of the model: vLLM takes no larger ones. Its
Ray executor starts an actor in each, sorted by node; every `tensor_parallel` of them in a row are a stage. Not run on
GPUs yet.
"""

import os
from collections import Counter
from collections.abc import Collection
from typing import Any

import ray
import ray.util
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.generation.settings import EnginePlace, EngineSettings
from actors.kernels.precision import AUTO, HALF
from actors.modeling.model_folder import local_folder
from data.errors import UserError
from data.uris import shown_uri

WORKER_GPUS = 0.5
"""Of its bundle's GPU, that an actor of vLLM asks Ray for: in a swap those of a second engine are beside it."""
UNTRIED = "its stages may be on several nodes, which has not been run on GPUs yet"


def set_environment() -> None:
    """For vLLM's Ray executor; it reads this when it starts."""
    os.environ["VLLM_RAY_PER_WORKER_GPUS"] = str(WORKER_GPUS)
    os.environ["VLLM_USE_RAY_V2_EXECUTOR_BACKEND"] = "1"  # vLLM's default, and the one that ours is made of
    if ray.is_initialized():  # else the process of vLLM's core would start a Ray of its own
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def stage_dtype(wanted: str) -> str:
    """`wanted`, and bfloat16 for "auto": what a GPU multiplies faster."""
    return HALF if wanted == AUTO else wanted


def folder_of_stages(policy: str, settings: EngineSettings, place: EnginePlace) -> str:
    """A local folder with the policy at a folder or URI, on each node where Ray has placed the engine; prints where.

    Raises UserError if a stage would be on two nodes, or if a node cannot read the policy.
    """
    group = ray.util.get_current_placement_group() if ray.is_initialized() else None
    if group is None:
        raise UserError(
            f"{place.setting}.pipeline_parallel is {settings.pipeline_parallel}, and this process is in no placement "
            "group, so Ray has set no GPUs aside for its stages: start it as an endpoint (python -m serve)"
        )
    nodes = Counter(ray.util.placement_group_table(group)["bundles_to_node_id"].values())
    require_whole_stages(list(nodes.values()), settings.tensor_parallel, place)
    where = ", ".join(map(str, nodes.values()))
    print(f"{place.setting}: {settings.num_parts} GPUs on {len(nodes)} node(s) ({where}): {UNTRIED}", flush=True)
    task: Any = ray.remote(num_cpus=0)(_folder_here)
    here = [task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)) for node in nodes]
    return same_folder(policy, ray.get([each.remote(policy) for each in here]))


def require_whole_stages(gpus: Collection[int], tensor_parallel: int, place: EnginePlace) -> None:
    """Raises UserError if a stage is not on one node; `gpus`: how many of the engine's are on each node."""
    if any(number % tensor_parallel for number in gpus):
        raise UserError(
            f"Ray placed the engine's GPUs on nodes with {', '.join(map(str, gpus))} of them, and a stage of "
            f"{place.setting}.tensor_parallel {tensor_parallel} must be on one node: free a multiple of "
            f"{tensor_parallel} GPUs on each, or set {place.setting}.tensor_parallel to a number that divides these"
        )


def same_folder(policy: str, found: Collection[str]) -> str:
    """Where all nodes have the policy; `found`: its folder on each, "" = it has none.

    Raises UserError if it is not the same on all: vLLM has one path for all of them.
    """
    missing, shown = sum(not folder for folder in found), shown_uri(policy)
    if missing:
        raise UserError(
            f"{missing} of the {len(found)} nodes of the engine have no folder {shown}: put the policy on storage that "
            "all nodes share, or name it by a URI of an object store"
        )
    folder, *others = sorted(set(found))
    if others:
        raise UserError(
            f"the policy at {shown} is in {folder} on one node of the engine and in {others[0]} on another, and vLLM "
            "reads it from one path: set XDG_CACHE_HOME to the same on all nodes"
        )
    return folder


def _folder_here(policy: str) -> str:
    folder = local_folder(policy)
    return folder if os.path.isdir(folder) else ""
