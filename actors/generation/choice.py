"""Which engine runs a policy: the one that is set, or by `auto` the one that can and is faster. Starts none."""

from collections.abc import Callable
from dataclasses import dataclass

from actors.generation.settings import EngineKind, EnginePlace, EngineSettings

NAMES = {"transformers": "transformers", "vllm": "vLLM"}


@dataclass(frozen=True)
class Choice:
    """An engine, and why."""

    kind: EngineKind
    reason: str

    def line(self, place: EnginePlace) -> str:
        """For the log."""
        return f"{place.setting}: {NAMES[self.kind]}, because {self.reason}"


def chosen(
    settings: EngineSettings,
    place: EnginePlace,
    on_gpu: bool,
    installed: Callable[[], bool],
    refused: Callable[[], str],
) -> Choice:
    """The engine of a process that is `on_gpu` or on the CPU.

    `installed`: is vLLM here? `refused`: why vLLM cannot run the policy here, "" if it can; asked last, because it
    takes seconds.
    """
    if settings.kind != "auto":
        return Choice(settings.kind, f"{place.setting}.kind is {settings.kind}")
    if wanted := settings.wanted:
        option = settings.deciding(wanted)
        return Choice(wanted, f"{place.setting}.{option} is set, which it alone has")
    if not on_gpu:
        return Choice("transformers", f"no GPU is set aside ({place.gpus_setting})")
    if not installed():
        return Choice("transformers", "vLLM is not installed here")
    if reason := refused():
        return Choice("transformers", f"vLLM cannot run this policy here: {reason}")
    return Choice("vllm", "it is installed, runs this policy, and a GPU is set aside")
