"""How far a growing text is known: where its first object or list ends, and where a mark stands outside of its strings.

Each character is read once, however small the pieces are in which the text grows. Knows no tools.
"""

import re

_OUTSIDE, _IN_STRING = re.compile(r'["{}\[\]]'), re.compile(r'["\\]')


class JsonScan:
    """Of one text, which only grows."""

    def __init__(self, mark: str):
        """`mark` is no part of JSON outside of its strings."""
        self._mark = mark
        self._outside = re.compile(rf"{_OUTSIDE.pattern}|{re.escape(mark[0])}")
        self._at = self._depth = 0
        self._in_string = False
        self.end: int | None = None
        """Behind the first place where as many brackets are closed as were opened."""
        self.mark_at: int | None = None

    def read(self, text: str) -> None:
        """`text` is what it was, and more."""
        while self.mark_at is None:
            found = (_IN_STRING if self._in_string else self._outside).search(text, self._at)
            if found is None:
                self._at = len(text)
                return
            self._at = found.start()
            match found[0]:
                case "\\" if self._at + 1 == len(text):  # what it escapes has yet to come
                    return
                case "\\":
                    self._at += 1
                case '"':
                    self._in_string = not self._in_string
                case "{" | "[":
                    self._depth += 1
                case "}" | "]":
                    self._depth -= 1
                    if self._depth == 0 and self.end is None:
                        self.end = self._at + 1
                case _ if text.startswith(self._mark, self._at):
                    self.mark_at = self._at
                case _ if self._mark.startswith(text[self._at : self._at + len(self._mark)]):
                    return  # its rest has yet to come
            self._at += 1
