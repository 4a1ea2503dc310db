"""The nodes' reports, judged: every broken set-up gives the right line and remedy. Then the session's Ray, for real."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.checks import Finding, Unfit, examined, findings, require_fit
from cluster.needs import Needs
from cluster.nodes import Report
from cluster.preflight import ClusterNode, Demand

VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0"}
GIB = 2**30
NODES = [ClusterNode({"CPU": 4.0}), ClusterNode({"CPU": 4.0})]
NEEDS = Needs(
    "demo",
    "s3://bucket/runs",
    (Demand("annotate.pool", 2, 2, 1, 0, "annotate.pool"),),
    {},
    {"base.model": "some/model"},
)


def report(node: str, **changes: object) -> Report:
    good = Report(
        node,
        dict(VERSIONS),
        clock=1000.0,
        round_trip_s=0.5,
        shared_memory_bytes=8 * GIB,
        shared_memory_free=6 * GIB,
        object_store_bytes=4 * GIB,
    )
    return replace(good, **changes)  # type: ignore[arg-type]


def bad(*reports: Report, needs: Needs = NEEDS, growing: bool = False) -> list[Finding]:
    return [f for f in findings(reports, needs, NODES, growing) if not f.good]


def test_a_good_cluster_has_nothing_to_fix() -> None:
    assert bad(report("10.0.0.1"), report("10.0.0.2")) == []


@pytest.mark.parametrize(
    ("changes", "what", "said", "remedy"),
    [
        ({"errors": {"answer": "no answer within 120 s"}}, "nodes", "10.0.0.2: no answer within 120 s", "ray status"),
        (
            {"versions": VERSIONS | {"torch": "2.12.0"}},
            "torch",
            "2.13.0 on 10.0.0.1; 2.12.0 on 10.0.0.2",
            "requirements-cuda.lock",
        ),
        (
            {"versions": VERSIONS | {"torch": "not installed"}},
            "torch",
            "not installed on 10.0.0.2",
            "requirements-cuda.lock",
        ),
        ({"clock": 1030.0}, "clocks", "10.0.0.2: 30 s from 10.0.0.1", "chrony"),
        (
            {"shared_memory_bytes": 64 * 2**20, "shared_memory_free": 64 * 2**20},
            "shared memory",
            "0.1 GiB for an object store of 4.0 GiB",
            "--shm-size",
        ),
        ({"shared_memory_free": GIB}, "shared memory", "1.0 GiB of 8.0 GiB free", "remove what fills /dev/shm"),
        ({"gpus_counted": 4.0, "gpus_seen": 0}, "GPUs", "Ray counts 4, the driver shows 0", "--gpus all"),
        (
            {"errors": {"port 10.0.0.1:6380": "timed out"}},
            "ports between nodes",
            "10.0.0.2: timed out",
            "security group",
        ),
        (
            {"errors": {"storage": "Access Denied"}},
            "storage s3://bucket/runs",
            "10.0.0.2: Access Denied",
            "right to write",
        ),
        (
            {"errors": {"base.model": "401 Client Error"}},
            "base.model=some/model",
            "10.0.0.2: 401 Client Error",
            "HF_TOKEN",
        ),
    ],
)
def test_each_kind_of_trouble_has_its_line_and_its_remedy(
    changes: dict[str, object], what: str, said: str, remedy: str
) -> None:
    [finding] = bad(report("10.0.0.1"), report("10.0.0.2", **changes))
    assert finding.what == what
    assert said in finding.found
    assert remedy in finding.remedy


def test_a_slow_answer_is_no_wrong_clock() -> None:
    assert bad(report("10.0.0.1"), report("10.0.0.2", clock=1030.0, round_trip_s=31.0)) == []


def test_too_few_cpus_name_the_setting_and_an_autoscaler_may_still_bring_them() -> None:
    needs = replace(NEEDS, demands=(Demand("policy.learner", 16, 16, 1, 0, "policy.learner", "worker"),))
    [finding] = bad(report("10.0.0.1"), needs=needs)
    assert "only 8 of 16 fit" in finding.found
    assert finding.remedy == "set ray.num_cpus=16 or policy.learner.num_workers=8"
    assert bad(report("10.0.0.1"), needs=needs, growing=True) == []


@pytest.mark.ray
def test_a_real_cluster_is_asked_and_leaves_nothing_behind(ray_cluster: object, tmp_path: Path, tiny_base: str) -> None:
    needs = Needs(
        "demo",
        str(tmp_path),
        (Demand("annotate.pool", 2, 2, 1, 0, "annotate.pool"),),
        {"base.texts": str(tmp_path)},
        {"base.model": tiny_base},
    )
    assert [f for f in examined(needs) if not f.good and f.stops] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_what_is_missing_there_is_refused_in_one_sentence(ray_cluster: object, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    needs = Needs(
        "demo",
        str(file),
        (),
        {"rows.sources.0.uri": str(tmp_path / "rows.jsonl")},
        {"base.model": str(tmp_path / "model")},
    )
    with pytest.raises(Unfit) as refused:
        require_fit(needs)
    for part in (
        f"storage {file}",
        "rows.sources.0.uri: nothing at",
        "base.model=",
        "give every node the right to write",
        "python -m cluster.doctor",
    ):
        assert part in str(refused.value)
