"""The policies that are served side by side: which one a request gets, and what each says of itself. Knows no HTTP and no Ray."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from data.attributes import AttributeSchema
from serve.profiles import Profile, shipped
from serve.protocol import ProtocolError
from serve.request import Card


@dataclass(frozen=True)
class Model:
    """One served policy."""

    card: Card
    weight: float = 1.0
    """Its share of the requests that name no model; 0 = only those that name it."""
    schema: AttributeSchema = field(init=False)
    profiles: dict[str, Profile] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", AttributeSchema.model_validate_json(self.card.schema_json))
        object.__setattr__(self, "profiles", shipped(self.schema))

    @property
    def name(self) -> str:
        return self.card.name


class Models:
    """All of them, the first being the one that pages and schemas are about unless another is named."""

    def __init__(self, models: Sequence[Model], draw: Callable[[], float] = random.random):
        self._models = {model.name: model for model in models}
        self._draw = draw

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    @property
    def first(self) -> Model:
        return next(iter(self._models.values()))

    def named(self, name: str) -> Model:
        """Raises WireProblem (404) that lists them all."""
        if name not in self._models:
            raise ProtocolError(
                f"model {name[:60]!r} is not served here; served: {', '.join(self._models)}",
                "model",
                "model_not_found",
                404,
            )
        return self._models[name]

    def pick(self, name: str | None) -> Model:
        """The model of a request: the one it names, or one drawn by weight."""
        if name is not None:
            return self.named(name)
        point = self._draw() * sum(m.weight for m in self)
        for model in self._models.values():
            point -= model.weight
            if point < 0:
                return model
        return self.first

    def put(self, card: Card) -> None:
        """The model of that name now answers from another checkpoint."""
        self._models[card.name] = Model(card, self._models[card.name].weight)
