"""A table, written as aligned text for a terminal, as Markdown, or as the rows of an HTML table. Knows no run."""

import html
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

Cell = str | int | float | bool | None
LONG_WORDS = 40
"""A text of more characters is wrapped on the page."""


@dataclass(frozen=True)
class Table:
    """The first column names the line; the others are numbers, or short texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False
    """The numbers of a figure above it; the page shows them on request, and the terminal does not."""
    tints: Sequence[Sequence[float]] = ()
    """A heat map: strength of the color of each cell after the first, 0 to 1; negative takes the second color."""
    kind: ClassVar[str] = "table"


def shown(cell: Cell, digits: int = 2, unknown: str = "–") -> str:
    """A cell as people read it; None and NaN are `unknown`."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return unknown
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{round(cell, digits) + 0.0:,.{digits}f}"  # + 0.0: no "-0.00"
    return f"{cell:,}" if isinstance(cell, int) else cell


def between(value: Cell, low: Cell, high: Cell, digits: int = 2) -> str | None:
    """A value with its interval, as one cell; None if the value is unknown."""
    if value is None:
        return None
    return shown(value, digits) + ("" if low is None else f" ({shown(low, digits)} to {shown(high, digits)})")


def as_text(table: Table) -> list[str]:
    """The title, if there is one, and lines of equal columns: the first to the left, the others to the right."""
    lines = [list(table.columns), *([shown(cell, unknown="-") for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return [table.title, *text] if table.title else text


def as_markdown(table: Table) -> Iterator[str]:
    """The title, if there is one, and the table."""
    if table.title:
        yield from (f"**{markdown_text(table.title)}**", "")
    yield from (_line(table.columns), f"|{'---|' * len(table.columns)}")
    yield from (_line([shown(cell) for cell in row]) for row in table.rows)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(markdown_text, cells))} |"


def markdown_text(text: str) -> str:
    """`text` on one line, without Markdown or HTML markup."""
    flat = re.sub(r"([\\`*|#\[\]])", r"\\\1", " ".join(text.split()))
    return html.escape(flat, quote=False)


def as_html(table: Table) -> str:
    """`thead` and `tbody`. Texts stand to the left, numbers to the right; with tints each cell has its color."""
    words = [any(isinstance(c, str) and not c[:1].isdigit() for c in column) for column in _transposed(table)]
    head = [
        f'<th scope="col"{_css(is_text and "words")}>{html.escape(name)}</th>'
        for name, is_text in zip(table.columns, words, strict=True)
    ]
    lines = [f"<thead><tr>{''.join(head)}</tr></thead>", "<tbody>"]
    for number, row in enumerate(table.rows):
        cells = [f'<th scope="row">{html.escape(shown(row[0]))}</th>']
        for column, cell in enumerate(row[1:], start=1):
            long = isinstance(cell, str) and len(cell) > LONG_WORDS
            style = _tint(table.tints[number][column - 1]) if table.tints else ""
            css = _css(words[column] and ("words long" if long else "words"))
            cells.append(f"<td{style or css}>{html.escape(shown(cell))}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody>"])


def _transposed(table: Table) -> list[list[Cell]]:
    return [[row[column] for row in table.rows] for column in range(len(table.columns))]


def _css(names: str | bool) -> str:
    return f' class="{names}"' if names else ""


def _tint(strength: float) -> str:
    hue = "first" if strength > 0 else "second"
    return f' style="--hue: var(--{hue}); --strength: {round(abs(strength) * 45)}%"'
