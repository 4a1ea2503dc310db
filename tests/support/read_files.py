"""Which local files were read for their checksums."""

import os

import pytest

from data import source_checksums


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the local files whose content was read, from here on."""
    found: list[str] = []
    content = source_checksums._content.__wrapped__

    def counted(file: str, state: str) -> str:
        found.append(os.path.basename(file))
        return content(file, state)

    monkeypatch.setattr(source_checksums, "_content", counted)
    return found
