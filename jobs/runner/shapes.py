"""The models of a run as `--plan` knows them, from their config alone. Knows no Ray."""

from dataclasses import dataclass

from actors.modeling.backbone import backbone_of, max_positions
from actors.modeling.layer_heads import cut_after
from actors.modeling.model_part import ModelPart
from actors.modeling.model_shape import HubUnreachable, ModelShape, NotOnHub, read_config, shape_of, shape_of_small
from actors.modeling.settings import HeadsSettings
from actors.modeling.tiny_llama import small_config
from actors.scoring.planned_forward import RaterShape
from actors.scoring.reward_heads import rater_shape
from data.errors import UserError
from data.rater_settings import HfRaterSettings
from data.uris import shown_uri
from jobs.runner.preset import Preset


@dataclass(frozen=True)
class Shapes:
    """None = unknown."""

    base: ModelShape | None
    """The language model that policies start from."""
    predictor: ModelShape | None
    """The predictor's backbone with its heads."""
    warmup: ModelShape | None
    """The backbone as a language model."""

    @classmethod
    def of(cls, preset: Preset) -> "Shapes":
        """Raises UserError, naming the setting, for a config that cannot be read or built, or that the hub lacks."""
        base, backbone, heads = preset.base.model, preset.predictor.backbone, preset.predictor.heads
        if base is None and backbone is None:
            small = shape_of_small(preset.base.small)
            cut = shape_of(cut_after(small_config(preset.base.small), heads), predictor=True) if heads else small
            return cls(small, cut, small)
        sized = ModelShape(preset.base.num_parameters) if preset.base.num_parameters else None
        language = shape_of_small(preset.base.small) if base is None else _shape("base.model", base, sized)
        if backbone is None:
            assert base is not None
            return cls(language, _shape("base.model", base, sized, predictor=True, heads=heads), language)
        predictor = _shape("predictor.backbone", backbone, None, predictor=True, is_needed=False, heads=heads)
        warmup = _shape("predictor.backbone", backbone, None, is_needed=False) if preset.predictor.warmup else None
        return cls(language, predictor, warmup)

    def of_training(self, path: str, preset: Preset) -> tuple[ModelShape | None, bool]:
        """The model of the training with these settings; and is its loss over the vocabulary?"""
        if path == "predictor.learner":
            return self.predictor, bool(preset.predictor.lm_loss_weight)
        return (self.warmup if path == "predictor.warmup" else self.base), True


def rater_shapes(preset: Preset) -> dict[str, RaterShape | None]:
    """Each `hf` rater, by its name; None where the hub does not say.

    Raises UserError, naming the setting, for a config that cannot be read or built.
    """
    found: dict[str, RaterShape | None] = {}
    for number, rater in enumerate(preset.annotate.raters):
        if not isinstance(rater, HfRaterSettings):
            continue
        try:
            config = read_config(rater.model)
            longest = min(rater.max_tokens, max_positions(config) or rater.max_tokens)
            found[rater.name] = RaterShape(rater_shape(rater, config), longest)
        except (HubUnreachable, NotOnHub):
            found[rater.name] = None
        except UserError as error:
            raise UserError(f"annotate.raters.{number}.model: {error}") from None
    return found


def cannot_split(preset: Preset, num_parts: int) -> str:
    """Why the predictor cannot be split into so many parts; "" = it can, or the hub does not say what it is."""
    model, heads = preset.predictor.backbone or preset.base.model, preset.predictor.heads
    if num_parts == 1:
        return ""
    try:
        config = read_config(model) if model else small_config(preset.base.small)
        ModelPart(0, num_parts).require_possible(cut_after(config, heads) if heads else config)
    except (HubUnreachable, NotOnHub):
        return ""
    except UserError as error:
        return str(error)
    return ""


def _shape(
    setting: str,
    model: str,
    sized: ModelShape | None,
    predictor: bool = False,
    is_needed: bool = True,
    heads: HeadsSettings | None = None,
) -> ModelShape | None:
    """`sized` where the hub does not answer; None without, unless the shape `is_needed`."""
    try:
        config = cut_after(read_config(model), heads) if heads else read_config(model)
        if not predictor and not backbone_of(config).causal:
            return None  # an encoder has no language model
        return shape_of(config, predictor)
    except (HubUnreachable, NotOnHub) as error:
        if sized or not is_needed:
            return sized
        answer = "has none of that name for you" if isinstance(error, NotOnHub) else "cannot be reached"
        raise UserError(
            f"{setting} is {shown_uri(model)}, which is no folder here, and the hub {answer} ({error}); set {setting} "
            f"to what is there, or set base.num_parameters if the machines of the run reach it"
        ) from None
    except UserError as error:
        raise UserError(f"{setting}: {error}") from None
