"""The preset `real` with next to nothing of everything: its whole path, an adapter of it, what the endpoint serves."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.real_model import NOT_INSTALLED
from support.tiny_run import REPOSITORY

from actors.modeling.policy import Policy
from actors.scoring.predictor import Predictor
from actors.scoring.rater import Rater
from data.conversation import Conversation, Message
from serve.locate import locate

pytestmark = [pytest.mark.slow, NOT_INSTALLED]
LITTLE = [
    *("rows.sources.0.limit=300", "rows.sources.1.limit=24", "rows.sources.2.limit=12", "rows.max_rejected=0.2"),
    *("predictor.folds=2", "predictor.learner.max_tokens=128", "annotate.max_tokens=128"),
    *(
        "policy.learner.max_tokens=256",
        "policy.label_probes=16",
        "policy.source_weights={}",
        "policy.validation_share=0.2",
    ),
    *("sampling.max_tokens=12", "evaluate.num_questions=2", "evaluate.num_values=2", "evaluate.num_combinations=0"),
    *("evaluate.num_resamples=100", "compare.limit=3", "compare.baselines=[zero_shot,numbers]"),
]


def command(module: str, *words: str) -> dict[str, Any]:
    """The last line of what the command prints."""
    line = [sys.executable, "-m", module, "jobs/presets/real.yaml", *LITTLE, *words]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_whole_path_and_its_adapter(real_data: Path, tmp_path: Path) -> None:
    ended = command("jobs.run", f"storage={tmp_path}")
    assert ended["machine"]["flags"]
    assert {"quality", "toxicity"} < ended["predictor"].keys()
    for stage in ("policy", "compare/numbers/policy"):
        assert ended["stages"][stage]["training"]["label_use"].keys() > {"verbosity"}
    for name in ("zero_shot", "numbers"):
        assert ended["stages"][f"compare/{name}/report"]["steering"].keys() == ended["steering"].keys()
    assert ended["stages"]["compare/preference/report"]["preferred"]["n"] == 3
    assert ended["steering"]["verbosity"]["movement"]["deviation"] > 0
    assert ended["witnesses"]["hatesonar"]["curves"]["toxicity"]["movement"]["deviation"] > 0
    page = (tmp_path / "real" / "report" / "report.html").read_text()
    assert "trained with numbers in a label line" in page

    adapter = command(
        "jobs.export", f"storage={tmp_path}", "what=adapter", f"to={tmp_path}/small", "license=apache-2.0"
    )
    assert adapter["kept"] > 0.99
    assert adapter["weights_bytes"] < 10e6
    card = (tmp_path / "small" / "README.md").read_text()
    assert "license Apache" in card
    assert "## Limits" in card
    served = locate(str(tmp_path / "small"), str(tmp_path / "served"))
    assert served.predictor
    talk = Conversation("x", "", (Message("user", "Why?"), Message("assistant", "Because the sky is blue.")), id="a")
    scores = [
        Rater(Predictor.load(folder), 256, 256).rate([talk])[0]
        for folder in (served.predictor, str(tmp_path / "real" / "predictor" / "model"))
    ]
    assert np.abs(scores[0] - scores[1]).max() < 1e-4
    one, two = Policy.load(served.uri), Policy.load(str(tmp_path / "real" / "policy" / "model"))
    asked = [Message("user", "Why is the sky blue?")]
    assert one.prompt("", asked, {"verbosity": 0}) == two.prompt("", asked, {"verbosity": 0})
