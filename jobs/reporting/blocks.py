"""What a report consists of: parts with a heading, an explanation, and blocks (tables, figures, answers).

HTML and Markdown render the same parts. Knows no run, no HTML and no Markdown.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jobs.reporting.tables import Table


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def finite(value: Any) -> float | None:
    """The number, or None where there is none (null, NaN)."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


@dataclass(frozen=True)
class Figure:
    """A picture, as SVG whose colors and ids fit among others on a page, and what it shows in words and numbers."""

    name: str
    svg: str
    alt: str


@dataclass(frozen=True)
class Gallery:
    """Small figures side by side."""

    figures: Sequence[Figure]
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Tile:
    """One number that matters."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Tiles:
    tiles: Sequence[Tile]
    kind: ClassVar[str] = "tiles"


@dataclass(frozen=True)
class Quotes:
    """Answers of a model; texts by anyone, never markup."""

    summary: str
    answers: Sequence[tuple[str, str]]
    """The requested and measured value, and the answer."""
    open: bool = False
    kind: ClassVar[str] = "quotes"


@dataclass(frozen=True)
class Listing:
    """A long text, folded."""

    summary: str
    text: str
    kind: ClassVar[str] = "listing"


Block = Table | Gallery | Tiles | Quotes | Listing


@dataclass(frozen=True)
class Part:
    """One section; `about` explains to a newcomer what it shows, and which values are good or bad."""

    name: str
    title: str
    about: str
    blocks: Sequence[Block]
