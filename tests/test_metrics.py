"""The metrics of a training: on the console, in event files, in Ray's metrics."""

from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]

from actors.kernels.devices import CPU
from actors.training.metrics import METRICS, MetricsLogger, peak_flops
from actors.training.train_state import TrainState
from data.storage import Storage


def _events(folder: Path) -> list[Event]:
    """TFRecord: length, its checksum, the event, its checksum."""
    found = []
    [file] = folder.iterdir()
    content = file.read_bytes()
    while content:
        length = int.from_bytes(content[:8], "little")
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


@pytest.mark.parametrize("uri", ["disk", "memory"])
def test_a_step_is_said_and_written(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Storage(str(tmp_path) if uri == "disk" else f"memory://{tmp_path.name}")
    logger = MetricsLogger("policy", output, "none", world=2, device=CPU, precision="fp32", enabled=True)
    monkeypatch.setattr("actors.training.metrics.peak_flops", lambda device, precision: 5e8)
    at = TrainState(step=10, progress=0.5, tokens=900, budget_tokens=1000, seconds=30.0)
    logger.count(500, 4e8, 1.0)
    logger.count(500, 4e8, 1.0)
    logger.step(at, 2, loss=1.25, rate=1e-3, norm=0.5)
    logger.validated(at, 1.5, improved=True)
    logger.close()
    output_text = capsys.readouterr().out
    for part in (
        "step 10  25%",
        "loss 1.2500",
        "500 tokens/s (40% of peak)",
        "packs 90% full",
        "ETA 90 s",
        "validation loss 1.50000, the best so far",
    ):
        assert part in output_text
    folder = tmp_path / "tensorboard"
    if uri == "memory":
        [name] = (output / "tensorboard").names()
        folder.mkdir()
        (folder / name).write_bytes((output / "tensorboard" / name).fs.cat_file((output / "tensorboard" / name).path))
    written = {value.tag: value.simple_value for event in _events(folder) for value in event.summary.value}
    assert written.keys() == METRICS.keys()
    assert written["loss"] == pytest.approx(1.25)
    assert written["progress"] == pytest.approx(0.25)


def test_the_other_workers_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = MetricsLogger(
        "policy", Storage(str(tmp_path)), "none", world=2, device=CPU, precision="fp32", enabled=False
    )
    logger.count(10, 1.0, 1.0)
    logger.step(TrainState(step=1, progress=1.0, tokens=1, budget_tokens=1, seconds=1.0), 1, 1.0, 1.0, 1.0)
    logger.close()
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_peak_is_a_speed_that_a_matrix_product_can_have() -> None:
    assert 1e9 < peak_flops(CPU, "fp32") < 1e15
