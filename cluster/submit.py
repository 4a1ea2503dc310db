"""Submit a job to a cluster, follow it, and end with its exit code. A job whose driver died is submitted again.

    python -m cluster.submit JOB PRESET.yaml [key.path=value ...]
        [--address URL] [--retries N] [--env NAME=VALUE] [--dry-run] [--no-wait]

JOB is a module of jobs/: run, prepare, annotate, ... Before anything is sent, the preset is read, the run must not be
in use by another driver, the project's size is compared with the upload limit, and the cluster is asked for its version
with your token. In the cluster the job itself checks that it fits (`python -m cluster.doctor`) before it starts.
"""

import argparse
import asyncio
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.connect import REPOSITORY
from cluster.errors import ClusterError
from cluster.masking import CredentialFound, mask_streams, masked
from cluster.needs import NotUnderstood, needs_of
from cluster.upload import UPLOAD_LIMIT_BYTES, package_sizes

PROGRAM = "python -m cluster.submit"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
STOP_WAIT_S = 120
"""Seconds that a stopped job may take to keep a checkpoint; Ray's own 3 s would cut it off."""
LOST_AFTER_S = 120
"""Seconds that the cluster may be silent while a job is followed."""
START_WAIT_S = 60
"""Seconds that a cluster may take from its dashboard's first answer until a node takes jobs."""
NO_AGENT = "No available agent"
USER_ERROR, LOST = 2, 3


class Refused(ClusterError):
    """The job cannot be submitted; the sentence has the fix."""


def main(argv: Sequence[str]) -> int:
    mask_streams()
    arguments = _parser().parse_args(argv)
    try:
        environment = _environment(arguments.env)
        needs = needs_of(arguments.job, arguments.words)
        if needs.held:
            raise Refused(needs.held)
        require_small_enough(REPOSITORY)
        if arguments.dry_run:
            print(f"would submit: {_entrypoint(arguments.job, arguments.words)}")
            return 0
        client = connected(arguments.address)
        return _submitted(client, arguments, f"steerlm-{needs.run}-{arguments.job}", environment)
    except (NotUnderstood, CredentialFound, Refused) as problem:
        _note(str(problem))
        return USER_ERROR


def _note(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "job", help="run, prepare, pretrain, train_predictor, annotate, train_policy, bootstrap, evaluate or ablate"
    )
    parser.add_argument("words", nargs="+", metavar="PRESET.yaml [key.path=value ...]")
    add = parser.add_argument
    address = os.environ.get("RAY_API_SERVER_ADDRESS", DEFAULT_ADDRESS)
    add("--address", default=address, help="the dashboard (default: %(default)s)")
    add("--retries", type=int, default=2, help="how often to submit again if the driver died (default: %(default)s)")
    environment = "for the job; whoever sees the dashboard sees it, so no secrets"
    add("--env", action="append", default=[], metavar="NAME=VALUE", help=environment)
    add("--dry-run", action="store_true", help="check everything here, and send nothing")
    add("--no-wait", action="store_true", help="submit and leave; the job goes on without you anyway")
    return parser


def _entrypoint(job: str, words: Sequence[str]) -> str:
    return shlex.join(["python", "-m", f"jobs.{job}", *words])


def _environment(pairs: Sequence[str]) -> dict[str, str]:
    """For the job's processes. Raises Refused for what is no NAME=VALUE, or looks like a secret."""
    found = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    for number, pair in enumerate(pairs, 1):
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            # Not what was given: it may be a value whose name was forgotten.
            raise Refused(f"--env number {number} is no NAME=VALUE; write one, NAME of letters, digits and _")
        if masked(value) != value or any(word in name.upper() for word in ("SECRET", "TOKEN", "PASSWORD", "KEY")):
            raise Refused(
                f"--env {name} looks like a secret, and the dashboard shows a job's environment; "
                "give the nodes a role, or mount it there as a file"
            )
        found[name] = value
    return found


def require_small_enough(folder: Path) -> None:
    """Raise Refused, with what is largest, if Ray would upload more than the Jobs API takes."""
    sizes = package_sizes(folder)
    total = sum(sizes.values())
    if total > UPLOAD_LIMIT_BYTES:
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
        listed = ", ".join(f"{path} ({size / 2**20:.1f} MiB)" for path, size in largest)
        limit = UPLOAD_LIMIT_BYTES / 2**20
        raise Refused(
            f"{folder} holds {total / 2**20:.1f} MiB to upload, the Jobs API takes {limit:.0f} MiB; "
            f"the largest: {listed}; name them in .rayignore"
        )


def connected(address: str) -> JobSubmissionClient:
    """Raises Refused if nothing answers there, if it does not let us in, or if it runs another Ray."""
    try:
        client = JobSubmissionClient(address)
        # The public get_version() returns the Jobs API's version, not Ray's.
        theirs = client._do_request("GET", "/api/version").json()["ray_version"]
        client.list_jobs()
    except Exception as error:  # the SDK raises ConnectionError, RuntimeError, ValueError and Ray's own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Refused(
            f"{address}: {reason}; open the tunnel (`ray dashboard ray_cluster.yaml`), give --address, "
            "and export RAY_AUTH_MODE=token with the cluster's token"
        ) from None
    if theirs != ray.__version__:
        raise Refused(f"{address} runs Ray {theirs}, here is {ray.__version__}: install the same lock on both sides")
    return client


def _submitted(
    client: JobSubmissionClient, arguments: argparse.Namespace, name: str, environment: dict[str, str]
) -> int:
    _require_alone(client, name)
    for attempt in range(arguments.retries + 1):
        job = sent(
            client,
            submission_id=f"{name}-{int(time.time())}",
            entrypoint=_entrypoint(arguments.job, arguments.words),
            runtime_env={"working_dir": str(REPOSITORY), "env_vars": environment},
            metadata={"run": name},
        )
        print(f"submitted {job} to {arguments.address}", file=sys.stderr, flush=True)
        if arguments.no_wait:
            print(job)
            return 0
        try:
            details = follow(client, job)
        except KeyboardInterrupt:
            _note(f"{job} goes on; `ray job logs -f {job}` follows it, `ray job stop {job}` ends it with a checkpoint")
            return 130
        if details is None:
            silent = f"{arguments.address} has been silent for {LOST_AFTER_S} s"
            _note(f"{silent}; {job} may go on: `ray job status {job}`")
            return LOST
        if not died(details) or attempt == arguments.retries:
            return _exit_code(details)
        _note(f"{job} died ({details.message}); submitted again, it goes on where it was")
    raise AssertionError("a loop that always returns")


def sent(client: JobSubmissionClient, **job: Any) -> str:
    """Submit, also to a cluster that still starts: its nodes take jobs some seconds after its dashboard answers.

    Raises Refused if the cluster does not take the job, or if its answer got lost: then the job may run.
    """
    started = time.monotonic()
    while True:
        try:
            return client.submit_job(**job)
        except OSError as error:  # a tunnel that broke, as requests raises it
            name = job["submission_id"]
            raise Refused(
                f"the connection broke while {name} was sent ({type(error).__name__}), so it may run: look with "
                f"`ray job status {name}` before you send it again"
            ) from None
        except (RuntimeError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = lines[-1 if "Traceback" in lines[0] else 0]
        if NO_AGENT not in reason or time.monotonic() - started > START_WAIT_S:
            raise Refused(f"the cluster does not take the job: {reason}")
        time.sleep(1)


def _require_alone(client: JobSubmissionClient, name: str) -> None:
    """Raise Refused if a job of that name runs."""
    for job in client.list_jobs():
        if (job.submission_id or "").startswith(f"{name}-") and not job.status.is_terminal():
            raise Refused(
                f"{job.submission_id} runs already: two would write the same files; "
                "follow it with `ray job logs -f`, end it with `ray job stop`"
            )


def died(details: JobDetails) -> bool:
    """Was the driver ended from outside (a signal, a lost node), so that a retry helps? A user error (1, 2) is not."""
    code = details.driver_exit_code
    return details.status == JobStatus.FAILED and (code is None or code < 0 or code >= 128)


def _exit_code(details: JobDetails) -> int:
    if details.status == JobStatus.SUCCEEDED:
        return 0
    _note(f"{details.submission_id} {details.status.value}: {details.message}")
    return details.driver_exit_code if details.driver_exit_code and details.driver_exit_code > 0 else 1


def follow(client: JobSubmissionClient, job: str) -> JobDetails | None:
    """Print the job's output until its end, over broken connections too; None if silent for LOST_AFTER_S."""
    printed, silent_since = 0, time.monotonic()
    while True:
        for text in _log(client, job, printed):
            sys.stdout.write(text)
            sys.stdout.flush()
            printed += len(text)
        with contextlib.suppress(Exception):  # a tunnel that broke: asked again below
            details = client.get_job_info(job)
            silent_since = time.monotonic()
            if details.status.is_terminal():
                # The output between the last line received and the end.
                sys.stdout.write(client.get_job_logs(job)[printed:])
                sys.stdout.flush()
                return details
        if time.monotonic() - silent_since > LOST_AFTER_S:
            return None
        time.sleep(1)


def _log(client: JobSubmissionClient, job: str, printed: int) -> Iterator[str]:
    """The job's output from character `printed` on, until the connection ends."""
    stream, loop, heard = client.tail_job_logs(job), asyncio.new_event_loop(), 0
    try:
        while True:
            text = loop.run_until_complete(anext(stream))
            heard += len(text)
            # A new connection begins at the beginning.
            if heard > printed:
                yield text[-(heard - printed) :] if heard - printed < len(text) else text
    except (StopAsyncIteration, ConnectionError, OSError, RuntimeError):
        return
    finally:
        loop.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
