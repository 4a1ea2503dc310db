"""What a training says of itself while it runs: lines for people, Ray's metrics for Prometheus, event files for TensorBoard, and a tracker's runs.

Knows no loop: it is told numbers.
"""

import resource
import tempfile
import time
from typing import Any, Literal

import torch

from actors.kernels.onednn import multiply
from actors.training.train_state import TrainState
from data.storage import Storage

Tracking = Literal["none", "mlflow", "wandb"]
PEAK_S, PEAK_EVERY_S = 0.05, 30.0
"""How long matrices are multiplied, each time, to see what the device can do; and how long it is until the next time."""

METRICS = {
    "loss": "Mean loss over the targets of the last steps.",
    "validation_loss": "Mean loss over the targets held out.",
    "learning_rate": "Learning rate.",
    "gradient_norm": "Norm of the gradient before clipping.",
    "tokens_per_s": "Tokens trained a second, all workers together.",
    "share_of_peak": "Arithmetic done over what matrix products alone reach on the same device, 0 to 1.",
    "packs_filled": "Tokens over what the packed rows could hold, 0 to 1; the rest is padding waste.",
    "memory_bytes": "Peak memory of the first worker: of the GPU where there is one, else resident.",
    "progress": "Share of the training that is done, 0 to 1.",
}


class MetricsLogger:
    """Speaks on the first worker only; counts on all."""

    def __init__(self, what: str, output: Storage, tracking: Tracking, world: int, precision: str, speaks: bool):
        self._speaks = speaks
        self._recent_s, self._recent_tokens, self._recent_flops = 0.0, 0, 0.0
        self._precision, self._world = precision, world
        self._peak, self._peak_measured = 0.0, 0.0
        self._sinks: list[Any] = [_RayMetrics(what), _TensorBoard(output), *_tracker(tracking, what)] if speaks else []

    def did(self, tokens: int, flops: float, seconds: float) -> None:
        """A step of so many tokens and so much arithmetic, over all workers."""
        self._recent_tokens += tokens
        self._recent_flops += flops
        self._recent_s += seconds

    def step(self, at: TrainState, epochs: int, loss: float, rate: float, norm: float) -> None:
        """Say where we are."""
        recent_s = max(self._recent_s, 1e-9)
        self._measure_peak()
        speed, share = self._recent_tokens / recent_s, self._recent_flops / recent_s / self._peak
        self._recent_s, self._recent_tokens, self._recent_flops = 0.0, 0, 0.0
        values = {
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens_per_s": speed,
            "share_of_peak": share,
            "packs_filled": at.tokens / at.budget_tokens,
            "memory_bytes": peak_memory_bytes(),
            "progress": at.progress / epochs,
        }
        eta_s = at.seconds / at.progress * (epochs - at.progress)
        self.log(
            f"step {at.step}  {values['progress']:.0%}  loss {loss:.4f}  lr {rate:.2e}  gradient {norm:.2f}  {speed:,.0f} tokens/s "
            f"({values['share_of_peak']:.0%} of peak)  rows {values['packs_filled']:.0%} full  {values['memory_bytes'] / 2**30:.1f} GiB  ETA {eta_s:.0f} s"
        )
        self._write(at.step, values)

    def _measure_peak(self) -> None:
        """Again and again: what else runs on the machine only ever lowers it."""
        if not self._peak or time.monotonic() - self._peak_measured > PEAK_EVERY_S:
            self._peak = max(self._peak, peak_flops(self._precision) * self._world)
            self._peak_measured = time.monotonic()

    def validated(self, at: TrainState, loss: float, improved: bool) -> None:
        self.log(f"step {at.step}  validation loss {loss:.5f}{', the best so far' if improved else ''}")
        self._write(at.step, {"validation_loss": loss})

    def log(self, text: str) -> None:
        if self._speaks:
            print(text, flush=True)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        for sink in self._sinks:
            sink.write(step, values)


class _RayMetrics:
    """Gauges on Ray's own Prometheus endpoint, e.g. ray_steerlm_train_loss{training="policy"}."""

    def __init__(self, what: str):
        from ray.util.metrics import Gauge

        self._gauges = {
            name: Gauge(f"steerlm_train_{name}", description=text, tag_keys=("training",))
            for name, text in METRICS.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"training": what})

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._gauges[name].set(value)

    def close(self) -> None: ...


class _TensorBoard:
    """Event files in `tensorboard/` beside the model; where that is no disk, they are copied there now and then."""

    def __init__(self, output: Storage):
        from tensorboardX import SummaryWriter

        self._target = output / "tensorboard"
        self._local = None if output.is_local else tempfile.TemporaryDirectory(prefix="steerlm-tensorboard-")
        self._writer = SummaryWriter(self._local.name if self._local else self._target.path)
        self._flushed = time.monotonic()

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if time.monotonic() - self._flushed > 60:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        self._writer.flush()
        self._copy()

    def _copy(self) -> None:
        if self._local:
            # Storage.upload would remove what an earlier life of this training has left there.
            for name in Storage(self._local.name).names():
                (self._target / name).put(f"{self._local.name}/{name}")

    def close(self) -> None:
        self._writer.close()  # only now is everything in the file
        self._copy()
        if self._local:
            self._local.cleanup()


class _Mlflow:
    def __init__(self, what: str):
        import mlflow

        self._mlflow = mlflow
        mlflow.start_run(run_name=what)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._mlflow.log_metrics(values, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class _Wandb:
    def __init__(self, what: str):
        import wandb

        self._run = wandb.init(project="steerlm", name=what, resume="allow")

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def _tracker(tracking: Tracking, what: str) -> list[Any]:
    if tracking == "none":
        return []
    return [{"mlflow": _Mlflow, "wandb": _Wandb}[tracking](what)]


def peak_flops(precision: str) -> float:
    """Floating-point operations a second of a large matrix product on this worker's device, in the training's arithmetic."""
    on_gpu = torch.cuda.is_available()
    size, dtype = (8192 if on_gpu else 1024), torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, device="cuda" if on_gpu else "cpu").to(dtype)
    best, started = 0.0, time.perf_counter()
    while time.perf_counter() - started < PEAK_S or not best:
        before = time.perf_counter()
        multiply(a, a)
        if on_gpu:
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - before))
    return best


def peak_memory_bytes() -> int:
    """Of this worker so far: the GPU's where there is one, else resident."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
