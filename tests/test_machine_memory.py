"""What a process on a CPU takes of its machine's memory: its share, beside others like it."""

from pathlib import Path

import pytest
from support.stages import demo_run

from actors.generation.kv_budget import HOST_SHARE, KVBudget
from actors.kernels import machine_memory
from actors.kernels.machine_memory import ALONE, MachineShare, host_bytes
from actors.modeling.model_memory import GIB, device_bytes
from actors.modeling.policy import Policy
from data.storage import Storage
from jobs.pipelines.sample import sampler
from serve.deploy import replica_share
from serve.settings import ServeSettings


@pytest.mark.parametrize(
    ("share", "node_cpus", "num_here"),
    [
        (ALONE, 2, 1),
        (MachineShare(3, 1), None, 3),
        (MachineShare(2, 1), 2, 2),
        (MachineShare(32, 2), 8, 4),
        (MachineShare(32, 0), 8, 32),
        (MachineShare(32, 0.1), 0.3, 3),
        (MachineShare(3, 4), 2, 1),
    ],
)
def test_a_machine_has_no_more_processes_than_it_has_cpus_for(
    share: MachineShare, node_cpus: float | None, num_here: int
) -> None:
    assert share.num_here(node_cpus) == num_here


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine_memory, "CGROUP_LIMIT", str(limit))
    whole = host_bytes()
    limit.write_text("max\n")
    assert host_bytes() == whole
    limit.write_text(f"{GIB}\n")
    assert host_bytes() == GIB
    assert device_bytes(None, False, 4) == GIB // 4, "the plan counts the same"


def test_engines_of_two_actors_take_no_more_than_one_alone(tiny_policy: str) -> None:
    model = Policy.load(tiny_policy).model
    alone = KVBudget.of(model, None, ALONE)
    assert alone.total_bytes == int(host_bytes() * HOST_SHARE)
    two = KVBudget.of(model, None, MachineShare(2, 1))
    assert 2 * two.total_bytes <= alone.total_bytes
    assert "50% of this process's share of the memory" in str(two)
    assert KVBudget.of(model, None, MachineShare(2, 1, memory_gib=1)).total_bytes == GIB // 2
    assert KVBudget.of(model, 0.25, MachineShare(2, 1)).total_bytes == GIB // 4, "as set"


def test_an_actor_s_share_is_that_of_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for words in (["sampling.pool.num_actors=3"], ["sampling.pool.memory_gib=5"]):
        run = demo_run(tmp_path, *words)
        share, pool = sampler(run, Storage(str(tmp_path)), 1.0)["share"], run.preset.sampling.pool
        assert isinstance(share, MachineShare)
        assert share.num_bytes() == device_bytes(pool.memory_gib, False, pool.num_actors)


def test_a_replica_has_the_whole_machine_unless_there_are_several() -> None:
    assert replica_share(ServeSettings(), 1).num_bytes() == host_bytes()
    assert replica_share(ServeSettings(max_replicas=2), 3).num_bytes() == host_bytes() // 6
