"""Two drivers on one run: the second is told who works there, and a dead one is in nobody's way."""

import json
import multiprocessing
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.leases import elsewhere, here, taken
from support.two_drivers import drive

from data import lease as leases
from data.lease import LEASE, Fence, Held, LeaseLost
from data.shards import Output
from data.storage import Storage

ROOT = Path(__file__).resolve().parent.parent
# A shell's background job ignores Ctrl-C, and so would what it starts.
HOLDER = "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler); "
HOLDER += "from data.storage import Storage; from jobs.runner.lease import held\n"
HOLDER += "with held(Storage(sys.argv[1]), 'holder'): print('held', flush=True); time.sleep(60)"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_driver_is_in_nobodys_way(tmp_path: Path, number: signal.Signals) -> None:
    file = Storage(str(tmp_path / LEASE))
    with subprocess.Popen([sys.executable, "-c", HOLDER, file.uri], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(Held, match="is in use by holder"):
            taken(file, here())
        process.send_signal(number)
        process.wait(30)
    _, waited = taken(file, here())
    assert waited == 0


def test_the_fence_travels_with_a_pipelines_output(tmp_path: Path) -> None:
    fence = Fence(str(tmp_path / LEASE), "mine")
    with leases.fenced(fence):
        output = Output(str(tmp_path / "rows"), "")
    assert output.fence == fence
    assert output.pieces.path.endswith("rows.pieces/mine")
    output.require_owner()
    Storage(fence.uri).write_bytes(elsewhere().to_bytes())
    with pytest.raises(LeaseLost):
        output.require_owner()


@pytest.mark.slow
@pytest.mark.case("A3: two runs at once")
@pytest.mark.parametrize("where", ["disk", "s3"])
def test_of_two_drivers_at_once_one_works(where: str, s3: str, tmp_path: Path) -> None:
    """Ten times: exactly one works, the other is told who does, and all results are equal."""
    times, spawn = 10, multiprocessing.get_context("spawn")
    place, barrier = str(tmp_path) if where == "disk" else f"{s3}/two", spawn.Barrier(2)
    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    drivers = [spawn.Process(target=drive, args=(place, barrier, str(log), times)) for log in logs]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(300)
    assert [driver.exitcode for driver in drivers] == [0, 0]
    pairs = list(zip(*(log.read_text().splitlines() for log in logs), strict=True))
    assert [sorted(line.partition(" ")[0] for line in pair) for pair in pairs] == [["told", "worked"]] * times
    assert len({line for pair in pairs for line in pair if line.startswith("worked")}) == 1
    pids = [driver.pid for driver in drivers]
    for pair in pairs:
        (told,) = (number for number in (0, 1) if pair[number].startswith("told"))
        assert f"(process {pids[1 - told]})" in pair[told]
    left = [run / "demo" / LEASE for run in map(Storage(place).__truediv__, map(str, range(times)))]
    assert not any(lease.exists() for lease in left)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.case("A3: two runs at once")
def test_of_two_commands_at_once_one_works(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.prepare", "jobs/presets/demo.yaml", "rows.lab.num_rows=20000"]
    command += [f"storage={tmp_path}", "ray.num_cpus=2", "ray.object_store_mb=100"]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(subprocess.run, command, cwd=ROOT, capture_output=True, text=True) for _ in range(2)]
    done = sorted((run.result() for run in runs), key=lambda process: process.returncode)
    assert [process.returncode for process in done] == [0, 1], [process.stderr for process in done]
    assert len(done[1].stderr.strip().splitlines()) == 1
    assert "is in use by python -m jobs.prepare of" in done[1].stderr
    assert json.loads(done[0].stdout.splitlines()[-1])["stages"]["rows"]["counts"]["lab"]["read"] == 20000
    assert not (tmp_path / "demo" / LEASE).exists()
