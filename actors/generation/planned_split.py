"""What splits of a model are possible, and what the largest of its stages holds, from its shape alone."""

from dataclasses import replace

from actors.generation.settings import EngineSettings
from actors.modeling.model_memory import MAX_PARTS
from actors.modeling.model_shape import ModelShape

NODE_PARTS = 8
"""GPUs that nodes usually have at most: where more are needed, stages on several nodes are proposed, too."""
MAX_STAGES = 16
"""That are proposed; each answer waits for all of them in turn."""


def divides(parts: int, shape: ModelShape) -> bool:
    """Can every layer be split into so many parts?"""
    heads, keys = shape.query_heads, shape.key_heads
    return parts == 1 or not heads or (heads % parts == 0 and (keys % parts == 0 or parts % keys == 0))


def impossible(settings: EngineSettings, setting: str, shape: ModelShape) -> str:
    """Why the model cannot be split as the settings at the path `setting` have it; "" = it can."""
    parts, stages = settings.tensor_parallel, settings.pipeline_parallel
    if shape.layers and stages > shape.layers:
        return (
            f"{setting}.pipeline_parallel is {stages}, and the model has {shape.layers} layers: set it to "
            f"{shape.layers} at most, so that each stage has one"
        )
    if divides(parts, shape):
        return ""
    allowed = ", ".join(str(n) for n in range(1, MAX_PARTS + 1) if divides(n, shape))
    return (
        f"{setting}.tensor_parallel is {parts}, which does not divide the model's {shape.query_heads} "
        f"attention heads, {shape.key_heads} of keys and values; set it to one of {allowed}"
    )


def largest_stage(shape: ModelShape, stages: int) -> ModelShape:
    """What one of `stages` holds at most: its layers, and the embedding or the output layer.

    Tied or not: vLLM's first stage has the one, its last the other. A model of which only the size is known is divided.
    """
    if stages == 1:
        return shape
    if not shape.layers:
        return replace(shape, num_parameters=-(-shape.num_parameters // stages))
    vocabulary = shape.vocabulary * shape.width
    layers = -(-shape.layers // stages)
    in_layers = min(shape.layers * shape.layer, shape.num_parameters - vocabulary)
    return replace(
        shape,
        num_parameters=in_layers * layers // shape.layers + vocabulary,
        layers=layers,
        cast=max(0, shape.cast - vocabulary) * layers // shape.layers + vocabulary,
    )
