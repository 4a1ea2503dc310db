"""The metrics of a running training: log lines, Ray's metrics for Prometheus, TensorBoard event files, a tracker's run.

Knows no loop: it gets numbers.
"""

import resource
import tempfile
import time
from typing import Any

import torch

from actors.kernels.devices import synchronize
from actors.kernels.onednn import multiply
from actors.training.settings import LearnerSettings, Tracking
from actors.training.train_state import TrainState
from data.storage import Storage

PEAK_S, PEAK_EVERY_S = 0.05, 30.0
"""How long a measurement of the device's peak multiplies matrices, and the time between two measurements."""

METRICS = {
    "loss": "Mean loss over the targets of the last steps.",
    "validation_loss": "Mean loss over the targets held out.",
    "learning_rate": "Learning rate.",
    "gradient_norm": "Norm of the gradient before clipping.",
    "tokens_per_s": "Tokens trained per second, all workers together.",
    "share_of_peak": "Operations per second over those of matrix products alone on the same device, 0 to 1.",
    "packs_filled": "Tokens over what the packs could hold, 0 to 1; the rest is padding waste.",
    "memory_bytes": "Peak memory of the first worker: the GPU's if it has one, else resident memory.",
    "progress": "Share of the training that is done, 0 to 1.",
}


class MetricsLogger:
    """Writes on the first worker only (`enabled`); counts on all."""

    def __init__(
        self,
        what: str,
        output: Storage,
        tracking: Tracking,
        world: int,
        device: torch.device,
        precision: str,
        enabled: bool,
    ):
        self._enabled, self._device = enabled, device
        self._recent_s, self._recent_tokens, self._recent_flops = 0.0, 0, 0.0
        self._precision, self._world = precision, world
        self._peak, self._peak_measured = 0.0, 0.0
        self._sinks: list[Any] = [_RayMetrics(what), _TensorBoard(output), *_tracker(tracking, what)] if enabled else []

    def count(self, tokens: int, flops: float, seconds: float) -> None:
        """Count a step's tokens and floating-point operations, over all workers."""
        self._recent_tokens += tokens
        self._recent_flops += flops
        self._recent_s += seconds

    def step(self, state: TrainState, epochs: int, loss: float, rate: float, norm: float) -> None:
        """Log and write the metrics of the steps since the last call."""
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
            "packs_filled": state.packs_filled,
            "memory_bytes": peak_memory_bytes(self._device),
            "progress": state.progress / epochs,
        }
        eta_s = state.seconds / state.progress * (epochs - state.progress)
        self.log(
            f"step {state.step}  {values['progress']:.0%}  loss {loss:.4f}  lr {rate:.2e}  gradient {norm:.2f}  "
            f"{speed:,.0f} tokens/s ({share:.0%} of peak)  packs {state.packs_filled:.0%} full  "
            f"{values['memory_bytes'] / 2**30:.1f} GiB  ETA {eta_s:.0f} s"
        )
        self._write(state.step, values)

    def _measure_peak(self) -> None:
        """Keep the highest of repeated measurements: other programs on the machine only lower it."""
        if not self._peak or time.monotonic() - self._peak_measured > PEAK_EVERY_S:
            self._peak = max(self._peak, peak_flops(self._device, self._precision) * self._world)
            self._peak_measured = time.monotonic()

    def validated(self, state: TrainState, loss: float, improved: bool) -> None:
        self.log(f"step {state.step}  validation loss {loss:.5f}{', the best so far' if improved else ''}")
        self._write(state.step, {"validation_loss": loss})

    def log(self, text: str) -> None:
        """Print it, unless it is empty."""
        if self._enabled and text:
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

        self._gauges = {}
        for name, text in METRICS.items():
            self._gauges[name] = Gauge(f"steerlm_train_{name}", description=text, tag_keys=("training",))
            self._gauges[name].set_default_tags({"training": what})

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._gauges[name].set(value)

    def close(self) -> None: ...


class _TensorBoard:
    """Event files in `tensorboard/` beside the model; on remote storage they are copied there about once a minute."""

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
            self._flushed = time.monotonic()
            self._writer.flush()
            self._copy()

    def _copy(self) -> None:
        if self._local:
            # Storage.upload would remove the files of an earlier run of this training.
            for name in Storage(self._local.name).names():
                (self._target / name).put(f"{self._local.name}/{name}")

    def close(self) -> None:
        self._writer.close()  # writes the last events
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


def peak_flops(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of a large matrix product on `device`, in "bf16" or "fp32"."""
    size, dtype = (1024 if device.type == "cpu" else 8192), torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, device=device).to(dtype)
    best, started = 0.0, time.perf_counter()
    while time.perf_counter() - started < PEAK_S or not best:
        before = time.perf_counter()
        multiply(a, a)
        synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - before))
    return best


def expected_flops(learner: LearnerSettings) -> float:
    """The same for a worker of a training that this process plans, on this machine's devices."""
    precisions = ("bf16", "fp32") if learner.precision == "auto" else (learner.precision,)
    return max(peak_flops(torch.device("cuda" if learner.use_gpu else "cpu"), precision) for precision in precisions)


def peak_memory_bytes(device: torch.device) -> int:
    """Of this worker so far, on its device: the GPU's memory if it has one, else resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
