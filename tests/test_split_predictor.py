"""A predictor in two parts gives the scores of a whole one; a part that dies ends all, and none is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from support.tiny_decoders import FAMILIES, save_decoder
from transformers import Starcoder2Config, Starcoder2ForCausalLM

from actors.kernels.devices import CPU
from actors.modeling.model_part import ModelPart
from actors.modeling.regressor import PredictorTask
from actors.modeling.settings import HeadsSettings
from actors.scoring.annotator import Annotator
from actors.scoring.part_processes import PartProcesses, PartStart
from actors.scoring.predictor import Predictor
from actors.scoring.rater import Rater
from actors.scoring.split_predictor import SplitPredictor
from data.attributes import shipped
from data.conversation import Conversation, to_table
from data.counters import counters_of
from data.errors import UserError
from data.lab import Lab, LabSettings

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = shipped("lab")
ENDS_S = 20
"""A part's end is noticed in milliseconds; the rest is for a machine that does much else."""
RATES = """
import sys

import numpy as np
import psutil

from actors.scoring.part_processes import PartPack
from actors.scoring.rater import Rater
from actors.scoring.split_predictor import SplitPredictor
from data.lab import Lab, LabSettings

predictor = SplitPredictor.load_parts(sys.argv[1], 2, num_threads=1)
print(*(child.pid for child in psutil.Process().children()), flush=True)
rows = list(Lab(LabSettings(num_rows=40)).rows())
if sys.argv[2:]:
    predictor.others.tell(PartPack([np.full(9, 10**6)], [np.array([8])], None))
while True:
    Rater(predictor, 512, 256).rate(rows)
"""
"""Rates for ever in two parts; with a second word, the other part is first told of a token that does not exist."""
STARTS = """
import sys

from actors.scoring import part_deaths
from actors.scoring.split_predictor import SplitPredictor
from data.errors import UserError

part_deaths.MOST = 1
try:
    SplitPredictor.load_parts(sys.argv[1], 2, num_threads=1)
except UserError as error:
    print(error)
"""
"""Loads where one death is too many."""
FAILS = """
import sys
import time

import numpy as np

from actors.scoring import part_processes
from actors.scoring.part_processes import PartPack
from actors.scoring.split_predictor import SplitPredictor

part_processes.GRACE_S = part_processes.SETTLE_S = 0.2
predictor, (right, wrong) = SplitPredictor.load_parts(sys.argv[1], 2, num_threads=1), (np.full(9, 5), np.full(9, 10**6))
if sys.argv[2] == "other":
    number = predictor.others.tell(PartPack([wrong], [np.array([8])], None))
for ids in (wrong, right, right):
    try:
        if sys.argv[2] == "other":
            predictor.others.wait_until_begun(number)
        predictor.score([ids], [np.array([8])])
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    time.sleep(1)
print("and lives")
"""
"""Scores a pack with a token that does not exist, in both parts or in the other one, and then two more."""


def rows() -> list[Conversation]:
    found = list(Lab(LabSettings(num_rows=36)).rows())
    assert {row.num_answers for row in found} >= {1, 2, 3}, "several turns each"
    return found


@contextmanager
def split(folder: str, **options: object) -> Iterator[SplitPredictor]:
    predictor = SplitPredictor.load_parts(folder, 2, num_threads=1, **options)  # type: ignore[arg-type]
    try:
        yield predictor
    finally:
        predictor.close()


def predictor_of(base: str, folder: Path, heads: HeadsSettings | None = None) -> str:
    """With biases, where the model has some, that are not 0."""
    task = PredictorTask(base, SCHEMA, "steerlm", layer_heads=heads)
    module = task.build()
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        if name.endswith(".bias") or name.endswith("score.weight"):
            torch.nn.init.normal_(parameter, std=0.2)
    task.save(module, module.state_dict(), str(folder / "predictor"))
    return str(folder / "predictor")


@pytest.fixture
def starcoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bias in every layer, those whose outputs are added among them."""
    family = (Starcoder2ForCausalLM, Starcoder2Config, {"use_bias": True, "sliding_window": None})
    monkeypatch.setitem(FAMILIES, "starcoder2", family)


def require_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert np.ptp(np.concatenate(expected)) > 0.1, "scores that differ"
    for own_SA, expected_SA in zip(found, expected, strict=True):
        np.testing.assert_allclose(own_SA, expected_SA, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "starcoder2"])
def test_two_parts_give_the_scores_of_a_whole_predictor(
    family: str, tiny_base: str, tmp_path: Path, starcoder: None
) -> None:
    folder = predictor_of(save_decoder(family, tiny_base, str(tmp_path / "base")), tmp_path)
    whole = Predictor.load(folder, num_threads=1)
    with split(folder) as predictor:
        num = sum(p.numel() for p in predictor.module.parameters())
        require_same(Rater(predictor, 1024, 512).rate(rows()), Rater(whole, 1024, 512).rate(rows()))
    assert num < 0.8 * sum(p.numel() for p in whole.module.parameters()), "a part, and embeddings"


def test_heads_on_several_layers_and_no_packing(tiny_base: str, tmp_path: Path) -> None:
    folder = predictor_of(tiny_base, tmp_path, HeadsSettings(layers=(1, 2), readings=("end", "mean")))
    whole = Rater(Predictor.load(folder, num_threads=1, packing=False), 1024, 512).rate(rows())
    with split(folder, packing=False) as predictor:
        require_same(Rater(predictor, 1024, 512).rate(rows()), whole)


def test_an_annotator_in_two_parts_gives_the_rows_and_counters_of_a_whole_one(tiny_base: str, tmp_path: Path) -> None:
    folder, table = predictor_of(tiny_base, tmp_path), to_table(rows(), SCHEMA)
    arguments = (folder, SCHEMA, "f", 512, 256, "float32", 1)
    whole = Annotator(*arguments)(table)
    annotator = Annotator(*arguments, tensor_parallel=2)
    assert isinstance(annotator.rater.predictor, SplitPredictor)
    parts = annotator(table)
    annotator.rater.predictor.close()
    assert counters_of(parts.schema) == pytest.approx(counters_of(whole.schema), abs=1e-3)
    for name in ("id", "messages", "predictor", "truncated", "tokens"):
        assert parts.column(name) == whole.column(name)
    for own, expected in zip(parts.column("predicted").to_pylist(), whole.column("predicted").to_pylist(), strict=True):
        for own_A, expected_A in zip(own, expected, strict=True):
            assert own_A == pytest.approx(expected_A, abs=1e-5)


@contextmanager
def rating(folder: str, tmp_path: Path, *words: str) -> "Iterator[tuple[subprocess.Popen[str], int]]":
    """A process that rates in two parts, in mid-work, and the pid of the other part."""
    command, environ = [sys.executable, "-c", RATES, folder, *words], os.environ | {"TMPDIR": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout
        other = int(process.stdout.readline() or 0)
        assert other, (tmp_path / "log").read_text()
        time.sleep(0.5)
        yield process, other
    finally:
        process.kill()
        process.communicate()


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_ended(pid: int) -> None:
    end = time.monotonic() + ENDS_S
    while runs(pid):
        assert time.monotonic() < end, f"process {pid} is left behind"
        time.sleep(0.05)


def test_a_killed_part_ends_the_process_with_a_sentence(tiny_predictor: str, tmp_path: Path) -> None:
    with rating(tiny_predictor, tmp_path) as (process, other):
        os.kill(other, signal.SIGKILL)
        assert process.wait(ENDS_S) == 1
    said = (tmp_path / "log").read_text()
    assert "part 2 of 2 of the predictor on cpu failed: its process was ended by SIGKILL" in said
    assert "its rows are rated again" in said
    log, deaths = sorted(path.name for path in tmp_path.iterdir())
    assert (log, deaths.startswith("steerlm-deaths-")) == ("log", True), "nothing of the meeting"
    command, environ = [sys.executable, "-c", STARTS, tiny_predictor], os.environ | {"TMPDIR": str(tmp_path)}
    again = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    assert again.stdout.startswith(
        "parts of the predictor died 1 times on a machine, so it is not started there again; the last time part 2 of 2 "
        "of the predictor on cpu failed: its process was ended by SIGKILL"
    )


def test_a_part_that_fails_is_an_error_with_its_reason(tiny_predictor: str, tmp_path: Path) -> None:
    with rating(tiny_predictor, tmp_path, "broken") as (process, other):
        assert process.wait(ENDS_S) == 1
        wait_until_ended(other)
    said = (tmp_path / "log").read_text()
    assert "RuntimeError: part 2 of 2 of the predictor on cpu failed: IndexError: index out of range" in said


@pytest.mark.parametrize("where", ["both", "other"])
def test_what_a_model_raises_is_the_failure_of_its_pack_and_ends_nothing(
    where: str, tiny_predictor: str, tmp_path: Path
) -> None:
    """In the other part alone: this one waits for it to begin, and not in a forward, which never ends under NCCL."""
    command, environ = [sys.executable, "-c", FAILS, tiny_predictor, where], os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, *later, end = done.stdout.splitlines()
    other = "RuntimeError: part 2 of 2 of the predictor on cpu failed: IndexError: index out of range in self"
    assert first == (other if where == "other" else "IndexError: index out of range in self")
    assert (later, end) == ([other] * 2, "and lives")
    assert list(tmp_path.iterdir()) == [], "nothing of the meeting"


def test_no_part_outlives_the_first(tiny_predictor: str, tmp_path: Path) -> None:
    with rating(tiny_predictor, tmp_path) as (process, other):
        assert runs(other)
        process.kill()
        process.wait()
        wait_until_ended(other)
    assert [path.name for path in tmp_path.iterdir()] == ["log"], "nothing of the meeting either"


def test_a_part_that_cannot_load_is_a_sentence(tmp_path: Path) -> None:
    start = PartStart(str(tmp_path), "float32", CPU, 1, True, ModelPart(1, 2), str(tmp_path / "meeting"))
    before = psutil.Process().children()
    others = PartProcesses([start])
    with pytest.raises(UserError, match=rf"^part 2 of 2 of the predictor on cpu failed: .*{tmp_path.name}"):
        others.wait_until_loaded()
    others.close()
    assert psutil.Process().children() == before
