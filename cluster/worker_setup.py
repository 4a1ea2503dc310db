"""What each worker process of a Ray that we started or joined does first. Imports little: workers start often."""

import atexit
import gc
import os

import ray

from cluster.masking import mask_streams

SETUP_HOOK = "cluster.worker_setup.set_up"
"""As a `runtime_env` names it (`worker_process_setup_hook`)."""


def set_up() -> None:
    """Name the worker's own Ray to libraries that look for one, and mask credentials in what it prints.

    Ray's state API, which Ray Train asks in actors, refuses to choose where two Rays run on a machine.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    mask_streams()
    # The end of a process that has imported transformers collects garbage among half a million objects that live until
    # then: a CPU second of each worker, while the next stage starts. Frozen objects are left out.
    atexit.register(gc.freeze)
