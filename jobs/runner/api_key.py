"""The key of an endpoint that a job asks: from a file, or from the environment. Knows no endpoint."""

import os
from typing import Protocol

from data.errors import UserError
from data.storage import Storage


class NamesKey(Protocol):
    """Settings of an endpoint; some have a `key_file` as well, which comes first."""

    @property
    def key_variable(self) -> str | None: ...


def api_key(settings: NamesKey, section: str, whose: str) -> str | None:
    """The key that `settings` name; None if none is needed. Raises UserError if it is missing.

    `section`: where they are in the preset; `whose`: of the message, as in "the judge's".
    """
    file, in_a_file = getattr(settings, "key_file", None), hasattr(settings, "key_file")
    if file:
        key = Storage(file).read_text().strip()
        if not key:
            raise UserError(f"{file} is empty; write {whose} key into it ({section}.key_file)")
        return key
    if settings.key_variable is None:
        return None
    key = os.environ.get(settings.key_variable, "").strip()
    if not key:
        raise UserError(
            f"the environment variable {settings.key_variable} is not set; put {whose} key there, name another "
            f"variable in {section}.key_variable{f' or a file in {section}.key_file' if in_a_file else ''}; "
            f"{section}.key_variable=null sends no key"
        )
    return key
