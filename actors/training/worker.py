"""What Ray Train calls on each worker: it trains, and leaves a note of an error that a restart would only repeat."""

import contextlib

import ray.cloudpickle
import ray.train

from actors.training.collectives import AgreedError
from actors.training.frozen_fit import FrozenFit
from actors.training.out_of_memory import out_of_memory
from actors.training.trainer import Assignment, Training
from data.errors import UserError
from data.lease import LeaseLost
from data.run_layout import as_json
from data.storage import Storage

USER_ERROR = "user_error.txt"


def worker_config(assignment: Assignment) -> dict[str, bytes]:
    """What Ray Train carries to each worker, as bytes.

    Ray Train's controller gets a copy, and would import transformers and DeepSpeed to unpickle an assignment that it
    never reads: 4 CPU seconds at the start of each training.
    """
    return {"assignment": ray.cloudpickle.dumps(assignment)}


def train_worker(config: dict[str, bytes]) -> None:
    """Ray Train's per-worker loop, given `worker_config`."""
    train(ray.cloudpickle.loads(config["assignment"]))


def train(assignment: Assignment) -> None:
    """Train, validate, save the model under `output_uri`, report metrics.

    Ray Train restarts the workers after any failure. A UserError would come back each time: it is noted for the driver
    (`USER_ERROR`), and the restarted workers end at once. If all workers raise it together, none fails.
    """
    noted = Storage(assignment.output_uri) / USER_ERROR
    if noted.exists():
        return
    training: Training | None = None
    try:
        if assignment.settings.epochs == 0:
            metrics = FrozenFit(assignment).run()
        else:
            training = Training(assignment)
            metrics = training.run()
    except LeaseLost:
        raise  # the driver that has taken over would read a note as its own
    except UserError as error:
        if _note(noted, error) and isinstance(error, AgreedError):
            return
        raise
    except Exception as error:
        step = training.state.step if training else 0
        tight = out_of_memory(error, assignment.settings, step)
        if tight is None:
            raise
        _note(noted, tight)
        raise tight from error
    ray.train.report(as_json(metrics))


def _note(noted: Storage, error: UserError) -> bool:
    """Is it noted? If not, the driver reads it in the worker's traceback."""
    with contextlib.suppress(Exception):
        noted.write_bytes(str(error).encode())
        return True
    return False
