"""One of the workers that hold a model sharded (ZeRO stage 3) and save it together, in a group with a short limit.

python tests/support/export_workers.py RANK MEETING '{"base": ..., "target": ..., ...}'; prints JSON: the error that it
ended with, the files that it wrote, the most bytes of weights that it got and held at a time, and by how much its
memory grew at most.
"""

import contextlib
import json
import os
import signal
import sys
import weakref
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import time

import torch
import torch.distributed as dist
from transformers.integrations import HfDeepSpeedConfig

from actors.modeling.lora import add_adapters, merged
from actors.modeling.policy import PolicyTask
from actors.modeling.settings import LoraSettings
from actors.training import export_plan, weight_parts
from actors.training.checkpoint import Checkpoint
from actors.training.checkpointer import Checkpointer
from actors.training.collectives import AgreedError, WorkerFailed
from actors.training.save_model import save_trained_model
from actors.training.settings import LearnerSettings, deepspeed_config, export_dtype
from actors.training.zero_shards import trained, weight_shards
from data.attributes import shipped
from data.storage import Storage

RANK, MEETING, WORDS = sys.argv[1:]
rank, words = int(RANK), json.loads(WORDS)
world = words.get("world", 2)
held: "list[weakref.ref[torch.Tensor]]" = []
written: list[str] = []
most = 0
turns, whole_file = weight_parts.WeightParts.turns, Storage.written


def measured(*arguments: Any) -> Iterator[Any]:
    """`WeightParts.turns`, and what of it is held at a time."""
    global most
    for found in turns(*arguments):
        held.extend(weakref.ref(values) for _, values in found)
        most = max(most, sum(values.nbytes for ref in held if (values := ref()) is not None))
        yield found


@contextlib.contextmanager
def slow(self: Storage) -> Iterator[str]:
    """`Storage.written` on slow storage, which may be full, or the end of this worker."""
    with whole_file(self) as path:
        yield path
        time.sleep(words.get("write_s", 0))
        if [rank, len(written)] == words.get("full"):
            raise OSError(28, "No space left on device")
        if [rank, len(written)] == words.get("kill"):
            time.sleep(1)  # the other one's first file is whole by now
            os.kill(os.getpid(), signal.SIGKILL)
    written.append(os.path.basename(self.path))


def resident_bytes(what: str) -> int:
    """Of this process: now (VmRSS), or the most since `forget_peak` (VmHWM)."""
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(what))


def forget_peak() -> int:
    """Returns what is resident now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return resident_bytes("VmRSS")


def engine() -> Any:
    """The model of `base`, with other values in its trained weights for each `seed` but 0."""
    lora = LoraSettings(rank=2) if words.get("lora") else None
    settings = LearnerSettings(num_workers=world, zero_stage=3, precision=words.get("precision", "fp32"), lora=lora)
    sharded = HfDeepSpeedConfig(deepspeed_config(settings))
    module: Any = PolicyTask(words["base"], shipped("lab"), "steerlm").build()
    if lora:
        add_adapters(module.model, lora, module.heads)
        sharded_one = next(p for p in module.parameters() if hasattr(p, "ds_tensor"))
        plain = [p for p in module.parameters() if not hasattr(p, "ds_tensor")]
        sharded_one.convert_to_zero_parameters(param_list=plain)  # as DeepSpeed's engine does
    for number, (_, parameter) in enumerate(trained(module)):
        if words.get("seed"):
            torch.manual_seed(words["seed"] + world * number + rank)
            parameter.ds_tensor.data.normal_()
    return SimpleNamespace(rank=rank, world=world, module=module, settings=settings, sharded=sharded)


def kept_weights(engine: Any) -> Checkpoint | None:
    """With `kept`, the folder of them: the weights as they are; the live ones then become others."""
    if not words.get("kept"):
        return None
    checkpointer = Checkpointer(Storage(words["kept"]), rank, world, 1)
    checkpointer.save(3, {"weights": weight_shards(engine.module, 3, rank, world)}, None)
    checkpointer.wait()
    dist.barrier()
    for _, parameter in trained(engine.module):
        parameter.ds_tensor.data.zero_()
    return Checkpoint(checkpointer.folder, 3)


def save_reference(engine: Any) -> None:
    """The whole model, gathered by DeepSpeed and saved by transformers."""
    module, dtype, state = engine.module, getattr(torch, export_dtype(engine.settings)), {}
    for name, parameter in module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            state[name] = parameter.detach().clone()
    state = merged(module, state) if engine.settings.lora else state
    if rank == 0:
        plain = {name: values.to(dtype) for name, values in state.items()}
        task.save(module, plain, words["reference"])


weight_parts.WeightParts.turns = measured  # type: ignore[assignment, method-assign]
Storage.written = slow  # type: ignore[method-assign]
export_plan.SHARD_BYTES = words["shard_bytes"]
export_plan.BATCH_BYTES = words["batch_bytes"]
os.environ.update(RANK=RANK, LOCAL_RANK=RANK, WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
torch.set_num_threads(1)
dist.init_process_group("gloo", f"file://{MEETING}", world_size=world, rank=rank)
import deepspeed  # noqa: E402, as in training: it looks for the group

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed("gloo", dist_init_required=False)
task, mine, said = PolicyTask(words["base"], shipped("lab"), "steerlm"), engine(), ""
dist.barrier()
for group in list(dist.distributed_c10d._world.pg_map):  # only now: a busy machine starts workers at unequal speed
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=words.get("limit_s", 60)), group)
if words.get("reference"):
    save_reference(mine)
kept, before = kept_weights(mine), forget_peak()
try:
    save_trained_model(task, mine, kept, Storage(words["target"]), 1, 1e-3)
except (AgreedError, WorkerFailed) as error:
    said = f"{type(error).__name__}: {error}"
grown = resident_bytes("VmHWM") - before
print(json.dumps({"error": said, "written": written, "most": most, "grown": grown}), flush=True)
dist.barrier()  # the file that the workers meet by is the other one's as well
os._exit(0)  # DeepSpeed's exit handlers have collectives of their own
