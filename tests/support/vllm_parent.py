"""A process as Ray's actors are, with a split vLLM engine that writes until it is killed. argv: the policy's folder."""

import json
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))


def write(policy: str) -> None:
    import psutil

    from actors.generation.factory import load_engine
    from actors.generation.protocol import Sampling
    from actors.generation.settings import EngineSettings

    settings = EngineSettings(kind="vllm", max_num_seqs=4, tensor_parallel=2)
    _, engine = load_engine(settings, policy, "float32", num_threads=1)
    began = threading.Event()
    engine.submit([5] * 20, Sampling(480, seed=1, ignore_eos=True), lambda _: began.set())
    began.wait()
    print(json.dumps([process.pid for process in psutil.Process().children(recursive=True)]), flush=True)


if __name__ == "__main__":
    import ray

    # A process that is spawned runs the file of `__main__` first, and in an actor that is Ray's.
    __file__ = str(Path(ray.__file__).parent / "_private" / "workers" / "default_worker.py")
    threading.Thread(target=write, args=(sys.argv[1],), daemon=True).start()  # nor is the main thread an actor's
    time.sleep(3600)
