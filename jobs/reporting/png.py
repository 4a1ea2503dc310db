"""A figure to its file, on any storage."""

import io

import matplotlib.figure

from data.storage import Storage

DPI = 120


def save_png(figure: matplotlib.figure.Figure, target: Storage) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    target.write_bytes(buffer.getvalue())
