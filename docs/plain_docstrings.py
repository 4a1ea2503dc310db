"""An extension of griffe: our docstrings are prose, so "[a][b]" in one is a shape or a list, never a link to "b"."""

from typing import Any

import griffe

WORD_JOINER = "\u2060"
"""Invisible; between the brackets it keeps Markdown from reading them as a link."""


class PlainDocstrings(griffe.Extension):
    """Changes the text of docstrings before they become pages."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("][", f"]{WORD_JOINER}[")
