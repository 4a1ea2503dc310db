"""Two Ray nodes in two network namespaces of this machine, joined by a virtual cable that a test can pull.

Needs root and Debian's iproute2. Each namespace has an address and a loopback of its own, so one node reaches the other
only through the cable.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
NODE_CPUS = 3
STORE_BYTES = 200 * 2**20
S3_PORT = 9000


def permitted() -> str:
    """Why there can be no namespaces here; "" if there can."""
    if shutil.which("ip") is None:
        return "no `ip`: apt-get install iproute2"
    name = f"steerlm-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"network namespaces are not permitted: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


def command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


class TwoHosts:
    """`with TwoHosts(folder) as hosts:`; host 0 has the head and the S3 server.

    With `nodes=1` host 1 has no Ray: it is any other machine.
    """

    def __init__(self, folder: Path, nodes: int = 2):
        # Ray looks for a head at its address among all processes, those of other namespaces too.
        network = f"10.77.{os.getpid() % 250 + 1}"
        self.addresses = (f"{network}.1", f"{network}.2")
        self._nodes = nodes
        self._names = [f"steerlm-{os.getpid()}-{i}" for i in range(2)]
        self._cables = [f"sl{os.getpid() % 100_000}{end}" for end in "ab"]
        self._folder = folder
        (folder / "token").write_text("0123456789abcdef" * 4)
        own = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
        self.environ = own | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A link that is down for 20 s is no dead node: three checks of ten seconds each must fail first.
            "RAY_health_check_period_ms": "10000",
            "RAY_health_check_timeout_ms": "10000",
            "RAY_health_check_failure_threshold": "6",
            "AWS_ENDPOINT_URL": f"http://{self.addresses[0]}:{S3_PORT}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}",
            "PYTHONPATH": str(ROOT),
            # As inside `ray job submit`: our packages are on PYTHONPATH, nothing is uploaded.
            "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}",
        }
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "TwoHosts":
        command("ip", "link", "add", self._cables[0], "type", "veth", "peer", "name", self._cables[1])
        for name, cable, address in zip(self._names, self._cables, self.addresses, strict=True):
            command("ip", "netns", "add", name)
            command("ip", "link", "set", cable, "netns", name)
            command("ip", "-n", name, "addr", "add", f"{address}/24", "dev", cable)
            command("ip", "-n", name, "link", "set", cable, "up")
            command("ip", "-n", name, "link", "set", "lo", "up")
        self._start(0, sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(S3_PORT))
        common = (f"--num-cpus={NODE_CPUS}", f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats", "--block")
        self._start(
            0,
            "ray",
            "start",
            "--head",
            f"--node-ip-address={self.addresses[0]}",
            "--port=6379",
            "--include-dashboard=false",
            *common,
        )
        self._wait(f"ray status --address={self.addresses[0]}:6379")
        if self._nodes == 2:
            self._start(
                1,
                "ray",
                "start",
                f"--address={self.addresses[0]}:6379",
                f"--node-ip-address={self.addresses[1]}",
                *common,
            )
            self._wait(f"ray status --address={self.addresses[0]}:6379 | grep -c '1 node_' | grep -q 2")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def run(self, host: int, *words: str) -> "subprocess.Popen[str]":
        """A command on a host, as a driver of its Ray."""
        environ = self.environ | {"RAY_ADDRESS": f"{self.addresses[0]}:6379"}
        within = ["ip", "netns", "exec", self._names[host], *words]
        return subprocess.Popen(
            within, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def link(self, up: bool) -> None:
        command("ip", "-n", self._names[1], "link", "set", self._cables[1], "up" if up else "down")

    def _start(self, host: int, *words: str) -> None:
        with (self._folder / f"host-{host}-{len(self._processes)}.log").open("wb") as log:
            within = ["ip", "netns", "exec", self._names[host], *words]
            self._processes.append(
                subprocess.Popen(within, cwd=ROOT, env=self.environ, stdout=log, stderr=subprocess.STDOUT)
            )

    def _wait(self, shell: str) -> None:
        deadline = time.monotonic() + 90
        while subprocess.run(
            ["ip", "netns", "exec", self._names[0], "bash", "-c", shell], env=self.environ, capture_output=True
        ).returncode:
            logs = "".join(path.read_text(errors="replace")[-1500:] for path in sorted(self._folder.glob("host-*.log")))
            assert time.monotonic() < deadline, logs
            time.sleep(1)
