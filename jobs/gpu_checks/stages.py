"""All stages of a run on the synthetic world by `python -m jobs.run`, with a random Llama of a wanted size."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.connect import REPOSITORY
from data.printable import printable
from data.run_layout import read_manifest
from data.storage import Storage
from jobs.gpu_checks.checks import CheckFailed
from jobs.gpu_checks.sizes import LlamaSize
from jobs.gpu_checks.target import Target
from jobs.runner.stage import log

PRESET = "jobs/presets/demo.yaml"
LEARNERS = ("base.pretrain", "predictor.learner", "policy.learner", "bootstrap.learner")
NAMES = (
    *("rows", "base", "predictor", "annotated", "policy"),
    *(f"bootstrap-1/{name}" for name in ("samples", "rated", "selected", "policy", "promotion")),
    "report",
)
GRACE_S = 30.0
"""So long may a command that is stopped take to end."""
SMALL_WORLD = (
    "rows.lab.num_rows=300",
    "rows.lab.rated_share=0.3",
    "predictor.learner.epochs=1",
    "policy.learner.epochs=1",
    "sampling.max_tokens=24",
    "bootstrap.num_prompts=20",
    "bootstrap.leading_at_least=0",
    "bootstrap.num_questions=1",
    # What a model that has hardly been trained answers decides nothing here.
    "bootstrap.max_steering_fall=null",
    "bootstrap.max_quality_fall=null",
    "bootstrap.max_diversity_fall=null",
    "evaluate.num_questions=2",
    "evaluate.num_dialogues=0",
)


def words(target: Target, size: LlamaSize, storage: Path) -> list[str]:
    """The settings of the run, over those of the demo."""
    pool = f"{{num_actors: 1, gpus_per_actor: {int(target.on_gpu)}, batch_rows: 128, dtype: {target.dtype}}}"
    shape = size.shape.model_dump() | {"vocab_size": 1024, "max_tokens": 1024}
    found = [f"storage={storage}", "run=smoke", *SMALL_WORLD, f"base.small={json.dumps(shape)}"]
    found += [f"{name}.pool={pool}" for name in ("annotate", "sampling")]
    learner = {"num_workers": 1, "use_gpu": str(target.on_gpu).lower(), "precision": target.precision}
    if target.on_gpu:
        # A hundred times as many weights learn at a tenth of the rate.
        learner |= {"learning_rate": 3e-4, "pack_tokens": 4096}
    return found + [f"{path}.{name}={value}" for path in LEARNERS for name, value in learner.items()]


def run_stages(target: Target, size: LlamaSize, folder: Path) -> str:
    """Run them all; raises CheckFailed with the stage that did not end and what the command said last."""
    command = [sys.executable, "-m", "jobs.run", PRESET, *words(target, size, folder)]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    said: list[str] = []
    try:
        assert process.stdout is not None
        with (folder / "stages.log").open("w") as file:
            for line in process.stdout:
                file.write(line)
                said = [*said[-20:], line.strip()]
                if line.startswith("["):  # of the run's own stages: the rest is in the log
                    log(f"  {line.rstrip()}")
        code = process.wait()
    finally:
        _end(process)
    seconds = stage_seconds(folder / "smoke")
    if code:
        failed = next((name for name in NAMES if name not in seconds), "the end")
        killed = f"killed by signal {-code}, after " if code < 0 else ""
        raise CheckFailed(f"stage {failed}: {killed}{printable(last_words(said), 240)}")
    return ", ".join(f"{name} {spent:.0f} s" for name, spent in grouped(seconds))


def _end(process: "subprocess.Popen[str]") -> None:
    """Nothing, if it has ended."""
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stage_seconds(run: Path) -> dict[str, float]:
    """Stage -> seconds, of those that are finished."""
    manifests = {name: read_manifest(Storage(str(run / name))) for name in NAMES}
    return {name: manifest.seconds for name, manifest in manifests.items() if manifest}


def grouped(seconds: dict[str, float]) -> Iterator[tuple[str, float]]:
    """The seconds of the stages, those of the bootstrap round together."""
    together: dict[str, float] = {}
    for name, spent in seconds.items():
        short = name.partition("-")[0]
        together[short] = together.get(short, 0.0) + spent
    yield from together.items()


def last_words(said: Sequence[str]) -> str:
    """The last line that is a sentence of the command's own, else the last of all."""
    own = [line for line in said if line.startswith("python -m ")]
    return (own or [line for line in said if line] or ["it said nothing"])[-1]
