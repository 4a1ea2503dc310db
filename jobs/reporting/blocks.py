"""What a report is made of: parts with a heading and a plain sentence, and in them tables, figures, answers. HTML and Markdown are made from the same parts.

Knows no run, no HTML and no Markdown.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

Cell = str | int | float | bool | None
MASK = "..."
SECRET_NAMES = ("password", "secret", "token", "credential", "credentials", "key")
"""A setting with a text is hidden if the last word of its name is one of these; `max_tokens` is none, and no text."""


def shown(cell: Cell, digits: int = 2) -> str:
    """A cell as people read it; what is not known is a dash."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{round(cell, digits) + 0.0:,.{digits}f}"  # + 0.0: no "-0.00"
    return f"{cell:,}" if isinstance(cell, int) else cell


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def finite(value: Any) -> float | None:
    """The number, or None where there is none (null, NaN)."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def without_secrets(value: Any) -> Any:
    """Settings as they may be shown: names and passwords in URIs, signed queries and texts called `..._key` and the like are masked."""
    if isinstance(value, str):
        # `name:password@`, or a lone token before the first slash. A key may have slashes itself; `hf://datasets/a/b@main` has no key.
        masked = re.sub(r"(?<=://)(?:[^\s/@:]*:\S*|[^\s/@]*)@", f"{MASK}@", value)
        # A glob has a `?` as well; a query has names.
        return re.sub(r"(://[^\s?]*)\?[\w.~%-]+=\S*", rf"\1?{MASK}", masked)
    if isinstance(value, Mapping):
        return {
            k: MASK if isinstance(v, str) and v and _is_secret(str(k)) else without_secrets(v) for k, v in value.items()
        }
    return [without_secrets(v) for v in value] if isinstance(value, list | tuple) else value


def _is_secret(name: str) -> bool:
    return re.split(r"[^a-z]+", name.lower())[-1] in SECRET_NAMES


@dataclass(frozen=True)
class Table:
    """The first column names the line; the others are numbers, or short texts."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False
    """The numbers of a figure above it: there for whoever wants them."""
    tints: Sequence[Sequence[float]] = ()
    """A heat map: for each cell but the first of a line how strong its colour is, 0 to 1; below 0 it is of the second colour."""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Figure:
    """A picture, as SVG whose colours and ids fit among others on a page, and what it shows in words and numbers."""

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
class Said:
    """What a model answered; texts by anyone, never markup."""

    summary: str
    answers: Sequence[tuple[str, str]]
    """What was asked for and measured, and the answer."""
    open: bool = False
    kind: ClassVar[str] = "said"


@dataclass(frozen=True)
class Listing:
    """A long text, folded."""

    summary: str
    text: str
    kind: ClassVar[str] = "listing"


Block = Table | Gallery | Tiles | Said | Listing


@dataclass(frozen=True)
class Part:
    """One section; `says` tells someone who has never seen the project what it shows, and what would be good or bad."""

    name: str
    title: str
    says: str
    blocks: Sequence[Block]
