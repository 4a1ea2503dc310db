"""What a report consists of: parts with a heading, an explanation, and blocks (tables, figures, answers).

HTML and Markdown render the same parts. Knows no run, no HTML and no Markdown.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jobs.reporting.tables import Table

MASK = "..."
SECRET_NAMES = ("password", "secret", "token", "credential", "credentials", "key")
"""A setting that holds a text is hidden if the last word of its name is one of these; `max_tokens` holds no text."""


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def finite(value: Any) -> float | None:
    """The number, or None where there is none (null, NaN)."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def without_secrets(value: Any) -> Any:
    """Settings as they may be shown: names and passwords in URIs, signed queries, and texts called `..._key` and the
    like are masked."""
    if isinstance(value, str):
        # `name:password@`, or a lone token before the first slash. A key may have slashes itself;
        # `hf://datasets/a/b@main` has no key.
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
