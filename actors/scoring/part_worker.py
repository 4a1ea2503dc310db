"""The process of one part of a predictor: it runs every forward that the first part's process tells it.

Started by `actors.scoring.part_processes` with the number of its end of a pipe. Its scores are nobody's: only its share
of the sums inside the layers counts.
"""

import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

from actors.scoring.part_processes import PartPack, PartStart, PartState
from actors.scoring.predictor import Predictor
from data.errors import is_user_error

Told = queue.SimpleQueue[PartPack | None]


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first part: its end is ours
    connection = Connection(int(sys.argv[1]))
    try:
        start: PartStart = connection.recv()
    except EOFError:
        return
    told: Told = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, start, told), daemon=True).start()
    try:
        _run(start, connection, told)
    except Exception as error:
        traceback.print_exc()
        connection.send(PartState(f"{type(error).__name__}: {error}", is_user_error(error)))
    sys.stderr.flush()
    os._exit(1)  # a process group that is broken can hold up an orderly end


def _listen(connection: Connection, start: PartStart, told: Told) -> None:
    """The pipe's end is the end of the first part's process, and so of this one, whatever it does."""
    try:
        while True:
            told.put(connection.recv())
    except (EOFError, OSError):
        start.leave()
        os._exit(0)


def _run(start: PartStart, connection: Connection, told: Told) -> None:
    predictor = Predictor.unchecked(start.path, start.dtype, start.device, start.num_threads, start.packing, start.part)
    connection.send(PartState())
    assert told.get() is None, "the first part begins with the meeting"
    start.join()
    before: Callable[[], object] = lambda: None  # noqa: E731
    while True:
        pack = told.get()
        assert pack is not None, "the parts meet once"
        begun = predictor.start(pack.ids, pack.reads, pack.starts)
        connection.send(PartState())
        before()  # as in the first part, the next forward is prepared while one runs
        before = begun


if __name__ == "__main__":
    main()
