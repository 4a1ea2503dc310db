"""The pages are right. Every command runs, or a comment says why not; files and targets exist."""

import importlib.util
import re
from pathlib import Path

import pytest
from support.docs import ROOT, RUNNABLE, Block, Follower, blocks, commands, pages

from cluster.settings.help import keys
from cluster.settings.load import load
from jobs.ablate import Ablation
from jobs.answer import Answering
from jobs.benchmarking.settings import Benchmarking
from jobs.export import Export
from jobs.judging.settings import Judging
from jobs.planning.settings import ScalePlan
from jobs.runner.preset import Preset
from serve.settings import ServeSettings

MARKS = re.compile(r"run|fails|background: .+|file: .+|long: .+|needs a cluster|needs make (?P<target>[a-z-]+)")
ALL = [block for page in pages() for block in blocks(page)]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
KINDS = {"ablate": Ablation, "answer": Answering, "benchmark": Benchmarking, "export": Export}
RECORDS = (Preset, ServeSettings, *KINDS.values(), Judging, ScalePlan)
SETTINGS = {key for record in RECORDS for key in keys(record)}
SECTIONS = {section for key in SETTINGS for section, dot, _ in [key.partition(".")] if dot}
SUFFIXES, MODULES = (".py", ".json", ".html", ".yaml", ".parquet", ".png"), ("ray.data", "ray.serve", "ray.train")
"""What is no setting, though it begins like one."""
PACKAGES = tuple(ROOT / name for name in ("data", "actors", "jobs", "serve", "cluster"))
SPLIT = ("actors", "jobs")
"""Packages whose sub-packages have pages of their own."""
FOLDERS = sorted({*PACKAGES, *(file.parent for name in SPLIT for file in (ROOT / name).rglob("*.py"))})


@pytest.mark.parametrize("block", [b for b in ALL if b.language in RUNNABLE], ids=str)
def test_a_block_that_could_be_run_has_a_comment_that_decides_what_happens_to_it(block: Block) -> None:
    found = MARKS.fullmatch(block.mark)
    assert found, f"{block} needs a comment before it: {MARKS.pattern}"
    assert found["target"] in {None, *TARGETS}


@pytest.mark.parametrize("block", [b for b in ALL if b.language in RUNNABLE], ids=str)
def test_what_a_block_calls_is_there(block: Block) -> None:
    for words in commands(block):
        assert importlib.util.find_spec(words[0]), f"{block}: no module {words[0]}"
        for word in words[1:]:
            if word.endswith((".yaml", ".py")) and "/" in word and "=" not in word:
                assert (ROOT / word).exists(), f"{block}: no file {word}"
    for target in re.findall(r"^make ([a-z-]+)", block.text, re.MULTILINE):
        assert target in TARGETS, f"{block}: no target {target}"


@pytest.mark.parametrize("block", [b for b in ALL if b.language in RUNNABLE and b.mark != "fails"], ids=str)
def test_the_settings_of_a_block_are_understood(block: Block) -> None:
    """Those too that take too long, or need a cluster."""
    for words in commands(block):
        name = words.pop(0).removeprefix("cluster.submit").removeprefix("jobs.")
        name = name or words.pop(0)
        if words and (ROOT / words[0]).suffix == ".yaml" and words[0].startswith("jobs/presets/"):
            load(KINDS.get(name, Preset), ROOT / words[0], [w for w in words[1:] if "=" in w])


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_and_targets_that_a_page_names_are_there(page: Path) -> None:
    text = _prose(page)
    for target in re.findall(r"`make ([a-z-]+)[` ]", text):
        assert target in TARGETS, f"no target {target}"
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), f"no file {link}"


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_headings_that_a_page_links_to_are_there(page: Path) -> None:
    for path, heading in re.findall(r"\]\(([^)#:\s]*)#([^)]+)\)", _prose(page)):
        target = page.parent / path if path else page
        assert heading in _headings(target), f"no heading {heading} in {target.name}"


CURRENT = [page for page in pages() if page.name != "CHANGELOG.md"]
"""Of the others one tells how things were called."""


@pytest.mark.parametrize("page", CURRENT, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_settings_and_files_that_a_page_names_are_there(page: Path) -> None:
    for words in re.findall(r"`([^`\n]+)`", _prose(page)):
        for path in re.findall(r"(?<![\w/.-])((?:data|actors|jobs|serve|cluster|docs|tests)/[\w./-]*\w)", words):
            assert "NAME" in path or (ROOT / path).exists(), f"no file {path}"
        for setting in re.findall(r"(?<![\w/.$-])([a-z_]+(?:\.\w+)+)(?![\w./*])", words):
            if setting.partition(".")[0] in SECTIONS and not setting.endswith(SUFFIXES) and setting not in MODULES:
                assert _is_setting(setting.split(".")), f"no setting {setting}"


def _is_setting(words: list[str]) -> bool:
    """`N` stands for a place in a list, `NAME` for a key of one's own."""
    return any(
        len(words) <= len(key)
        and all(k in (w, "NAME") or (k == "N" and w.isdigit()) for w, k in zip(words, key, strict=False))
        for key in (key.split(".") for key in SETTINGS)
    )


def _prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def _headings(page: Path) -> set[str]:
    """As GitHub writes them into links."""
    found = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_a_folder_s_page_has_a_line_for_every_file(folder: Path) -> None:
    page = (folder / "README.md").read_text()
    files = [path for path in folder.iterdir() if path.is_file() and path.name not in ("README.md", "Dockerfile")]
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    assert [path.name for path in files if not any(f"`{path.name}`" in row for row in rows)] == []
    named = set(re.findall(r"`([a-z_0-9-]+\.(?:py|yaml|html|jinja|html\.jinja))`", page))
    assert named - {path.name for path in folder.rglob("*")} == set(), "files that are not there"


@pytest.mark.parametrize("package", SPLIT)
def test_a_package_s_page_leads_to_its_sub_packages(package: str) -> None:
    page = (ROOT / package / "README.md").read_text()
    below = {folder.name for folder in FOLDERS if folder.parent == ROOT / package}
    assert below, f"{package} has no sub-package any more"
    assert {name for name in below if f"{name}/" not in page} == set()
    tree, architecture = (ROOT / "README.md").read_text(), (ROOT / "docs" / "architecture.md").read_text()
    assert {name for name in below if f"`{package}/{name}`" not in tree} == set(), "in the tree of the first page"
    assert {name for name in below if not re.search(rf"\b{name}\b", architecture)} == set(), "in the layers"


def test_every_slow_test_has_a_target() -> None:
    run = set(re.findall(r"tests/(test_\w+\.py)", (ROOT / "Makefile").read_text()))
    slow = {
        path.name
        for path in (ROOT / "tests").glob("test_*.py")
        if re.search(r"^(@|pytestmark = .*)pytest\.mark\.slow", path.read_text(), re.MULTILINE)
    }
    assert slow - run == set()


@pytest.mark.slow
@pytest.mark.ray
def test_the_walk_through_word_by_word(tmp_path: Path) -> None:
    with Follower(tmp_path) as reader:
        reader.follow(blocks(ROOT / "docs" / "walkthrough.md"))


@pytest.mark.slow
@pytest.mark.ray
def test_the_other_pages_word_by_word(tmp_path: Path, demo_run: Path) -> None:
    """With the run of `make demo`, which they speak of."""
    with Follower(tmp_path) as reader:
        (reader.folder / "runs").symlink_to(demo_run.parent)
        reader.serve(
            Block("README.md", 0, "", "bash", "python -m serve"), "ready after"
        )  # the second of its two commands
        for page in pages():
            if page.name != "walkthrough.md":
                reader.follow(blocks(page))
