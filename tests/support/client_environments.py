"""Environments of the third-party clients: `python tests/support/client_environments.py` installs those that changed.

Knows no client's script and no endpoint. uv builds them, since pip would take minutes and copy every file.
"""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-clients"
VERSIONS = Path(__file__).with_name("clients") / "clients.toml"
UV = "uv==0.13.9"
TORCH_FOR = ("guidellm", "open-webui")
"""They need torch, whose build for CPUs is GBs smaller; it comes by pip, which knows where this machine finds it."""
ELSEWHERE = {"vllm": (ROOT / ".venv-vllm", "test-vllm")}
"""Family -> an environment that another target installs, and that target."""
NODE_MISSING = "node and npm are not installed (Debian: apt-get install nodejs npm)"


def families() -> dict[str, list[str]]:
    """Name of an environment -> the packages that are asked for."""
    kinds = tomllib.loads(VERSIONS.read_text())
    return kinds["python"] | kinds["node"]


def folder_of(family: str) -> Path:
    return ELSEWHERE[family][0] if family in ELSEWHERE else FOLDER / family


def is_node(family: str) -> bool:
    return family in tomllib.loads(VERSIONS.read_text())["node"]


def why_missing(family: str) -> str:
    """Why a client of this family cannot run here, in a sentence; "" if it can."""
    if family in ELSEWHERE:
        folder, target = ELSEWHERE[family]
        return "" if (folder / ".installed").exists() else f"{folder.name} is not installed: make {target} installs it"
    if is_node(family) and not (shutil.which("node") and shutil.which("npm")):
        return NODE_MISSING
    if _is_installed(family, families()[family]):
        return ""
    return f"{FOLDER.name}/{family} is not installed or of other versions: make test-clients installs it"


def install() -> None:
    for family, packages in families().items():
        if _is_installed(family, packages):
            continue
        if is_node(family) and why_missing(family) == NODE_MISSING:
            print(f"test-clients: {NODE_MISSING}: the clients of {family} are skipped", flush=True)
            continue
        print(f"test-clients: installing {', '.join(packages)} into {FOLDER.name}/{family}", flush=True)
        shutil.rmtree(FOLDER / family, ignore_errors=True)
        (_install_node if is_node(family) else _install_python)(FOLDER / family, packages)
        (FOLDER / family / ".installed").write_text(json.dumps(packages))


def _is_installed(family: str, packages: list[str]) -> bool:
    stamp = FOLDER / family / ".installed"
    return stamp.exists() and json.loads(stamp.read_text()) == packages


def _install_python(folder: Path, packages: list[str]) -> None:
    uv = FOLDER / "uv" / "bin" / "uv"
    if not uv.exists():
        _run(sys.executable, "-m", "venv", str(FOLDER / "uv"))
        _run(str(FOLDER / "uv" / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input", UV)
    _run(str(uv), "venv", "--quiet", "--python", sys.executable, str(folder))
    python = str(folder / "bin" / "python")
    if folder.name in TORCH_FOR:
        import torch

        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-input", "--no-deps"]
        if subprocess.run([*pip, f"torch=={torch.__version__}"], stderr=subprocess.DEVNULL).returncode:
            print("test-clients: no build of torch for CPUs is found here, so it is the one for CUDA", flush=True)
    _run(str(uv), "pip", "install", "--quiet", "--python", python, *packages)


def _install_node(folder: Path, packages: list[str]) -> None:
    folder.mkdir(parents=True)
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    _run("npm", "install", "--no-audit", "--no-fund", "--save-exact", "--prefix", str(folder), *packages)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    try:
        install()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"test-clients: {' '.join(map(str, error.cmd))} ended with {error.returncode}") from None
