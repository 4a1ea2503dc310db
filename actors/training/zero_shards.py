"""This worker's ZeRO shards of the trained weights and the optimizer's moments, flat, for any other number of workers.

Stage 0 holds everything everywhere, stages 1 and 2 shard the moments (arXiv 1910.02054), stage 3 the weights too.
A shard is (parameter, first element, values); the shards of all workers together are whole. Knows no files.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means of gradients and of their squares."""


@dataclass(frozen=True)
class ZeroShard:
    """Elements [start, start + len) of the flattened parameter `name`."""

    name: str
    start: int
    values_N: torch.Tensor


Source = Callable[[str, int, int], torch.Tensor]
"""(parameter, first element, number of elements) -> values: reads shards back."""


def trained(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def weight_shards(module: torch.nn.Module, zero_stage: int, rank: int, world: int) -> Iterator[ZeroShard]:
    """This worker's share of the trained weights."""
    for name, parameter in trained(module):
        if zero_stage == 3:
            yield from _stage3_shard(name, parameter, parameter.ds_tensor, rank)
        else:
            start, stop = (i * parameter.numel() // world for i in (rank, rank + 1))
            yield ZeroShard(name, start, parameter.detach().flatten()[start:stop])


def local_part(name: str, parameter: Any, zero_stage: int, rank: int) -> torch.Tensor:
    """What this worker holds of a weight, trained or frozen: at stage 3 its shard (possibly nothing), else all."""
    if zero_stage < 3:
        whole: torch.Tensor = parameter.detach()
        return whole
    shards = [shard.values_N for shard in _stage3_shard(name, parameter, parameter.ds_tensor, rank)]
    return shards[0] if shards else parameter.ds_tensor.detach().flatten()[:0]


@torch.no_grad()
def restore_weights(module: torch.nn.Module, zero_stage: int, rank: int, source: Source) -> None:
    """Set the trained weights. Call it before DeepSpeed wraps the module: the engine copies them."""
    for name, parameter in trained(module):
        if zero_stage == 3:
            for shard in _stage3_shard(name, parameter, parameter.ds_tensor, rank):
                shard.values_N.copy_(source(name, shard.start, len(shard.values_N)))
        else:
            parameter.copy_(source(name, 0, parameter.numel()).view_as(parameter))


def moment_shards(engine: Any, moment: str, rank: int) -> Iterator[ZeroShard]:
    """This worker's share of one of the moments; `engine` must have done a step."""
    stage = engine.zero_optimization_stage()
    for name, parameter in trained(engine.module):
        if stage == 3:
            from deepspeed.utils import safe_get_local_optimizer_state

            yield from _stage3_shard(name, parameter, safe_get_local_optimizer_state(parameter, moment), rank)
        elif stage:
            mapping = parameter._hp_mapping
            if mapping is not None:
                yield ZeroShard(name, mapping.lp_fragment_address.start, mapping.get_hp_fragment(moment))
        elif rank == 0:
            yield ZeroShard(name, 0, engine.optimizer.state[parameter][moment].flatten())


@torch.no_grad()
def restore_moments(engine: Any, step: int, rank: int, sources: dict[str, Source]) -> None:
    """Set the moments of a new engine, and the number of steps they come from."""
    _make_moments(engine, step)
    stage = engine.zero_optimization_stage()
    for moment, source in sources.items():
        for name, parameter in trained(engine.module):
            if stage == 3:
                from deepspeed.utils import safe_get_local_optimizer_state, safe_set_local_optimizer_state

                held = torch.zeros_like(safe_get_local_optimizer_state(parameter, moment))
                for shard in _stage3_shard(name, parameter, held, rank):
                    shard.values_N.copy_(source(name, shard.start, len(shard.values_N)))
                safe_set_local_optimizer_state(parameter, held, moment)
            elif stage:
                mapping = parameter._hp_mapping
                if mapping is not None:
                    held = mapping.get_hp_fragment(moment)
                    held.copy_(source(name, mapping.lp_fragment_address.start, held.numel()))
            else:
                engine.optimizer.state[parameter][moment].copy_(source(name, 0, parameter.numel()).view_as(parameter))


def held_bytes(engine: Any) -> dict[str, int]:
    """Bytes of weights, gradients, moments and ZeRO's copy of the weights on this worker, between backward and step.

    A tensor that shares another's memory does not count again.
    """
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    parameters = list(engine.module.parameters())
    weights = [p.ds_tensor if stage == 3 else p.data for p in parameters]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if stage:
        gradients += [g for group in optimizer.averaged_gradients.values() for g in group or () if g is not None]
    attribute = "fp32_partitioned_groups_flat" if stage == 3 else "single_partition_of_fp32_groups"
    copies = getattr(optimizer, attribute) if stage else []
    moments = [t for state in _base(engine).state.values() for t in state.values() if torch.is_tensor(t)]
    seen: set[int] = set()
    return {
        name: sum(_fresh(t, seen) for t in tensors)
        for name, tensors in (("weights", weights), ("gradients", gradients), ("optimizer", [*copies, *moments]))
    }


def _fresh(tensor: torch.Tensor, seen: set[int]) -> int:
    """Bytes of the tensor; 0 if an earlier one has the same memory."""
    if tensor.data_ptr() in seen:
        return 0
    seen.add(tensor.data_ptr())
    return tensor.numel() * tensor.element_size()


def _make_moments(engine: Any, step: int) -> None:
    """Create the state that the optimizer would create at its first step."""
    base, stage = _base(engine), engine.zero_optimization_stage()
    held = [p for group in base.param_groups for p in group["params"]]
    if stage == 3:
        held = engine.optimizer.fp32_partitioned_groups_flat
    for parameter in held:
        counter: Any = step
        if type(base).__name__ != "DeepSpeedCPUAdam":
            # torch's fused AdamW counts on the parameter's device, the other on the host.
            counter = torch.tensor(float(step), device=parameter.device if base.defaults.get("fused") else None)
        base.state[parameter] = {"step": counter} | {m: torch.zeros_like(parameter.data) for m in MOMENTS}
    if stage in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _base(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that DeepSpeed has wrapped."""
    base: torch.optim.Optimizer = engine.optimizer
    if engine.zero_optimization_stage():
        base = engine.optimizer.optimizer
    return base


def _stage3_shard(name: str, parameter: Any, held: torch.Tensor, rank: int) -> Iterator[ZeroShard]:
    """This worker's part: ZeRO-3 cuts equal parts; the last ones may be padded, or be padding only (no shard)."""
    start = rank * held.numel()
    num = min(held.numel(), parameter.ds_numel - start)
    if num > 0:
        yield ZeroShard(name, start, held.flatten()[:num])
