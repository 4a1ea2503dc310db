"""Chat templates of strangers: each fault is one sentence that names the settings, and a bomb ends by itself."""

import sys
import time
from pathlib import Path

import pytest
from support.chat_templates import CHATML, LLAMA3, chat_tokenizer
from transformers import LlamaConfig

import actors.modeling.chat_template as chat_template
from actors.modeling.model_folder import new_format
from actors.modeling.tokenizer import check_equality, make_template
from data.attributes import shipped
from data.errors import UserError
from data.wrapped_template import WrappedTemplate

SCHEMA = shipped("lab")
LOOP = (
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"
)
DOUBLING = "{% set ns = namespace(s='a') %}{% for a in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
CALLS = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"


def refusal(template: object) -> str:
    """What is said about a template; it is one short line that names the way out."""
    with pytest.raises(UserError) as caught:
        make_template(chat_tokenizer("chatml", template=template), SCHEMA, "chat")
    said = str(caught.value)
    assert len(said) <= 400
    assert said.isprintable()
    assert "set template: steerlm" in said
    return said


@pytest.mark.case("C14: Jinja of others")
@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("{% for x in y %}", "is no valid Jinja, line 4: Unexpected end of template"),
        ("{{ messages | nope }}", "is no valid Jinja, line 1: No filter named 'nope'"),
        ("{{ x y }}", "is no valid Jinja, line 1: expected token"),
        ("{{ strftime_now() }}", "TypeError: "),
        ("{{ messages[99]['role'] }}", "UndefinedError: list object has no element 99"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ raise_exception('no\x1b]0;x\nEnd') }}", r"refuses a conversation (no\x1b]0;x\nEnd)"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("x" * 200_000, "has 20"),
    ],
)
def test_a_fault_of_a_template_is_one_sentence(added: str, said: str) -> None:
    assert said in refusal(added + CHATML)


@pytest.mark.case("B12: a template that computes for ever")
@pytest.mark.parametrize("bomb", [LOOP, CALLS, DOUBLING], ids=["loops", "calls", "memory"])
def test_a_bomb_ends_by_itself(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "TRIAL_S", 0.3)
    monkeypatch.setattr(chat_template, "TRIAL_KIB", 64 * 1024)
    before = sys.gettrace()
    assert "for six short messages" in refusal(bomb + CHATML)
    assert sys.gettrace() is before


def test_waiting_for_a_busy_machine_is_not_the_template_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "TRIAL_S", 0.05)
    with chat_template.watched():
        time.sleep(0.1)
        assert len(CHATML.split()) > 1


@pytest.mark.case("C14: named templates")
def test_of_named_templates_the_default_is_taken() -> None:
    template = make_template(chat_tokenizer("chatml", template={"tool_use": "x", "default": CHATML}), SCHEMA, "chat")
    assert isinstance(template, WrappedTemplate)
    assert template.base == CHATML
    said = refusal({"tool_use": CHATML, "rag\n": CHATML})
    assert r"chat templates are tool_use, rag\n, and none is named default" in said
    assert "has none" in refusal(None)


@pytest.mark.case("C14: strftime_now")
def test_a_date_in_a_template_is_no_obstacle() -> None:
    dated = "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + CHATML
    tokenizer = chat_tokenizer("chatml", template=dated)
    template = make_template(tokenizer, SCHEMA, "chat")
    assert isinstance(template, WrappedTemplate)
    assert (template.markers, template.is_local) == ((), True)
    check_equality(tokenizer, template)


@pytest.mark.case("05-chat-template-refuses-system")
@pytest.mark.parametrize("when", ["messages[0]['role'] == 'system'", "true"])
def test_a_model_folder_whose_template_refuses(when: str, tmp_path: Path) -> None:
    source = f"{{% if {when} %}}{{{{ raise_exception('no system here') }}}}{{% endif %}}{LLAMA3}"
    tokenizer = chat_tokenizer("llama3", template=source)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if when == "true":
        with pytest.raises(
            UserError, match=r"\(no system here\); set template: steerlm, or base.model to a model with"
        ):
            new_format(str(tmp_path), SCHEMA, "chat")
    else:
        template = new_format(str(tmp_path), SCHEMA, "chat").template
        assert isinstance(template, WrappedTemplate)
        assert template.merges_system
