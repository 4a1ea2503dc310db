"""The report's parts as Markdown: the same figures and tables as the page, for a terminal, a pull request or a wiki.

Text that others wrote (answers, settings) stands in fences, so that it stays text. Knows no run.
"""

import html
import re
from collections.abc import Iterator, Sequence

from jobs.reporting.blocks import Block, Gallery, Listing, Part, Quotes, Tiles
from jobs.reporting.tables import Table, as_markdown, markdown_text


def markdown(title: str, about: str, parts: Sequence[Part]) -> str:
    lines = [f"# {markdown_text(title)}", "", markdown_text(about), ""]
    for part in parts:
        lines += [f"## {markdown_text(part.title)}", "", markdown_text(part.about), ""]
        for block in part.blocks:
            lines += [*_lines(block), ""]
    return "\n".join(lines)


def _lines(block: Block) -> Iterator[str]:
    if isinstance(block, Tiles):
        for tile in block.tiles:
            yield f"- **{markdown_text(tile.value)}** {markdown_text(tile.label)} ({markdown_text(tile.note)})"
    elif isinstance(block, Table):
        yield from as_markdown(block)
    elif isinstance(block, Gallery):
        yield from (f"![{markdown_text(figure.alt)}](figures/{figure.name}.svg)" for figure in block.figures)
    elif isinstance(block, Quotes):
        yield from _folded(block.summary)
        for label, text in block.answers:
            yield from ("", f"{markdown_text(label)}:", "", *_fenced(text))
        yield from ("", "</details>")
    elif isinstance(block, Listing):
        yield from (*_folded(block.summary), "", *_fenced(block.text), "", "</details>")


def _folded(summary: str) -> Iterator[str]:
    # Markdown leaves the inside of an HTML block alone: only HTML's own characters need care.
    yield f"<details><summary>{html.escape(' '.join(summary.split()), quote=False)}</summary>"


def _fenced(text: str) -> Iterator[str]:
    """A fence longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    yield from (f"{fence}text", text.rstrip("\n"), fence)
