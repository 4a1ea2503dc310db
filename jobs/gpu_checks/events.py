"""What a training measured of itself: the values in its TensorBoard event files. Knows no training."""

import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

WARM_UP = 2
"""Of the first lines of a training nobody should judge its speed: kernels are chosen, buffers are made."""


def values(folder: Path) -> dict[str, list[float]]:
    """Metric (`actors.training.metrics.METRICS`) -> its values in order, from all event files in `folder`."""
    found: dict[str, list[float]] = defaultdict(list)
    for file in sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime):
        for event in _events(file.read_bytes()):
            for value in event.summary.value:
                found[value.tag].append(value.simple_value)
    return dict(found)


def _events(content: bytes) -> Iterator[Event]:
    """TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4). A last one cut off is left out."""
    while len(content) >= 12:
        length = int.from_bytes(content[:8], "little")
        if len(content) < 16 + length:
            return
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def steady(found: list[float]) -> float:
    """The median without the warm-up."""
    return statistics.median(found[WARM_UP:] or found)
