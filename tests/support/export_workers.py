"""A worker of two that hold a model sharded (ZeRO stage 3) and save it to slow storage, in a group with a short limit.

python tests/support/export_workers.py RANK PORT BASE TARGET SHARD_BYTES WRITE_S LIMIT_S; the first one prints JSON:
most bytes of gathered weights that it held at a time, and how many files were written.
"""

import json
import os
import sys
import time
import weakref
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import torch
import torch.distributed as dist
from transformers.integrations import HfDeepSpeedConfig

from actors.modeling.policy import PolicyTask
from actors.training import export_plan, save_model, shard_writer
from actors.training.settings import LearnerSettings, deepspeed_config
from data.attributes import shipped
from data.storage import Storage

held: "list[weakref.ref[torch.Tensor]]" = []
most = 0


def measured(engine: Any, group: Any, kept: Any) -> dict[str, torch.Tensor]:
    """`save_model._gathered`, and what is held after it."""
    global most
    found = gathered(engine, group, kept)
    held.extend(weakref.ref(tensor) for tensor in found.values())
    most = max(most, sum(tensor.nbytes for ref in held if (tensor := ref()) is not None))
    return found


def slow(tensors: dict[str, torch.Tensor], target: Storage) -> None:
    """`shard_writer._write` on slow storage: the file is in memory meanwhile."""
    time.sleep(float(WRITE_S))
    write(tensors, target)


RANK, PORT, BASE, TARGET, SHARD_BYTES, WRITE_S, LIMIT_S = sys.argv[1:]
gathered, write = save_model._gathered, shard_writer._write
save_model._gathered, shard_writer._write = measured, slow
export_plan.SHARD_BYTES = int(SHARD_BYTES)
os.environ.update(RANK=RANK, LOCAL_RANK=RANK, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=PORT)
torch.set_num_threads(1)
dist.init_process_group("gloo", f"tcp://127.0.0.1:{PORT}", world_size=2, rank=int(RANK))
import deepspeed  # noqa: E402, as in training: it looks for the group

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed("gloo", dist_init_required=False)
settings = LearnerSettings(num_workers=2, zero_stage=3, precision="fp32")
sharded = HfDeepSpeedConfig(deepspeed_config(settings))
task = PolicyTask(BASE, shipped("lab"), "steerlm")
engine: Any = SimpleNamespace(rank=int(RANK), module=task.build(), settings=settings)
dist.barrier()
for group in list(dist.distributed_c10d._world.pg_map):  # only now: a busy machine starts workers at unequal speed
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=float(LIMIT_S)), group)
save_model.save_trained_model(task, engine, None, Storage(TARGET), 1, 1e-3)
if RANK == "0":
    files = sum(name.endswith(".safetensors") for name in Storage(TARGET).names())
    print(json.dumps({"most": most, "files": files}), flush=True)
dist.barrier()  # the store that the other worker asks lives in the first one's process; Ray Train ends all at once
os._exit(0)  # DeepSpeed's exit handlers have collectives of their own
