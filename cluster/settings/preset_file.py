"""The text of a preset, as people mean it, within limits that no hostile file gets past. Knows no record.

Not as YAML 1.1 means it: `1e-3` is a number, `no` and `on` are words, `010` and `2024-01-01` stay text. A key that
stands twice, an alias of what it stands in, and tags are errors.
"""

import re
from typing import Any

import yaml

from cluster.settings.errors import SettingsError
from cluster.settings.help import plain

MAX_BYTES = 256 * 1024
"""Of a file; a shipped preset has 3 kB."""
MAX_DEPTH = 32
"""Sections in sections."""
MAX_VALUES = 20_000
"""Values with what their aliases stand for: a page of aliases of aliases can stand for 10^9."""
MAX_DIGITS = 40
SURROGATE = re.compile("[\ud800-\udfff]")


def read_preset(path: str, shown: str) -> Any:
    """What the file at `path` holds, None if it is empty. Raises OSError, and SettingsError that names it `shown`."""
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise SettingsError(f"{shown} has more than {MAX_BYTES // 1024} KiB, so it is no preset; name another file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingsError(
            f"{shown} is no UTF-8 text (line {line}, byte 0x{content[error.start]:02x}); save it as UTF-8"
        ) from None
    return parsed(text, shown, is_file=True)


def parsed(text: str, where: str, is_file: bool = False) -> Any:
    """The value of a YAML text; raises SettingsError, with the line if it is a file's."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark and is_file else ""
        raise SettingsError(f"{where} is no valid YAML: {line}{plain(str(error.problem), 150)}") from None
    except yaml.reader.ReaderError as error:
        line = f"line {text.count(chr(10), 0, error.position) + 1}: " if is_file else ""
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise SettingsError(f"{where} is no valid YAML: {line}character 0x{code:02x} is not allowed in it") from None


class _Loader(yaml.SafeLoader):
    """YAML with the plain scalars of YAML 1.2's core schema, text keys only, no key twice, no tags, and limits."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def __init__(self, stream: str):
        super().__init__(stream)
        self._open: list[str | None] = []
        """Anchors of the nodes that are being read, the outermost first."""
        self._sizes: dict[int, int] = {}
        """Node -> values in it, those of aliases included."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._open:
            raise _problem(f"*{event.anchor} stands in what it is an alias of", event)
        if getattr(event, "tag", None) not in (None, "!", "tag:yaml.org,2002:str"):
            raise _problem(f"the tag {event.tag.replace('tag:yaml.org,2002:', '!!')} cannot be used in a preset", event)
        if len(self._open) >= MAX_DEPTH:
            raise _problem(f"more than {MAX_DEPTH} levels of sections and lists", event)
        self._open.append(None if isinstance(event, yaml.AliasEvent) else event.anchor)
        node = super().compose_node(parent, index)
        self._open.pop()
        if node is not None and not isinstance(event, yaml.AliasEvent):
            self._check(node)
        return node

    def _check(self, node: yaml.Node) -> None:
        """Raise unless the node, whole now, has keys of its own and a size within the limit."""
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _require_keys(node)
            children = [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        elif SURROGATE.search(node.value):
            raise _problem("an escape such as \\uD83D is half a character; write the character itself", node)
        self._sizes[id(node)] = size = 1 + sum(self._sizes[id(child)] for child in children)
        if size > MAX_VALUES:
            raise _problem(f"more than {MAX_VALUES:,} values, those of aliases included", node)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        # Not SafeLoader's: that one reads 010 as 8.
        written = str(self.construct_scalar(node)).replace("_", "")
        if len(written) > MAX_DIGITS:
            raise _problem(f"a number of {len(written)} digits; at most {MAX_DIGITS} are read", node)
        return int(written, 0)


def _require_keys(node: yaml.MappingNode) -> None:
    """Raise unless keys are plain words and none stands twice; they are text from now on.

    `4: humor` and `null: x` have text keys as well, so that dotted paths are unambiguous.
    """
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise _problem("a key must be a plain word", key)
        if key.value in seen:
            word = repr(plain(key.value))
            raise _problem(f"key {word} stands twice (line {seen[key.value]} and line {line}); keep one", key)
        seen[key.value] = line
        if key.tag != "tag:yaml.org,2002:merge":
            key.tag = "tag:yaml.org,2002:str"


def _problem(text: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, text, at.start_mark)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9_]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", "<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
