"""The fenced blocks of the pages, each with the comment before it that decides what happens to it; a shell runs them.

<!-- run -->                 it must succeed
<!-- fails -->               it must fail, and print what the `text` block after it has
<!-- background: WORDS -->   it runs in the background; wait until it prints WORDS
<!-- file: NAME -->          it is the content of the file NAME
<!-- needs a cluster -->, <!-- needs make TARGET -->, <!-- long: TIME -->   not run here; TARGET runs it
"""

import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
RUNNABLE = ("bash", "console", "python")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    mark: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in tracked.stdout.split()]


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(name, text.count("\n", 0, m.start()) + 1, m["mark"] or "", m["language"], m["text"])
        for m in _BLOCK.finditer(text)
    ]


class Follower:
    """`with Follower(folder) as reader:` a new checkout, in which `reader.follow(blocks)` runs the blocks of a page."""

    def __init__(self, folder: Path):
        self.folder = folder / "main"
        own = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
        self._environ = own | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"}
        self._servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Follower":
        tracked = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in tracked.stdout.rstrip("\0").split("\0"):
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        (self.folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
        if (ROOT.parent / "shared").exists():
            (self.folder.parent / "shared").symlink_to(ROOT.parent / "shared")
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.send_signal(signal.SIGINT)
            server.wait(60)

    def follow(self, found: list[Block]) -> None:
        for block, after in itertools.zip_longest(found, found[1:]):
            self._do(block, after.text.strip() if after and after.language == "text" else "")

    def _do(self, block: Block, expected: str) -> None:
        mark, _, words = block.mark.partition(": ")
        if mark == "file":
            (self.folder / words).write_text(block.text)
        elif mark == "background":
            self.serve(block, words)
        elif mark in ("run", "fails"):
            # A transcript shows the prompt.
            text = re.sub(r"^\$ ", "", block.text, flags=re.MULTILINE)
            shell = (
                [sys.executable, "-c", text] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", text]
            )
            done = subprocess.run(
                shell,
                cwd=self.folder,
                env=self._environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=1200,
            )
            failure = f"{block} ended with {done.returncode}:\n{done.stdout[-3000:]}"
            assert (done.returncode == 0) == (mark == "run"), failure
            assert expected in done.stdout, f"{block}: {expected!r} is not in\n{done.stdout[-3000:]}"
            assert not re.search("^Traceback", done.stdout, re.MULTILINE), failure

    def serve(self, block: Block, words: str) -> None:
        """Start the block's command and wait until it prints `words`."""
        log = self.folder / f"background-{len(self._servers)}.log"
        with log.open("wb") as file:
            shell = ["bash", "-c", f"exec {block.text.strip()}"]
            server = subprocess.Popen(shell, cwd=self.folder, env=self._environ, stdout=file, stderr=subprocess.STDOUT)
        self._servers.append(server)
        deadline = time.monotonic() + 300
        while words not in log.read_text():
            assert server.poll() is None, f"{block} ended:\n{log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"{block} never printed {words!r}:\n{log.read_text()[-3000:]}"
            time.sleep(0.5)


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each `python -m ...` of a block, without comments."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if found := re.search(r"python -m (.*)", re.sub(r"\s#.*", "", line)):
            yield shlex.split(found[1])
