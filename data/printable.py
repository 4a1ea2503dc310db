"""Text of strangers, before it reaches a terminal, a log or an error. Knows no logger."""

SHOWN = 80
"""Characters of a stranger's text that a message shows."""


def printable(text: str, limit: int = SHOWN) -> str:
    """`text` on one line, at most `limit` characters and "...": what no terminal may obey is escaped.

    Escaped are control characters (line breaks and `\\x1b` too), format characters such as those that turn the reading
    direction, and half surrogates: exactly what `str.isprintable` refuses.

    >>> printable("a\\x1b]0;b\\n")
    'a\\\\x1b]0;b\\\\n'
    """
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in shown)
    return shown + ("..." if len(text) > limit else "")
