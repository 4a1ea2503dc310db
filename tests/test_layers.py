"""The layers hold: every import of every package against two small tables, and no name of ours beside a library's."""

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
INSIDE = {
    "actors": {
        "kernels": set(),
        "modeling": {"kernels"},
        "training": {"kernels", "modeling"},
        "scoring": {"kernels", "modeling"},
        "generation": {"kernels", "modeling"},
        "baselines": set(),
    },
    "jobs": {
        "runner": set(),
        "planning": set(),
        "judge_client": set(),
        "pipelines": {"runner", "judge_client"},
        "evaluation": {"runner", "pipelines"},
        "reporting": {"runner", "pipelines", "evaluation"},
        "predictor_training": {"runner", "pipelines", "reporting"},
        "policy_training": {"runner", "pipelines", "evaluation", "reporting"},
        "ablation": {"runner", "pipelines", "evaluation", "reporting", "policy_training"},
        "judging": {"runner", "reporting", "judge_client"},
        "exporting": {"runner", "pipelines", "reporting"},
        "diffing": {"runner", "reporting"},
        "benchmarking": {"runner", "pipelines", "evaluation", "reporting"},
        "bench": {"runner", "pipelines"},
        "gpu_checks": {"runner", "pipelines", "bench"},
    },
}
"""The siblings that a package inside a package may import; a file in `jobs` itself is a command and may import all."""
RUNS_COMMANDS = {"jobs/run.py", "jobs/ablate.py"}
"""Commands that perform the stages of others; no other file imports a command."""
HEAVY = {"accelerate", "deepspeed", "peft", "safetensors", "tokenizers", "torch", "transformers", "vllm"}
"""They stay where the weights are."""
LATE = {"datasketch", "matplotlib", "openai", "pandas", "ray.data", "scipy"}
"""Functions import them when they draw, fit, compare, ask or start a pass over rows: together they take two seconds."""
RAY_DATA_PIPELINES: set[str] = set()
"""Files of `data` that may import `ray.data`: readers and pipelines only. None so far."""

FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of every import; name is "" for `import module`, relative modules begin with a dot."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, "." * node.level + (node.module or ""), alias.name) for alias in node.names)


def offences(path: Path) -> list[str]:
    """What `path` imports against the rules, one sentence each."""
    name = path.relative_to(ROOT).as_posix()
    package = name.partition("/")[0]
    found = []
    for line, module, imported in imports(path):
        top = module.partition(".")[0]
        if module.startswith("."):
            found.append(f"{name}:{line}: relative import {module}; write the package's name")
        if top in MAY_IMPORT and top not in MAY_IMPORT[package]:
            allowed = ", ".join(sorted(MAY_IMPORT[package]))
            found.append(f"{name}:{line}: {package} imports {module}; it may import only {allowed}")
        if top == package and package in INSIDE:
            found += [f"{name}:{line}: {sentence}" for sentence in _inside(name, package, module, imported)]
        if top in MAY_IMPORT and not imported:
            found.append(
                f"{name}:{line}: `import {module}` binds the bare name {top}; write `from {module} import ...`"
            )
        if top in HEAVY and package != "actors":
            found.append(f"{name}:{line}: {package} imports {module}; only actors holds weights")
        if module == "ray" and imported:
            found.append(
                f"{name}:{line}: `from ray import {imported}` hides whose name it is; write `import ray.{imported}`"
            )
        if top == "ray" and package == "data" and name not in RAY_DATA_PIPELINES:
            found.append(f"{name}:{line}: data imports {module}; only the files in RAY_DATA_PIPELINES may")
    return found


def _inside(name: str, package: str, module: str, imported: str) -> list[str]:
    """The same inside one package: between its sub-packages, and that nothing imports a command."""
    own = name.split("/")[1] if name.count("/") > 1 else None
    other = [*module.split(".")[1:], imported][0]
    if other not in INSIDE[package]:
        sentence = f"imports the command {package}.{other}; move what is shared into a package"
        return [] if name in RUNS_COMMANDS else [sentence]
    if own is None or other == own or other in INSIDE[package][own]:
        return []
    allowed = ", ".join(sorted(INSIDE[package][own])) or "none of its siblings"
    return [f"{package}.{own} imports {package}.{other}; it may import only {allowed}"]


def test_there_is_something_to_check():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} >= {"data", "cluster"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_imports_only_what_its_package_may(path):
    assert offences(path) == []


@pytest.mark.parametrize(
    ("package", "code", "said"),
    [
        ("data", "def f():\n    import torch", "only actors holds weights"),
        ("data", "import ray.data", "RAY_DATA_PIPELINES"),
        ("data", "from actors.modeling.policy import Policy", "it may import only data"),
        ("jobs", "from serve.app import app", "it may import only"),
        ("serve", "from jobs.run import main", "it may import only"),
        ("cluster", "from data.record import Record", "it may import only cluster"),
        ("actors", "from . import policy", "relative"),
        ("actors/modeling", "from actors.training.trainer import Trainer", "actors.modeling imports actors.training"),
        ("actors/generation", "from actors.scoring.annotator import Annotator", "it may import only kernels, modeling"),
        ("actors/kernels", "from actors.modeling.policy import Policy", "none of its siblings"),
        ("jobs/runner", "from jobs.reporting.page import write_pages", "jobs.runner imports jobs.reporting"),
        ("jobs/evaluation", "from jobs.annotate import STAGE", "imports the command jobs.annotate"),
        ("jobs", "from jobs import train_policy", "imports the command jobs.train_policy"),
        ("jobs", "import data.record", "binds the bare name data"),
        ("jobs", "from ray import serve", "import ray.serve"),
    ],
)
def test_each_rule_catches_its_offence(tmp_path, monkeypatch, package, code, said):
    (tmp_path / package).mkdir(parents=True)
    path = tmp_path / package / "offender.py"
    path.write_text(code)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert any(said in offence for offence in offences(path))


def test_no_installed_package_is_named_like_ours():
    """It would win: our packages have no __init__.py, and a regular package anywhere on the path beats that."""
    assert MAY_IMPORT.keys() & importlib.metadata.packages_distributions().keys() == set()


def test_no_file_is_named_like_ours_or_a_library():
    taken = MAY_IMPORT.keys() | HEAVY | {"ray", "numpy", "pyarrow", "fastapi"}
    assert [path.relative_to(ROOT).as_posix() for path in FILES if path.stem in taken] == []


def test_no_python_file_lies_at_the_root():
    """Ray puts the working_dir first on every worker's path: a `stat.py` there would replace the standard library's."""
    assert [path.name for path in ROOT.glob("*.py")] == []


def test_tests_are_flat_and_no_packages():
    assert [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("__init__.py")] == []
    assert {path.parent.name for path in (ROOT / "tests").glob("*/*.py")} == {"support"}
    assert [path.name for path in (ROOT / "tests" / "support").glob("test_*.py")] == []


def test_every_package_has_a_place_in_the_table():
    for package, packages in INSIDE.items():
        found = {
            path.parent.relative_to(ROOT / package).parts[0]
            for path in (ROOT / package).rglob("*.py")
            if path.parent != ROOT / package
        }
        assert found == packages.keys()
        assert all(allowed <= packages.keys() for allowed in packages.values())


def test_actors_has_no_file_of_its_own_and_jobs_only_commands():
    assert list((ROOT / "actors").glob("*.py")) == []
    assert [
        path.name for path in (ROOT / "jobs").glob("*.py") if "__main__" not in path.read_text(encoding="utf-8")
    ] == []


def imported_with(modules: list[str], unwanted: set[str]) -> list[str]:
    """Which `unwanted` packages a fresh process has imported after these modules."""
    code = (
        f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\n"
        f"print(*sorted({unwanted} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_data_imports_without_torch_and_ray():
    modules = [
        f"data.{path.stem}"
        for path in FILES
        if path.parent == ROOT / "data" and path.relative_to(ROOT).as_posix() not in RAY_DATA_PIPELINES
    ]
    assert imported_with(modules, HEAVY | {"ray"}) == []


ON_THE_WAY = ("bench", "gpu_checks", "planning")
"""Packages of commands that measure or plan with models from their first line on."""
WITH_TORCH = {
    *("jobs.pipelines.fit", "jobs.predictor_training.fits"),  # drivers of a training
    *(
        f"jobs.runner.{name}" for name in ("auto_fit", "estimate", "plan", "pools", "shapes")
    ),  # a plan, or the start of a run
    *("jobs.gpu_bench", "jobs.gpu_smoke", "jobs.plan_scale"),
}
"""Modules that functions import when they come to a model."""
WITH_RAY_DATA = {f"jobs.pipelines.{name}" for name in ("failure", "shard_pipeline", "shard_source")}
"""Modules that functions import when a training or a pass over rows starts."""


def test_commands_and_what_ray_tasks_import_are_free_of_slow_libraries():
    """With torch and transformers `--help`, and each worker process, starts 6 s later, with the others 2 s: a task
    imports the module of its function."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in FILES
        if path.relative_to(ROOT).parts[0] == "jobs" and path.relative_to(ROOT).parts[1] not in ON_THE_WAY
    }
    slow = WITH_TORCH | WITH_RAY_DATA
    assert modules > slow
    assert imported_with(sorted(modules - slow), HEAVY | LATE) == []


RUN = """
import contextlib, runpy, sys
for words in (["--help"], ["jobs/presets/demo.yaml", "wrong.key=1"], ["jobs/presets/demo.yaml", "--needs"]):
    sys.argv = ["jobs.run", *words]
    with contextlib.suppress(SystemExit):
        runpy.run_module("jobs.run", run_name="__main__", alter_sys=True)
print("imported:", *sorted(set(%r) & sys.modules.keys()))
"""


def test_a_command_that_starts_nothing_runs_without_slow_libraries():
    command = [sys.executable, "-c", RUN % sorted(HEAVY | LATE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "usage: python -m jobs.run PRESET.yaml" in done.stdout
    assert "unknown key wrong" in done.stderr
    *_, needs, imported = done.stdout.splitlines()
    assert "policy.learner" in needs
    assert imported == "imported:"
