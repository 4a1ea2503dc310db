"""A killed training continues from its last checkpoint as if nothing had happened, also with more or fewer workers."""

import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actors.modeling.policy import Policy, PolicyTask
from actors.training.examples import ExampleSpec, PolicyExamples
from actors.training.settings import LearnerSettings
from data.attributes import shipped
from data.calibration import Calibration
from data.conversation import to_table
from data.examples import Example, Split
from data.lab import Lab, LabSettings
from data.loader import Corpus
from data.stage_metrics import TrainingMetrics
from data.storage import Storage
from jobs.pipelines.fit import fit
from jobs.pipelines.map_rows import write_table
from jobs.runner.stage import StageError

SCHEMA = shipped("lab")
SETTINGS = LearnerSettings(
    num_workers=2, zero_stage=2, precision="fp32", pack_tokens=256, max_tokens=256, packs_per_step=4,
    learning_rate=3e-3, warmup=0.1, epochs=2, checkpoint_every=0.1, max_failures=3, validate_every=0.5,
)  # fmt: skip
ZERO = [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (2, "optimizer"), (3, "parameters")]
"""ZeRO stages and what is offloaded."""


@pytest.fixture
def examples(tiny_base: str, tmp_path: Path) -> Storage:
    """About 26 steps an epoch."""
    rows = list(Lab(LabSettings(num_rows=170, rated_share=1)).rows())
    maker = PolicyExamples(
        ExampleSpec(tiny_base, SCHEMA, "steerlm", 256), "human", Calibration(), attribute_dropout=0.0, seed=0
    )
    folder = Storage(str(tmp_path)) / "examples"
    for part in range(2):
        write_table(maker(to_table(rows[part::2], SCHEMA)), folder, f"part-{part}.parquet")
    return folder


def dying(task: PolicyTask, folder: Path, forwards: Sequence[int]) -> PolicyTask:
    """The task, whose worker is killed (SIGKILL) before one of its forwards: the number in `forwards` for each life."""
    lives = folder / "lives"
    lives.mkdir()

    class Dying(PolicyTask):  # in a function, so that it travels by value
        def build(self) -> Any:
            object.__setattr__(self, "done", 0)
            return super().build()

        def inputs(self, rows: Sequence[Example], device: torch.device | str, pack_tokens: int = 0) -> dict[str, Any]:
            counts = pack_tokens > 0  # the check before a training names no budget
            object.__setattr__(self, "done", self.done + counts)  # type: ignore[attr-defined]
            life = len(list(lives.iterdir()))
            if life < len(forwards) and self.done == forwards[life]:  # type: ignore[attr-defined]
                (lives / str(life)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().inputs(rows, device, pack_tokens)

    return Dying(**vars(task))


def trajectory(metrics: TrainingMetrics) -> list[float]:
    return [point.loss for point in metrics.losses]


def weights(output: Storage) -> dict[str, torch.Tensor]:
    return load_file(os.path.join(output.path, "model", "model.safetensors"))


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_killed_and_gone_on_with_other_workers(
    before: int, after: int, ray_cluster: object, tiny_base: str, examples: Storage, tmp_path: Path
) -> None:
    task, unbroken, killed = (
        PolicyTask(tiny_base, SCHEMA, "steerlm"),
        Storage(str(tmp_path)) / "unbroken",
        Storage(str(tmp_path)) / "killed",
    )
    settings = SETTINGS.model_copy(update={"num_workers": before})
    expected = fit("test", task, settings, Corpus.of(examples), unbroken, Split(8))
    assert expected.checkpoints.failed == 0
    assert expected.checkpoints.written >= 15
    mortal = settings.model_copy(update={"max_failures": 0})
    with pytest.raises(StageError):
        fit("test", dying(task, tmp_path, [140 // before]), mortal, Corpus.of(examples), killed, Split(8))
    assert (killed / "checkpoints").exists()
    found = fit("test", task, settings.model_copy(update={"num_workers": after}), Corpus.of(examples), killed, Split(8))
    assert trajectory(found) == pytest.approx(trajectory(expected), abs=1e-3)
    assert (found.examples, found.steps) == (expected.examples, expected.steps)
    assert difference(weights(unbroken), weights(killed)) < 1e-3
    assert not (killed / "checkpoints").exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("zero_stage", "offload"), ZERO)
def test_killed_at_three_random_steps(
    zero_stage: int, offload: str, ray_cluster: object, tiny_base: str, examples: Storage, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"zero_stage": zero_stage, "offload": offload})
    task, unbroken, killed = (
        PolicyTask(tiny_base, SCHEMA, "steerlm"),
        Storage(str(tmp_path)) / "unbroken",
        Storage(str(tmp_path)) / "killed",
    )
    expected = fit("test", task, settings, Corpus.of(examples), unbroken, Split(8))
    forwards = [random.Random(zero_stage).randint(20, 45) for _ in range(3)]
    found = fit("test", dying(task, tmp_path, forwards), settings, Corpus.of(examples), killed, Split(8))
    assert len(list((tmp_path / "lives").iterdir())) == 3
    assert trajectory(found) == pytest.approx(trajectory(expected), abs=1e-4)
    assert (found.examples, found.steps) == (expected.examples, expected.steps)
    assert difference(weights(unbroken), weights(killed)) < 1e-4


@pytest.mark.ray
@pytest.mark.slow
def test_on_s3_as_on_a_disk(ray_cluster: object, tiny_base: str, examples: Storage, s3: str, tmp_path: Path) -> None:
    task, unbroken, killed = (
        PolicyTask(tiny_base, SCHEMA, "steerlm"),
        Storage(str(tmp_path)) / "unbroken",
        Storage(f"{s3}/training"),
    )
    expected = fit("test", task, SETTINGS, Corpus.of(examples), unbroken, Split(8))
    found = fit("test", dying(task, tmp_path, [30, 40]), SETTINGS, Corpus.of(examples), killed, Split(8))
    assert len(list((tmp_path / "lives").iterdir())) == 2
    assert trajectory(found) == pytest.approx(trajectory(expected), abs=1e-4)
    assert (
        difference(weights(unbroken), load_file(killed.download(str(tmp_path / "copy")) + "/model/model.safetensors"))
        < 1e-4
    )


@pytest.mark.ray
@pytest.mark.slow
def test_every_zero_stage_has_the_same_trajectory(
    ray_cluster: object, tiny_base: str, examples: Storage, tmp_path: Path
) -> None:
    losses: dict[tuple[object, str], list[float]] = {}
    held: dict[tuple[int, str], dict[str, int]] = {}
    task, folder = PolicyTask(tiny_base, SCHEMA, "steerlm"), Storage(str(tmp_path))
    for zero_stage, offload in ZERO:
        settings = SETTINGS.model_copy(update={"zero_stage": zero_stage, "offload": offload, "checkpoint_every": 0})
        metrics = fit("test", task, settings, Corpus.of(examples), folder / f"{zero_stage}-{offload}", Split(8))
        assert metrics.held_bytes is not None
        losses[zero_stage, offload], held[zero_stage, offload] = trajectory(metrics), metrics.held_bytes
    assert len(losses[0, "none"]) >= 50
    # What is computed again is the same again; and only the saved weights are rounded.
    again = SETTINGS.model_copy(update={"activation_checkpointing": True, "export": "bfloat16", "checkpoint_every": 0})
    losses["again", ""] = trajectory(fit("test", task, again, Corpus.of(examples), folder / "again", Split(8)))
    for key, found in losses.items():
        assert found == pytest.approx(losses[0, "none"], abs=1e-3), key
    rounded = weights(folder / "again")
    assert {t.dtype for t in rounded.values()} == {torch.bfloat16}
    assert Policy.load((folder / "again" / "model").uri, "bfloat16").model.config.dtype == torch.bfloat16
    assert difference(rounded, {k: v.bfloat16() for k, v in weights(folder / "2-none").items()}) < 1e-2
    require_shares(held)


def require_shares(held: dict[tuple[int, str], dict[str, int]]) -> None:
    """Each of two workers holds the parts of the training state that the ZeRO paper gives it."""
    for (stage, offload), found in held.items():
        print(f"ZeRO {stage}, offload {offload}: bytes on each of 2 workers: {found}")
    whole = held[0, "none"]["weights"]
    theory = {0: (1, 1, 2), 1: (1, None, 1.5), 2: (1, 0.5, 1.5), 3: (0.5, 0.5, 1.5)}
    for stage, shares in theory.items():
        for name, share in zip(("weights", "gradients", "optimizer"), shares, strict=True):
            if share is not None:
                # Parts are filled up to equal lengths.
                assert held[stage, "none"][name] == pytest.approx(share * whole, rel=0.03), (stage, name)


@pytest.mark.ray
@pytest.mark.slow
def test_one_worker_with_eight_packs_a_step_and_eight_with_one(
    ray_cluster: object, tiny_base: str, examples: Storage, tmp_path: Path
) -> None:
    found, outputs = [], []
    for workers in (1, 8):
        settings = SETTINGS.model_copy(
            update={
                "num_workers": workers,
                "cpus_per_worker": 0.5,
                "packs_per_step": 8,
                "zero_stage": 0,
                "learning_rate": 1e-3,
                "checkpoint_every": 0,
                "epochs": 1,
            }
        )
        outputs.append(Storage(str(tmp_path)) / f"{workers}")
        task = PolicyTask(tiny_base, SCHEMA, "steerlm")
        found.append(trajectory(fit("test", task, settings, Corpus.of(examples), outputs[-1], Split(8))))
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert difference(*map(weights, outputs)) < 1e-5
