"""Servers that a bench measures, each started as its own documentation does it. Knows no requests."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from jobs.bench.environment import ONE_THREAD
from jobs.runner.stage import log

START_TIMEOUT_S = 300.0
VLLM = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "KMP_BLOCKTIME": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
"""A small KV cache, and threads that are not pinned and do not spin: the CPU has other users."""


class NotServed(RuntimeError):
    """A server did not come up."""


@contextmanager
def server(name: str, command: Sequence[str], ready: str, environ: Mapping[str, str] | None = None) -> Iterator[str]:
    """Its URL while it runs. `command` has {port}; `ready` is the path that answers 200 once it serves.

    Raises NotServed with the server's last lines.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url, log_file = f"http://127.0.0.1:{port}", Path(f"/tmp/steerlm-bench-{os.getpid()}-{port}.log")
    log(f"starting {name}")
    with log_file.open("w") as output:
        process = subprocess.Popen(
            [word.format(port=port) for word in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ONE_THREAD, **(environ or {})},
            start_new_session=True,
        )
    try:
        _wait(name, f"{url}{ready}", process, log_file)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log_file.unlink(missing_ok=True)


def ours(python: Path, policy: str, kind: str, max_num_seqs: int, max_queued: int | None = None) -> list[str]:
    """`python -m serve`; `max_queued`: how many may wait, beside those that it writes."""
    words = ["policy=" + policy, "name=bench", "predictor=null", "access_log=false", "port={port}", "num_cpus=0.5"]
    engine = [
        f"engine.kind={kind}",
        f"engine.max_num_seqs={max_num_seqs}",
        f"max_queued_requests={max_queued or 16 * max_num_seqs}",
    ]
    return [str(python), "-m", "serve", *words, *engine]


def transformers_serve(policy: str, continuous: bool) -> list[str]:
    """`transformers serve`. The sizes of continuous batching suit a CPU: its defaults take most of the memory."""
    program = str(Path(sys.executable).parent / "transformers")
    words = [program, "serve", policy, "--port", "{port}", "--dtype", "float32", "--device", "cpu"]
    sizes = ["--cb-num-blocks", "512", "--cb-block-size", "32", "--cb-max-batch-tokens", "512"]
    return [*words, "--continuous-batching", *sizes] if continuous else words


def vllm_server(python: Path, policy: str, max_tokens: int) -> list[str]:
    """vLLM's own OpenAI server."""
    program = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--port", "{port}"]
    model = ["--model", policy, "--served-model-name", "bench", "--generation-config", "vllm"]
    return [*program, *model, "--enforce-eager", "--dtype", "float32", "--max-model-len", str(max_tokens)]


def _wait(name: str, url: str, process: subprocess.Popen[bytes], log_file: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    last = "\n".join(log_file.read_text(errors="replace").splitlines()[-10:])
    raise NotServed(f"{name} did not answer at {url} within {START_TIMEOUT_S:g} s; its last lines:\n{last}")
