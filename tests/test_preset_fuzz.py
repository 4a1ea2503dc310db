"""Broken presets and overrides: each is loaded, or is one message of at most 400 characters; none hangs."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.settings.errors import LONGEST, SettingsError
from cluster.settings.help import keys
from cluster.settings.load import load
from cluster.settings.preset_file import MAX_BYTES
from jobs.runner.preset import Preset

PRESETS = sorted((Path(__file__).parent.parent / "jobs" / "presets").glob("*.yaml"))
DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")
KEYS = keys(Preset)
LONGEST_S = 10.0
"""CPU seconds of one preset, so that other work on the machine decides nothing."""

# --- by hand ----------------------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 28))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 28))
BY_HAND: Mapping[str, tuple[str | bytes, str]] = {
    "Latin-1": (b"run: x\nstorage: caf\xe9\n", "is no UTF-8 text (line 2, byte 0xe9); save it as UTF-8"),
    "UTF-16": ("run: x\n".encode("utf-16"), "is no UTF-8 text (line 1, byte 0xff)"),
    "too deep": ("run: " + "[" * 5000 + "]" * 5000 + "\n#", "line 1: more than 32 levels of sections and lists"),
    "deep sections": ("\n".join("  " * i + "a:" for i in range(60)), "line 32: more than 32 levels"),
    "anchor in itself": ("run: x\na: &a [*a]\n", "line 2: *a stands in what it is an alias of"),
    "anchor in its section": ("run: x\na: &a {b: {c: *a}}\n", "line 2: *a stands in what it is an alias of"),
    "aliases of aliases": (LAUGHS, "values, those of aliases included"),
    "merges of merges": (MERGES, "values, those of aliases included"),
    "unknown alias": ("run: x\na: *nobody\n", "line 2: found undefined alias 'nobody'"),
    "a key twice": ("run: x\nseed: 1\nrun: y\n", "line 3: key 'run' stands twice (line 1 and line 3); keep one"),
    "tab": ("rows:\n\tlab: {}\n", "line 2: found character '\\t' that cannot start any token"),
    "null character": ("run: x\nstorage: a\0b\n", "line 2: character 0x00 is not allowed"),
    "escape": ("run: x\nstorage: a\x1b[31m\n", "line 2: character 0x1b is not allowed"),
    "a list": ("- run\n- x\n", 'holds ["run", "x"]; a preset is a mapping'),
    "a word": ("run\n", 'holds "run"; a preset is a mapping'),
    "a list as key": ("? [a]\n: 1\nrun: x", "line 1: a key must be a plain word"),
    "a number as key": ("4: x\nnull: y\n2024-01-01: z\nrun: x\n", "unknown key 4"),
    "a long number": ("seed: " + "9" * 5000 + "\nrun: x", "line 1: a number of 5000 digits; at most 40 are read"),
    "a long hex number": ("seed: 0x" + "f" * 5000 + "\nrun: x", "line 1: a number of 5002 digits"),
    "python": ("run: !!python/object/apply:os.system [id]\n\n#", "the tag !!python/object/apply:os.system cannot"),
    "timestamp": ("run: x\nseed: !!timestamp nonsense\n", "line 2: the tag !!timestamp cannot be used in a preset"),
    "int": ("run: x\nseed: !!int nonsense\n", "line 2: the tag !!int cannot be used in a preset"),
    "own tag": ("run: x\nseed: !mine 1\n", "line 2: the tag !mine cannot be used in a preset"),
    "two documents": ("run: x\n---\nrun: y\n", "line 2: but found another document"),
    "bidi in a key": ('run: x\n"a\\u202eb\\e]0;": 1\n', "unknown key a\\u202eb\\x1b]0;"),
    "half a surrogate": ('run: x\nstorage: "\\uD83D"\n', "line 2: an escape such as \\uD83D is half a character"),
    "extends a list": ("extends: [a]\n", "allowed is one file name"),
    "extends a name with a null": ('extends: "a\\0b"\n', "cannot read preset"),
    "extends a folder": ("extends: .\n", "Is a directory"),
    "too large": ("run: x\n" + "# padding\n" * (MAX_BYTES // 10), "has more than 256 KiB, so it is no preset"),
    "an alias as a merge": ("run: x\n<<: 3\n", "line 2: expected a mapping or list of mappings for merging"),
    "not closed": ("run: [x\n\n", "is no valid YAML: line 3"),
}


@pytest.mark.case("C14: presets")
@pytest.mark.parametrize(("text", "said"), BY_HAND.values(), ids=BY_HAND)
def test_a_text_that_is_no_preset_is_one_sentence_with_file_and_line(
    text: str | bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    started = time.process_time()
    message = ending(str(path))
    assert time.process_time() - started < LONGEST_S
    assert "odd.yaml" in message
    assert said in message


@pytest.mark.case("C14: presets")
def test_what_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    assert "Is a directory" in ending(str(tmp_path))
    assert "cannot read preset" in ending("a\0b.yaml")
    assert "No such file" in ending(str(tmp_path / ("x" * 200)))
    assert "has more than 256 KiB" in ending("/dev/zero")
    (tmp_path / "empty.yaml").write_text("")
    assert "is missing in" in ending(str(tmp_path / "empty.yaml"))
    for i in range(30):
        (tmp_path / f"{i}.yaml").write_text(f"extends: {i + 1}.yaml")
    assert "at most 16 are read" in ending(str(tmp_path / "0.yaml"))


@pytest.mark.case("C14: byte order mark")
def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "marked.yaml").write_bytes(b"\xef\xbb\xbf" + Path(DEMO).read_bytes())
    assert load(Preset, str(tmp_path / "marked.yaml")) == load(Preset, DEMO)


@pytest.mark.case("C14: merges")
def test_a_section_that_merges_may_be_merged_before_it_is_read(tmp_path: Path) -> None:
    """Its keys were counted twice, as merging had written the others beside them."""
    demo = Path(DEMO).read_text()
    (tmp_path / "merged.yaml").write_text(
        demo.replace("predictor:\n  learner:\n", "predictor:\n  learner: &second\n").replace(
            "policy:\n  learner:\n    <<: *learner\n    epochs: 2", "policy:\n  learner:\n    <<: *second"
        )
    )
    assert load(Preset, str(tmp_path / "merged.yaml")).policy.learner.epochs == 3


@pytest.mark.case("C14: overrides")
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("a..b=1", "'a..b=1' is no setting; write key.path=value"),
        ("=3", "'=3' is no setting"),
        (".=3", "'.=3' is no setting"),
        ("a.b", "'a.b' is no setting"),
        ("", "'' is no setting"),
        ("rows.sources=[{name: x", "the value of rows.sources is no valid YAML"),
        ("rows.sources=}", "the value of rows.sources is no valid YAML"),
        ("seed=!!python/name:os.system", "the tag !!python/name:os.system cannot be used"),
        ("seed=" + "9" * 10_000, "a number of 10000 digits"),
        ("seed=&a [*a]", "*a stands in what it is an alias of"),
        ("seed=" + "[" * 3000, "more than 32 levels"),
        ("a." * 5000 + "b=1", "is no setting"),
        ("rows.sources.\u00b2.limit=1", "must be a number from 0 to 0"),
        ("rows.sources." + "9" * 5000 + ".limit=1", "must be a number from 0 to 0"),
        ("predictor.pairs.0.name=x", "predictor.pairs is an empty list"),
        ("x\x1b]0;y=1", "unknown key x\\x1b]0;y"),
        ("storage=\udc80", "character 0xdc80 is not allowed"),
        ("run=" + "x" * 5000, "x...' is not the name of one folder; take 1 to 200 letters"),
        ("extends=other.yaml", "unknown key extends"),
        ("rows={sources: " + str([{"name": 5}] * 500) + "}", "and "),
    ],
)
def test_a_broken_override_is_one_sentence(override: str, said: str) -> None:
    assert said in ending(DEMO, override)


def test_many_mistakes_are_the_first_ones_and_how_many_more(tmp_path: Path) -> None:
    (tmp_path / "many.yaml").write_text("run: x\n" + "".join(f"unknown_{i}: 1\n" for i in range(50)))
    said = ending(str(tmp_path / "many.yaml"))
    assert "unknown key unknown_0 in" in said
    assert said.endswith(" more")


def ending(path: str, *overrides: str) -> str:
    """The message; "" if the preset was loaded. Anything else than both raises."""
    try:
        load(Preset, path, overrides)
    except SettingsError as error:
        message = str(error)
        assert 0 < len(message) <= LONGEST, f"{len(message)} characters: {message}"
        assert message.replace("\n", "").isprintable(), message
        return message
    return ""


# --- at random --------------------------------------------------------------------------------------------------------

VALUES: Sequence[Any] = [
    *(0, -1, 1, 2, 3, 10**6, 10**15, 10**30, -(10**30), 0.5, -0.5, 1e300, float("nan"), float("inf"), float("-inf")),
    *(True, False, None, "", " ", "x", "../..", "s3:/b", "foo://b", "memory://x", "a\x1b[0m", "\ud83d", "x" * 3000),
    *([], {}, [[]], [None], [{}], {"a": 1}, {"a": {"b": [1]}}, [1, "a", None], {"": ""}, {"a.b": 1}),
    *("helpfulness", "lab", "none", "1e3", "010", "0x10", "nan", "null", "~", "*a", "&a", "!!int 3", "{", "[", ": "),
]
BYTES = [*(b"\0", b"\xff", b"\xe9", b"\t", b"\r", b"\n"), *b"{ } [ ] *a &a !!x : - '".split()]


def mutated(rng: random.Random) -> Iterator[tuple[bytes, list[str]]]:
    """Endless: the text of a preset, and overrides; one or the other, or both, damaged."""
    texts = [path.read_bytes() for path in PRESETS]
    ways: Sequence[Callable[[random.Random, bytes], bytes]] = [_bytes, _lines, _values, _values, _keys]
    while True:
        text = rng.choice(texts)
        if rng.random() < 0.8:
            for _ in range(rng.choice((1, 1, 2, 5))):
                text = rng.choice(ways)(rng, text)
        overrides = [_override(rng) for _ in range(rng.choice((0, 0, 1, 3)))]
        yield text, overrides


def _bytes(rng: random.Random, text: bytes) -> bytes:
    at, to = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    kind = rng.randrange(4)
    if kind == 0:
        return text[:at]
    if kind == 1:
        return text[:at] + text[min(to, at + 20) :]
    if kind == 2:
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    return text[:at] + rng.choice(BYTES) * rng.choice((1, 1, 2, 200)) + text[at:]


def _lines(rng: random.Random, text: bytes) -> bytes:
    lines = text.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(4)
    if kind == 0:
        lines.insert(at, lines[other])
    elif kind == 1:
        del lines[at]
    elif kind == 2:
        lines[at] = b" " * rng.randrange(8) + lines[at]
    else:
        lines[at], lines[other] = lines[other], lines[at]
    return b"\n".join(lines)


def _values(rng: random.Random, text: bytes) -> bytes:
    """One value, deep or not, becomes another."""
    tree = _tree(text)
    places = list(_places(tree))
    if places:
        node, key = rng.choice(places)
        node[key] = rng.choice(VALUES)
    return _dumped(tree)


def _keys(rng: random.Random, text: bytes) -> bytes:
    """One key gets another name, or is put elsewhere."""
    tree = _tree(text)
    places = [(node, key) for node, key in _places(tree) if isinstance(node, dict)]
    if places:
        (node, key), (other, _) = rng.choice(places), rng.choice(places)
        name = rng.choice([key + "x", key[1:], key.upper(), "", "a.b", "0", "x\x1b", "\u202e", key * 100])
        value = node.pop(key)
        rng.choice((node, other))[name] = "itself" if other is value else value
    return _dumped(tree)


def _tree(text: bytes) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError, KeyError, AttributeError, TypeError):
        return {"run": "x"}


def _dumped(tree: Any) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


def _places(tree: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    if depth > 20:
        return
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        if isinstance(tree, list) or isinstance(key, str):
            yield tree, key
            yield from _places(value, depth + 1)


def _override(rng: random.Random) -> str:
    key = rng.choice(KEYS).replace(".N", rng.choice((".0", ".1", ".x", ".-1"))).replace("NAME", "lab")
    if rng.random() < 0.2:
        at = rng.randrange(len(key) + 1)
        key = key[:at] + rng.choice((".", "=", "\0", "x", " ", "\ud83d", "\u00b2")) + key[at:]
    value = rng.choice(VALUES)
    return f"{key}={value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).strip()}"


def tried(count: int, seed: int, folder: Path) -> tuple[int, int]:
    """How many of `count` presets were loaded, and how many refused."""
    made, loaded = mutated(random.Random(seed)), 0
    for preset in PRESETS:  # a mutated one may extend any
        (folder / preset.name).write_bytes(preset.read_bytes())
    path = folder / "mutated.yaml"
    for _ in range(count):
        text, overrides = next(made)
        path.write_bytes(text)
        started = time.process_time()
        try:
            loaded += not ending(str(path), *overrides)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} of {text!r} with {overrides!r}") from error
        assert time.process_time() - started < LONGEST_S, (text, overrides)
    return loaded, count - loaded


@pytest.mark.case("C14: a fuzz of presets")
def test_two_hundred_mutated_presets_load_or_are_one_message(tmp_path: Path) -> None:
    loaded, refused = tried(200, 0, tmp_path)
    assert loaded > 10
    assert refused > 100


@pytest.mark.slow
@pytest.mark.case("C14: a fuzz of presets")
def test_five_thousand_mutated_presets_load_or_are_one_message(tmp_path: Path) -> None:
    started = time.monotonic()
    loaded, refused = tried(5000, 1, tmp_path)
    print(f"5,000 presets: {loaded} loaded, {refused} refused, {time.monotonic() - started:.0f} s")
    assert loaded > 250
    assert refused > 2500
