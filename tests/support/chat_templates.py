"""Chat templates like those of well-known models, with the special tokens each of them needs."""

import functools
from pathlib import Path
from typing import Any

import tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from actors.modeling.tokenizer import encoder, make_template, train_tokenizer
from data.attributes import shipped
from data.template import Template
from data.tokens import Encode

_HEADER = "{% for message in messages %}"
_ASKED = "{% endfor %}{% if add_generation_prompt %}"
LLAMA3 = (
    "{{ bos_token }}" + _HEADER + "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}"
    + _ASKED
    + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    _HEADER
    + "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    + _ASKED
    + "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}" + CHATML
)
ZEPHYR = (
    _HEADER
    + "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    + _ASKED
    + "{{ '<|assistant|>\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + _HEADER
    + "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + message['content'] | trim + '<end_of_turn>\n' }}" + _ASKED + "{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set first = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (first if loop.first else '') + message['content'] + ' [/INST] ' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
NUMBERED = CHATML.replace("message['role'] + '\n'", "message['role'] + ' ' ~ loop.index ~ '\n'").replace(
    "'<|im_start|>assistant\n'", "'<|im_start|>assistant ' ~ (messages|length + 1) ~ '\n'"
)
"""Each turn has its number: what is written around a text depends on its place."""
QWEN_TOOLS = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- "# Tools\\n\\nYou may call functions. Their signatures are within <tools></tools>:\\n<tools>" }}
{%- for tool in tools %}{{- "\\n" + (tool | tojson) }}{%- endfor %}
{{- "\\n</tools>\\n\\nCall one so:\\n<tool_call>\\n{\\"name\\": ..., \\"arguments\\": ...}\\n</tool_call>" }}
{{- "<|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant' + ('\\n' + message.content if message.content else '') }}
{%- for tool_call in message.tool_calls %}
{%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' + (tool_call.arguments | tojson) }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
"""Qwen 2.5's, with shorter sentences."""
_IM = ("<|im_start|>", "<|im_end|>")
SHAPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "llama3": (LLAMA3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "chatml": (CHATML, _IM),
    "qwen": (QWEN, _IM),
    "qwen_tools": (QWEN_TOOLS, _IM),
    "zephyr": (ZEPHYR, ("</s>",)),
    "gemma": (GEMMA, ("<bos>", "<start_of_turn>", "<end_of_turn>")),
    "llama2": (LLAMA2, ("<s>", "</s>")),
    "numbered": (NUMBERED, _IM),
}
"""Name -> template, and its special tokens: the first begins a text, the last ends a turn."""


def chat_tokenizer(shape: str, **changed: Any) -> PreTrainedTokenizerFast:
    """A small tokenizer with the special tokens and the template of `shape`; `changed` replaces the template."""
    template, own = SHAPES[shape]
    tokenizer = train_tokenizer(["Tell me about bees. They dance and guard ships; so it is, 1. 2. 3."] * 20, 320)
    tokenizer.add_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in own], special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token = own[0], own[-1]
    tokenizer.chat_template = changed.get("template", template)
    return tokenizer


def chat_folder(shape: str, folder: Path, **changed: Any) -> str:
    """A model folder without weights."""
    tokenizer = chat_tokenizer(shape, **changed)
    LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, num_attention_heads=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@functools.cache
def template_of(shape: str) -> tuple[Any, Template, Encode]:
    """The tokenizer of a shape, its prompt format with the attributes of the synthetic world, and its encoding."""
    tokenizer = chat_tokenizer("chatml" if shape == "steerlm" else shape)
    template = make_template(tokenizer, shipped("lab"), "steerlm" if shape == "steerlm" else "chat")
    return tokenizer, template, functools.cache(encoder(tokenizer))
