"""Annotation and training across two hosts that share a network and an S3 server; their link is cut for 20 s meanwhile.

`make cluster-test`; skipped with the reason where network namespaces are not permitted.
"""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from support import tiny_run
from support.network_cluster import TwoHosts, permitted

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CUT_S = 20
WORDS = [
    *tiny_run.TINY,
    *("rows.lab.num_rows=3000", "annotate.pool.batch_rows=32", "annotate.pool.cpus_per_actor=2", "bootstrap.rounds=0"),
    *("policy.learner.cpus_per_worker=2",),
]
"""Two CPUs each: one actor and one worker fit on a host of three, so both hosts must do their part."""

IDS = """
import collections, json, sys
from data.storage import Storage
rows = [i for table in Storage(sys.argv[1]).tables() for i in table.column("id").to_pylist()]
print(json.dumps([len(rows), len(set(rows))]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_a_run_across_two_hosts_outlives_a_cut_of_the_link(tmp_path: Path) -> None:
    if reason := permitted():
        pytest.skip(reason)
    with TwoHosts(tmp_path) as hosts:
        bucket = hosts.run(0, sys.executable, "-c", "import fsspec; fsspec.filesystem('s3').mkdir('bucket')")
        assert bucket.wait(60) == 0, bucket.communicate()[0]
        process = hosts.run(
            0, sys.executable, "-m", "jobs.run", "jobs/presets/demo.yaml", "storage=s3://bucket/runs", *WORDS
        )
        said, cut_at, places = "", 0.0, set()
        assert process.stdout
        for line in process.stdout:
            said += line
            places |= {address for address in hosts.addresses if f"ip={address}" in line}
            if not cut_at and line.startswith("annotate:") and " 0/" not in line:
                cut_at = time.monotonic()
                hosts.link(up=False)
                time.sleep(CUT_S)
                hosts.link(up=True)
        assert process.wait(60) == 0, said[-4000:]
        assert cut_at, "the link was cut while rows were annotated"
        assert places == set(hosts.addresses), "workers on both hosts"
        counted = hosts.run(0, sys.executable, "-c", IDS, "s3://bucket/runs/demo/annotated/rows")
        counts = counted.communicate(timeout=60)[0].strip().splitlines()[-1]
    print(f"\nthe link was down for {CUT_S} s; rows annotated, different ones: {counts}")
    read = next(json.loads(line) for line in said.splitlines() if line.startswith("{"))["stages"]["rows"]
    lab = read["counts"]["lab"]
    # The world may write a conversation twice.
    assert lab["read"] == 3000 == read["rows"] + lab.get("duplicate", 0) + lab.get("merged", 0)
    assert json.loads(counts) == [read["rows"]] * 2
