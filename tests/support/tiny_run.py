"""The demo preset made so small that all of its stages take seconds, run as people run it: as a command."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from data.storage import Storage

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = [
    "rows.lab.num_rows=300",
    "rows.lab.rated_share=0.3",
    "base.small={hidden_size: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, intermediate_size: 64, "
    "vocab_size: 600, max_tokens: 512}",
    "base.pretrain.epochs=1",
    "predictor.learner.epochs=1",
    "policy.learner.epochs=1",
    "sampling.max_tokens=24",
    "bootstrap.num_prompts=20",
    "bootstrap.leading_at_least=0",
    "bootstrap.num_questions=1",
    "bootstrap.max_steering_fall=null",
    "bootstrap.max_quality_fall=null",
    "bootstrap.max_diversity_fall=null",
    "evaluate.num_questions=2",
]


def command(storage: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "jobs.run", "jobs/presets/demo.yaml", f"storage={storage}", *TINY, *more]


def run(storage: Path, *more: str) -> tuple[dict[str, Any], str]:
    """The last line's JSON, and everything on stdout."""
    done = subprocess.run(command(storage, *more), cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


def ids_of(folder: Storage) -> list[str]:
    """All row ids in a folder, sorted."""
    return sorted(i for table in folder.tables() for i in table.column("id").to_pylist())
