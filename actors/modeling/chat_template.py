"""A model's own chat template, written by strangers in Jinja: found, tried with limits, and rendered.

Every fault in it is one sentence. The sandbox is transformers' own; it limits neither time nor memory, so the first
rendering, of a small sample, is watched. Knows no prompt format.
"""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from data.errors import UserError
from data.printable import printable
from data.wrapped_template import Chat, TemplateRefusal

MAX_CHARS = 128 * 1024
"""Of a template's source; the longest of known models have some 20,000."""
TRIAL_S, TRIAL_KIB = 5.0, 512 * 1024
"""A sample of six short messages takes milliseconds, and no memory to speak of."""
TEMPLATE_FILE = "<template>"
"""What Jinja calls a template without a file."""
REMEDY = "set template: steerlm, or base.model to a model with another chat template"


def own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The Jinja source, of several named ones "default". Raises UserError if there is none to use."""
    source: Any = tokenizer.chat_template
    if isinstance(source, dict):
        names = ", ".join(printable(str(name), 20) for name in list(source)[:5])
        source = source.get("default")
        if not isinstance(source, str):
            raise UserError(f"this model's chat templates are {names}, and none is named default; {REMEDY}")
    if not isinstance(source, str):
        raise UserError(
            "template: chat needs a model with one chat template of its own, and this tokenizer has none; "
            "set template: steerlm"
        )
    if len(source) > MAX_CHARS:
        raise UserError(
            f"the model's chat template has {len(source)} characters, at most {MAX_CHARS} are read; {REMEDY}"
        )
    return source


class ChatRenderer:
    """Renders a template with a tokenizer's special tokens; raises TemplateRefusal if the template fails or raises."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer

    def __call__(self, template: str, messages: Chat, add_generation_prompt: bool, tools: Chat | None = None) -> str:
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
        if tools:
            options["tools"] = tools
        try:
            return str(self._tokenizer.apply_chat_template(messages, chat_template=template, **options))
        except UserError:
            raise
        except jinja2.TemplateSyntaxError as error:
            raise TemplateRefusal(
                _told(f"is no valid Jinja, line {error.lineno}: {printable(str(error.message), 120)}")
            ) from None
        except Exception as error:  # what a stranger's template calls may raise anything
            kind = "" if type(error) is jinja2.TemplateError else f"{type(error).__name__}: "
            raise TemplateRefusal(_told(f"refuses a conversation ({kind}{printable(str(error), 120)})")) from None


@contextmanager
def watched() -> Iterator[None]:
    """Ends a rendering in the block that goes on for TRIAL_S or takes TRIAL_KIB: raises UserError.

    It looks at every line of the compiled template, and at every call; one long call into C is not interrupted.
    """
    # Of this thread's own time: on a busy machine others' would count too.
    end, most = time.thread_time() + TRIAL_S, _peak_kib() + TRIAL_KIB

    def check(frame: FrameType, event: str, argument: object) -> Any:
        if time.thread_time() > end:
            raise UserError(_told(f"takes more than {TRIAL_S:g} s for six short messages"))
        if _peak_kib() > most:
            raise UserError(_told(f"takes more than {TRIAL_KIB // 1024} MiB for six short messages"))
        return check if frame.f_code.co_filename == TEMPLATE_FILE else None

    before = sys.gettrace()
    sys.settrace(check)
    try:
        yield
    finally:
        sys.settrace(before)


def _peak_kib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def _told(what: str) -> str:
    return f"the model's chat template {what}; {REMEDY}"
