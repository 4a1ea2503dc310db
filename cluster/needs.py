"""A preset's needs of a cluster. A job writes them as JSON (`--needs`), doctor and submit read them. No preset."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.connect import REPOSITORY
from cluster.errors import ClusterError
from cluster.masking import masked, require_no_credentials
from cluster.preflight import Demand


@dataclass(frozen=True)
class Needs:
    """Of the stages that a job will run."""

    run: str
    storage: str
    demands: tuple[Demand, ...]
    """One at a time: stages follow each other."""
    reads: dict[str, str]
    """Setting -> URI that must be readable."""
    models: dict[str, str]
    """Setting -> Hugging Face model: hub name, folder or URI."""
    num_cpus: int | None = None
    """Logical CPUs of a local Ray, where there is no cluster; None = all."""
    credentials: tuple[str, ...] = ()
    """Settings whose URI has a credential; it is masked above, so nobody can read these URIs."""
    held: str = ""
    """Who works in the run now, as a sentence; "" = nobody, or the storage cannot be reached from here."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Needs":
        found = json.loads(text)
        demands = tuple(Demand(**demand) for demand in found["demands"])
        return cls(**found | {"demands": demands, "credentials": tuple(found["credentials"])})


class NotUnderstood(ClusterError):
    """The job could not read its preset; the text is its own sentence."""


def needs_of(job: str, words: Sequence[str]) -> Needs:
    """The needs of `python -m jobs.JOB WORDS`. A process of its own computes them: this package knows no job.

    Raises NotUnderstood, and CredentialFound if the preset or a word has one.
    """
    require_no_credentials([word.partition("=")[0] for word in words if masked(word) != word])
    command = [sys.executable, "-m", f"jobs.{job}", *words, "--needs"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"jobs.{job} --needs ended with exit code {done.returncode}"]
        raise NotUnderstood(lines[-1])
    needs = Needs.from_json(done.stdout.splitlines()[-1])
    require_no_credentials(needs.credentials)
    return needs
