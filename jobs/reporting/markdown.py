"""The report's parts as Markdown: the same figures as the page, for a terminal, a pull request or a wiki.

Text that others wrote (answers, settings) stands in fences, so that it stays text. Knows no run.
"""

import html
import re
from collections.abc import Iterator, Sequence

from jobs.reporting.blocks import Block, Gallery, Listing, Part, Said, Table, Tiles, shown


def markdown(title: str, about: str, parts: Sequence[Part]) -> str:
    lines = [f"# {_plain(title)}", "", _plain(about), ""]
    for part in parts:
        lines += [f"## {_plain(part.title)}", "", _plain(part.says), ""]
        for block in part.blocks:
            lines += [*_lines(block), ""]
    return "\n".join(lines)


def _lines(block: Block) -> Iterator[str]:
    if isinstance(block, Tiles):
        yield from (f"- **{_plain(tile.value)}** {_plain(tile.label)} ({_plain(tile.note)})" for tile in block.tiles)
    elif isinstance(block, Table):
        yield from (f"**{_plain(block.caption)}**", "", _row(block.header), f"|{'---|' * len(block.header)}")
        yield from (_row([shown(cell) for cell in row]) for row in block.rows)
    elif isinstance(block, Gallery):
        yield from (f"![{_plain(figure.alt)}](figures/{figure.name}.svg)" for figure in block.figures)
    elif isinstance(block, Said):
        yield from _folded(block.summary)
        for label, text in block.answers:
            yield from ("", f"{_plain(label)}:", "", *_fenced(text))
        yield from ("", "</details>")
    elif isinstance(block, Listing):
        yield from (*_folded(block.summary), "", *_fenced(block.text), "", "</details>")


def _folded(summary: str) -> Iterator[str]:
    # Markdown leaves the inside of an HTML block alone: only HTML's own characters need care.
    yield f"<details><summary>{html.escape(' '.join(summary.split()), quote=False)}</summary>"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """On one line, and no character of it markup."""
    flat = re.sub(r"([\\`*|#\[\]])", r"\\\1", " ".join(text.split()))
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fenced(text: str) -> Iterator[str]:
    """A fence longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    yield from (f"{fence}text", text.rstrip("\n"), fence)
