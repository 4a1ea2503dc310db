"""A training engine under the project's own DeepSpeed configuration, in a process of its own, without Ray.

DeepSpeed changes its process for good (a group, patched functions, autocast), so each test gets a fresh one.
"""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch


def in_engine_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a module's function, called in a process that is a group of one; its error is raised here."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_run, args=(function, arguments, f"{tempfile.mkdtemp()}/meeting", results))
    process.start()
    result = None
    while process.is_alive() and result is None:
        process.join(0.1)
        if not results.empty():
            result = results.get()
    process.join()
    if result is None and not results.empty():
        result = results.get()
    assert result is not None, f"the process ended with exit code {process.exitcode}"
    error, value = result
    assert not error, error
    return value


def _run(function: Callable[..., Any], arguments: tuple[Any, ...], meeting: str, results: Any) -> None:
    os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}  # as Ray Train sets them
    import ray.train.torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    ray.train.torch.get_device = lambda: torch.device("cpu")
    try:
        results.put((None, function(*arguments)))
    except BaseException:
        results.put((traceback.format_exc(), None))
