"""What a machine can check about the repository itself: every YAML, JSON and TOML parses, and the lock holds what pyproject.toml asks for."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NOT_OURS = {
    ".git",
    ".venv",
    ".venv-lock",
    ".venv-trl",
    ".venv-vllm",
    "runs",
    "build",
    "node_modules",
    "__pycache__",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
}


def files(*suffixes: str) -> list[Path]:
    found: list[Path] = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(set(folders) - NOT_OURS)
        found += (Path(folder) / name for name in sorted(names) if name.endswith(suffixes))
    return found


def named(path):
    return path.relative_to(ROOT).as_posix()


PARSERS = {
    ".yaml": lambda text: list(yaml.safe_load_all(text)),
    ".yml": lambda text: list(yaml.safe_load_all(text)),
    ".json": json.loads,
    ".toml": tomllib.loads,
}


@pytest.mark.parametrize("path", files(*PARSERS), ids=named)
def test_it_parses(path):
    PARSERS[path.suffix](path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def locked():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonical(name): version for name, version in pins.items()}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_lock_pins_exact_portable_versions():
    lines = [
        line
        for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert len(lines) > 50
    # No "+cpu", no path, no address, no CUDA package: each would hold on one kind of machine only.
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    assert [line for line in lines if line.startswith(("nvidia-", "cuda-", "triton"))] == []


def test_lock_satisfies_every_dependency(pyproject, locked):
    wanted = [*pyproject["project"]["dependencies"], *pyproject["project"]["optional-dependencies"]["dev"]]
    assert len(wanted) > 15
    for text in wanted:
        requirement = Requirement(text)
        version = locked.get(canonical(requirement.name))
        assert version is not None, f"{requirement.name} is not in requirements.lock; run: make lock"
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{text}, but requirements.lock has {version}; run: make lock"
        )


def test_it_is_an_application(pyproject):
    assert pyproject["tool"]["setuptools"]["packages"] == []


def test_licence_is_apache():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_ci_runs_what_people_run():
    run = ROOT / ".ci" / "run"
    assert "\nmake check demo test\n" in run.read_text(encoding="utf-8"), "the two commands of README among them"
    assert os.access(run, os.X_OK)
