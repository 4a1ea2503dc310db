"""Open Assistant's message trees, a message or a tree a line; conversations out, every answer rated exactly once.

A conversation is a path from the root to a leaf. Paths share their first answers: an answer's ratings go with the first
path that has it, in later paths it is context without ratings, and a path without a new answer is left out. Knows no
other format (`data.formats`), and not how a file is opened (`data.lines`).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from data.attributes import AttributeSchema, Values
from data.conversation import Message, Rejected
from data.lines import MAX_MESSAGES, BadRecord, Line, Row, column, lines, optional_text, ratings, row, text, typed
from data.printable import printable
from data.unpacked import FileRange

ROLES = {"prompter": "user", "assistant": "assistant"}
LABEL_SCALE = (0, 1)
"""Likert 5 divided by 4, averaged over raters (arXiv 2304.07327)."""
MAX_TREE_MESSAGES = 1_000_000
"""All conversations of a tree may have so many messages together; a deep tree with many leaves has their product."""


@dataclass
class TreeMessage:
    """One message of a tree."""

    line: Line
    """Where it stands, without its record: a whole file of nodes is held at a time."""
    id: str
    parent: str
    """"" for the root."""
    message: Message = field(default=Message("", ""))
    human: Values = field(default_factory=dict)
    bad: BadRecord | None = None
    """Why it can be in no conversation."""


def oasst_messages(file: str, schema: AttributeSchema, source: str, within: FileRange | None = None) -> Iterator[Row]:
    """A message a line, in any order: its texts are held until its end (all of OASST2: some 200,000 messages)."""
    assert within is None, "the messages of a tree may stand anywhere in its file"
    trees: dict[str, dict[str, TreeMessage]] = defaultdict(dict)
    for line in lines(file):
        if isinstance(line, Rejected):
            yield line
            continue
        try:
            nodes, id = trees[text(line.record, "message_tree_id")], text(line.record, "message_id")
            if not id:
                raise BadRecord("missing_column", "message_id is empty, so no reply can name its parent")
            if id in nodes:
                raise BadRecord(
                    "duplicate_message",
                    f"message {printable(id, 40)!r} was there before, on line {nodes[id].line.number}",
                )
            nodes[id] = _node(line, line.record, id, optional_text(line.record, "parent_id"), schema)
        except BadRecord as bad:
            yield bad.at(line)
    for group, nodes in trees.items():
        yield from _conversations(nodes, group, source)


def oasst_trees(line: Line, schema: AttributeSchema, source: str) -> Iterator[Row]:
    """A tree a line: `message_tree_id`, and `prompt` with its `replies`, each with replies of its own."""
    nodes: dict[str, TreeMessage] = {}
    waiting = [(typed(column(line.record, "prompt"), dict, "prompt"), "")]
    while waiting:
        record, parent = waiting.pop()
        id = str(len(nodes) + 1)
        nodes[id] = _node(line, record, id, parent, schema)
        replies = record.get("replies") or []
        waiting += [(typed(reply, dict, "a reply"), id) for reply in reversed(typed(replies, list, "replies"))]
    yield from _conversations(nodes, text(line.record, "message_tree_id"), source)


def _node(line: Line, record: Mapping[str, Any], id: str, parent: str, schema: AttributeSchema) -> TreeMessage:
    node = TreeMessage(Line(line.file, line.number, {}), id, parent)
    try:
        role = text(record, "role")
        node.message = Message(ROLES.get(role, role), text(record, "text"))
        if record.get("deleted"):
            raise BadRecord("deleted", "the message is marked as deleted")
        if role not in ROLES:
            raise BadRecord("unknown_role", f"role is {printable(role, 40)!r}, allowed are {', '.join(ROLES)}")
        if not node.message.content.strip():
            raise BadRecord("empty_message", f"the {role}'s message has no text")
        if role == "assistant":
            node.human = ratings(_labels(record.get("labels")), schema, LABEL_SCALE)
    except BadRecord as bad:
        node.bad = bad
    return node


def _labels(labels: Any) -> dict[str, Any]:
    """Label name -> value, of labels that at least one person gave.

    A list of messages has `{"name": ["humor"], "value": [0.5], "count": [3]}`.
    A tree has `{"humor": {"value": 0.5, "count": 3}}`.
    """
    if labels is None:
        return {}
    labels = typed(labels, dict, "labels")
    if "name" not in labels:
        entries = [(name, typed(label, dict, name)) for name, label in labels.items() if label is not None]
        return {name: label.get("value") for name, label in entries if label.get("count", 1)}
    names, values = (typed(column(labels, name), list, name) for name in ("name", "value"))
    counts = typed(labels.get("count", [1] * len(names)), list, "count")
    if not len(names) == len(values) == len(counts):
        raise BadRecord(
            "wrong_type",
            f"labels have {len(names)} names, {len(values)} values and {len(counts)} counts, they must be as many",
        )
    rated = [
        (typed(name, str, "name"), value) for name, value, count in zip(names, values, counts, strict=True) if count
    ]
    if len(found := dict(rated)) < len(rated):
        raise BadRecord("duplicate_key", "labels have a name twice, one value would be lost")
    return found


def _conversations(nodes: Mapping[str, TreeMessage], group: str, source: str) -> Iterator[Row]:
    """All paths of one tree in order, then every message that is in none of them, with its or its parent's fault."""
    replies: dict[str, list[TreeMessage]] = defaultdict(list)
    for node in nodes.values():
        replies[node.parent].append(node)
    kept: set[str] = set()
    rated: set[str] = set()
    room = MAX_TREE_MESSAGES
    waiting = [(node, 1) for node in _fitting(replies[""], "user")[::-1]]
    while waiting:
        node, depth = waiting.pop()
        if depth > min(MAX_MESSAGES, room):
            node.bad = BadRecord(
                "too_many_messages",
                f"a conversation has at most {MAX_MESSAGES:,} messages, those of a tree {MAX_TREE_MESSAGES:,} together",
            )
            continue
        kept.add(node.id)
        following = _fitting(replies[node.id], "user" if node.message.role == "assistant" else "assistant")
        waiting += [(reply, depth + 1) for reply in following[::-1]]
        if not following:
            room -= depth
            yield from _path(node, nodes, rated, group, source)
    yield from (_fault(node, nodes) for node in nodes.values() if node.id not in kept)


def _fitting(replies: Iterable[TreeMessage], role: str) -> list[TreeMessage]:
    """The sound ones; a message of the other role is marked as bad here, where its place in the tree is known."""
    sound = [node for node in replies if not node.bad]
    for node in sound:
        if node.message.role != role:
            node.bad = BadRecord(
                "roles_do_not_alternate", f"the {node.message.role} speaks where it is the {role}'s turn"
            )
    return [node for node in sound if not node.bad]


def _path(
    leaf: TreeMessage, nodes: Mapping[str, TreeMessage], rated: set[str], group: str, source: str
) -> Iterator[Row]:
    """The path to `leaf`, cut back to its last answer; nothing if that answer was in an earlier path."""
    last = leaf if leaf.message.role == "assistant" else nodes.get(leaf.parent)
    if last is None:
        yield Rejected(leaf.line.file, leaf.line.number, "no_answer", "nobody answered the tree's first message")
    elif last.id not in rated:
        path = list(_upwards(last, nodes))[::-1]
        human = [{} if node.id in rated else node.human for node in path if node.message.role == "assistant"]
        rated.update(node.id for node in path)
        yield row(last.line, source, [node.message for node in path], human, group=group)


def _upwards(node: TreeMessage | None, nodes: Mapping[str, TreeMessage]) -> Iterator[TreeMessage]:
    while node:
        yield node
        node = nodes.get(node.parent)


def _fault(node: TreeMessage, nodes: Mapping[str, TreeMessage]) -> Rejected:
    if node.bad:
        return node.bad.at(node.line)
    if node.parent not in nodes:
        return BadRecord(
            "missing_parent", f"it answers message {printable(node.parent, 40)!r}, which is not in the file"
        ).at(node.line)
    return BadRecord("rejected_parent", "a message before it was rejected, so its conversation has a gap").at(node.line)
