"""The layers hold: every import of every room against one small table, and no name of ours beside a library's."""

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

MAY_IMPORT = {
    "data": {"data"},
    "cluster": {"cluster"},
    "actors": {"actors", "data"},
    "jobs": {"jobs", "actors", "data", "cluster"},
    "serve": {"serve", "actors", "data", "cluster"},
}
HEAVY = {"accelerate", "deepspeed", "peft", "safetensors", "tokenizers", "torch", "transformers", "vllm"}
"""They stay where the weights are."""
RAY_DATA_PIPELINES: set[str] = set()
"""Files of `data` that may import `ray.data`: readers and pipelines only. None so far."""

FILES = sorted(path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of every import, also inside functions; the name is "" for `import module`; relative ones begin with a dot."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, "." * node.level + (node.module or ""), alias.name) for alias in node.names)


def offences(path: Path) -> list[str]:
    """What `path` imports against the rules, one sentence each."""
    name = path.relative_to(ROOT).as_posix()
    room = name.partition("/")[0]
    found = []
    for line, module, imported in imports(path):
        top = module.partition(".")[0]
        if module.startswith("."):
            found.append(f"{name}:{line}: relative import {module}; write the room's name")
        if top in MAY_IMPORT and top not in MAY_IMPORT[room]:
            found.append(f"{name}:{line}: {room} imports {module}; it may import only {', '.join(sorted(MAY_IMPORT[room]))}")
        if top in MAY_IMPORT and not imported:
            found.append(f"{name}:{line}: `import {module}` binds the bare name {top}; write `from {module} import ...`")
        if top in HEAVY and room != "actors":
            found.append(f"{name}:{line}: {room} imports {module}; only actors holds weights")
        if module == "ray" and imported:
            found.append(f"{name}:{line}: `from ray import {imported}` hides whose name it is; write `import ray.{imported}`")
        if top == "ray" and room == "data" and name not in RAY_DATA_PIPELINES:
            found.append(f"{name}:{line}: data imports {module}; only the files in RAY_DATA_PIPELINES may")
    return found


def test_there_is_something_to_check():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} >= {"data", "cluster"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_imports_only_what_its_room_may(path):
    assert offences(path) == []


@pytest.mark.parametrize(
    ("room", "code", "said"),
    [
        ("data", "def f():\n    import torch", "only actors holds weights"),
        ("data", "import ray.data", "RAY_DATA_PIPELINES"),
        ("data", "from actors.modeling.policy import Policy", "it may import only data"),
        ("jobs", "from serve.app import app", "it may import only"),
        ("serve", "from jobs.run import main", "it may import only"),
        ("cluster", "from data.record import Record", "it may import only cluster"),
        ("actors", "from . import policy", "relative"),
        ("jobs", "import data.record", "binds the bare name data"),
        ("jobs", "from ray import serve", "import ray.serve"),
    ],
)
def test_each_rule_catches_its_offence(tmp_path, monkeypatch, room, code, said):
    (tmp_path / room).mkdir()
    path = tmp_path / room / "offender.py"
    path.write_text(code)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert any(said in offence for offence in offences(path))


def test_no_installed_package_is_named_like_a_room():
    """It would win: our rooms have no __init__.py, and a regular package anywhere on the path beats that."""
    assert MAY_IMPORT.keys() & importlib.metadata.packages_distributions().keys() == set()


def test_no_file_is_named_like_a_room_or_a_library():
    taken = MAY_IMPORT.keys() | HEAVY | {"ray", "numpy", "pyarrow", "fastapi"}
    assert [path.relative_to(ROOT).as_posix() for path in FILES if path.stem in taken] == []


def test_no_python_file_lies_at_the_root():
    """Ray puts the working_dir first on every worker's path: a `stat.py` there would replace the standard library's."""
    assert [path.name for path in ROOT.glob("*.py")] == []


def test_tests_are_flat_and_no_packages():
    assert [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("__init__.py")] == []
    assert [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*/*.py")] == []


def test_data_imports_without_torch_and_ray():
    modules = [f"data.{path.stem}" for path in FILES if path.parent == ROOT / "data" and path.relative_to(ROOT).as_posix() not in RAY_DATA_PIPELINES]
    code = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\nprint(*sorted({HEAVY | {'ray'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("ignore", [".rayignore", ".gitignore"])
def test_outputs_are_never_uploaded_nor_committed(ignore):
    lines = (ROOT / ignore).read_text(encoding="utf-8").splitlines()
    assert {"runs/", ".venv/", ".env"} <= set(lines)
