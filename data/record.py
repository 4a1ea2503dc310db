"""The base of every settings and protocol record: frozen, typed, unknown keys refused.

Knows no YAML, no command line and no Ray. The string under a field is its help text.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen record; the docstring under each field becomes its description in ``--help``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())
    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Settings that had another name before 0.2: old last word of the key -> new one. The old one is an error."""
