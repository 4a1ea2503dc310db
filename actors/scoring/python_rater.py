"""A person's own function as a rater. Knows no row."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from data.errors import UserError
from data.rater_settings import PythonRaterSettings
from data.turns import Rated, Turn, number


class PythonRater:
    """Calls the function once for each answer."""

    def __init__(self, settings: PythonRaterSettings):
        """Raises UserError if there is no such function."""
        self._settings = settings
        module, _, name = settings.function.rpartition(".")
        try:
            self._function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"{settings.name} cannot be imported ({error}); correct `function` in annotate.raters, or install its "
                "package on every machine"
            ) from None
        if not callable(self._function):
            raise UserError(f"{settings.name} is no function; correct `function` in annotate.raters")

    def __call__(self, turns: Sequence[Turn]) -> list[Rated]:
        """Raises UserError for a reply that is no mapping, or that has attributes that the settings lack."""
        return [self._rated(turn) for turn in turns]

    def _rated(self, turn: Turn) -> Rated:
        messages = [{"role": "system", "content": turn.system}] if turn.system else []
        messages += [{"role": m.role, "content": m.content} for m in turn.messages]
        try:
            found = self._function(messages)
        except Exception as error:  # a function of somebody else's may raise anything
            reason = f"raised {type(error).__name__}"
            return Rated(failed=dict.fromkeys(self._settings.attributes, reason), again=True)
        self._require_mapping(found)
        values = {name: number(value) for name, value in found.items()}
        wrong = {name: "no number" for name, value in values.items() if value is None}
        return Rated({name: value for name, value in values.items() if value is not None}, wrong)

    def _require_mapping(self, found: Any) -> None:
        if not isinstance(found, Mapping):
            raise UserError(f"{self._settings.name} returned a {type(found).__name__}; it returns attribute -> number")
        if unknown := [name for name in found if name not in self._settings.attributes]:
            raise UserError(
                f"{self._settings.name} returned {unknown[0]!r}, which its attributes in annotate.raters do not have "
                f"({', '.join(self._settings.attributes)})"
            )
