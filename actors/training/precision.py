"""The precision of a training: as set, or chosen by measurement on the devices of all its workers."""

from actors.kernels.devices import own_device
from actors.kernels.precision import FULL, HALF, SHORT, judged, seconds_per_gflop
from actors.training.collectives import summed
from actors.training.settings import LearnerSettings
from actors.training.train_state import TrainState

LONG = {short: name for name, short in SHORT.items()}


def with_precision(settings: LearnerSettings, state: TrainState, what: str) -> tuple[LearnerSettings, str]:
    """The settings with "bf16" or "fp32" for "auto", the same on all workers, and a line for the log ("" = none).

    `state` gets the precision, too: a training that goes on from a checkpoint keeps it. `what` is trained.
    """
    device = own_device()
    # Every worker judges the same sums. A step waits for its slowest worker, so one CPU without bf16 decides for all.
    full_s, half_s, workers = summed(seconds_per_gflop(device, FULL), seconds_per_gflop(device, HALF), 1.0)
    seconds, where = {FULL: full_s / workers, HALF: half_s / workers}, f"a worker ({device.type})"
    wanted = LONG.get(settings.precision, settings.precision)
    found = judged(wanted, seconds, where, "precision", LONG.get(state.precision, ""))
    state.precision = SHORT[found.dtype]
    return settings.model_copy(update={"precision": state.precision}), found.line and f"{what}: {found.line}"
