"""Two drivers that start the same run at the same moment, again and again; for processes of their own."""

import hashlib
from multiprocessing.synchronize import Barrier
from pathlib import Path

from support.stages import demo_run

from data.lease import Held
from jobs.prepare import STAGE
from jobs.runner.lease import held, lease_of
from jobs.runner.stage import perform


def drive(place: str, barrier: Barrier, log: str, times: int) -> None:
    """Start the run `place`/N/demo for each N; write a line each time: what came of it."""
    with open(log, "w") as file:
        for number in range(times):
            run = demo_run(Path("unused"), f"storage={place}/{number}", "rows.lab.num_rows=50")
            barrier.wait(120)
            try:
                with held(lease_of(run.root), "python -m jobs.run"):
                    perform(run, STAGE)
                    rows = run.folder("rows") / "rows"
                    content = b"".join(rows.fs.cat_file(path) for path in rows.files())
                    barrier.wait(120)  # the other has tried by now
                print("worked", hashlib.sha256(content).hexdigest(), file=file, flush=True)
            except Held as told:
                barrier.wait(120)
                print("told", told, file=file, flush=True)
