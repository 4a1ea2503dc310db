"""What a pool takes, and what would hang: judged on given nodes, without Ray."""

import pytest

from cluster.preflight import ClusterNode, Demand, WouldHang, judged

LAPTOP = [ClusterNode({"CPU": 4.0})]
GPUS = [ClusterNode({"CPU": 8.0}, {"role": "cpu"}), *[ClusterNode({"CPU": 16.0, "GPU": 4.0}, {"role": "annotate"})] * 2]


def _demand(
    actors: int, cpus: float = 1, gpus: float = 0, least: int | None = None, setting: str = "annotate.pool"
) -> Demand:
    return Demand("annotate", least or actors, actors, cpus, gpus, setting)


@pytest.mark.parametrize(
    ("demand", "nodes", "line"),
    [
        (_demand(2), LAPTOP, "annotate: 2 actors x 1 CPU, 2 of 4 CPUs left for reading and writing"),
        (_demand(3), LAPTOP, "1 of 4 CPUs left"),
        (_demand(6, 0.5), LAPTOP, "6 actors x 0.5 CPU, 1 of 4 CPUs left"),
        (_demand(8, 2, 1), GPUS, "8 actors x 2 CPU + 1 GPU, 24 of 40 CPUs left"),
        (_demand(8, 0, 0.3), [ClusterNode({"CPU": 1.0, "GPU": 3.0})], "8 actors x 0 CPU + 0.3 GPU, 1 of 1 CPUs left"),
        (_demand(16, 1, 0, least=1), LAPTOP, "1 to 16 actors x 1 CPU (3 fit now), 1 of 4 CPUs left"),
    ],
)
def test_what_fits_is_logged(demand: Demand, nodes: list[ClusterNode], line: str) -> None:
    assert line in judged(demand, nodes, growing=False)


@pytest.mark.parametrize(
    ("demand", "nodes", "sentence"),
    [
        (
            _demand(4),
            LAPTOP,
            "they leave 0 of 4 CPUs for reading and writing, which need 1; set ray.num_cpus=5 (logical",
        ),
        (_demand(4), LAPTOP, "or annotate.pool.num_actors=3"),
        (_demand(1), [ClusterNode({"CPU": 1.0})], "set ray.num_cpus=2 (logical: more than the machine has is fine)"),
        (_demand(7), LAPTOP, "only 4 of 7 fit; set ray.num_cpus=8 or annotate.pool.num_actors=4"),
        (
            _demand(1, 8),
            LAPTOP,
            "no node can hold one of them (the largest has 4 CPU, 0 GPU); "
            "set ray.num_cpus=9 or annotate.pool.cpus_per_actor=1",
        ),
        (
            _demand(1, 1, 1),
            LAPTOP,
            "no node has a GPU; start Ray where there are GPUs or annotate.pool.gpus_per_actor=0",
        ),
        (_demand(1, 32, 4), GPUS, "no node can hold one of them (the largest has 16 CPU, 4 GPU)"),
        (
            _demand(1, 8, 8),
            GPUS,
            "no node has 8 GPUs for one of them (the largest has 16 CPU, 4 GPU), and a process is on one node; "
            "start nodes with more GPUs or annotate.pool.gpus_per_actor=4",
        ),
        (_demand(9, 2, 1), GPUS, "only 8 of 9 fit"),
        (_demand(1), [], "no node can hold one of them (the largest has 0 CPU, 0 GPU)"),
    ],
)
def test_what_would_hang_is_refused_with_the_fix(demand: Demand, nodes: list[ClusterNode], sentence: str) -> None:
    with pytest.raises(WouldHang) as refused:
        judged(demand, nodes, growing=False)
    assert sentence in str(refused.value)


def _group(workers: int, cpus: float = 1, gpus: float = 0, **labels: str) -> Demand:
    return Demand("train", workers, workers, cpus, gpus, "policy.learner", "worker", labels)


def test_training_workers_may_take_every_cpu() -> None:
    assert judged(_group(4), LAPTOP, growing=False) == "train: 4 workers x 1 CPU, of 4 CPUs"
    with pytest.raises(WouldHang, match=r"only 4 of 5 fit; set ray\.num_cpus=5 or policy\.learner\.num_workers=4"):
        judged(_group(5), LAPTOP, growing=False)
    with pytest.raises(WouldHang, match=r"no node has a GPU; .* or policy\.learner\.use_gpu=false"):
        judged(_group(1, 1, 1), LAPTOP, growing=False)


def test_only_nodes_with_the_labels_count() -> None:
    assert judged(_group(8, 2, 1, role="annotate"), GPUS, growing=False).startswith("train: 8 workers")
    with pytest.raises(
        WouldHang,
        match=r"no node has the labels role=train; "
        r"start nodes with `ray start --labels role=train` or policy\.learner\.labels={}",
    ):
        judged(_group(1, role="train"), GPUS, growing=False)
    with pytest.raises(WouldHang, match="only 8 of 9 fit"):
        judged(_group(9, 1, role="cpu"), GPUS, growing=False)


def test_a_pool_that_is_no_setting_names_none() -> None:
    with pytest.raises(WouldHang) as refused:
        judged(_demand(4, setting=""), LAPTOP, growing=False)
    assert "num_actors" not in str(refused.value)


def test_an_autoscaler_may_still_bring_what_is_missing() -> None:
    line = judged(_demand(1, 1, 1), LAPTOP, growing=True)
    assert (
        line == "annotate: 1 actors x 1 CPU + 1 GPU; waiting for the autoscaler to add nodes, "
        "because for now no node has a GPU"
    )


@pytest.mark.ray
def test_the_cluster_at_hand_is_asked(ray_cluster: object) -> None:
    from cluster.preflight import preflight

    assert preflight(_demand(2)) == "annotate: 2 actors x 1 CPU, 4 of 6 CPUs left for reading and writing"
