"""A real nginx with TLS before an endpoint, with the very `server` block that docs/endpoint.md shows."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import free_port, wait_for
from support.docs import ROOT, blocks

PAGE = ROOT / "docs" / "endpoint.md"
MISSING = "needs nginx and openssl (Debian: apt-get install nginx-light openssl)"
AROUND = """\
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
{temporary}
{server}
}}
"""
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def shown() -> str:
    """The block of the page."""
    [block] = [block for block in blocks(PAGE) if block.language == "nginx"]
    return block.text


def configuration(upstream: str, port: int, folder: Path) -> str:
    """The page's block, with only its addresses and files replaced."""
    server = shown()
    for written, own in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("http://127.0.0.1:8000", upstream),
        ("/etc/ssl/steer.pem", f"{folder}/steer.pem"),
        ("/etc/ssl/steer.key", f"{folder}/steer.key"),
    ):
        assert server.count(written) == 1, f"the block of {PAGE.name} has no {written!r}, or several"
        server = server.replace(written, own)
    temporary = "\n".join(f"    {name}_temp_path {folder}/{name};" for name in TEMPORARY)
    user = "user root;\n" if os.getuid() == 0 else ""  # else its workers could not enter this folder
    return user + AROUND.format(folder=folder, temporary=temporary, server=server)


@contextmanager
def nginx(upstream: str, folder: Path) -> Iterator[str]:
    """Its URL, with TLS, while it runs. Skips the test where nginx is not installed."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None or shutil.which("openssl") is None:
        pytest.skip(MISSING)
    certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    files = ["-keyout", str(folder / "steer.key"), "-out", str(folder / "steer.pem")]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*certificate, *files, *names], check=True, capture_output=True)
    port = free_port()
    (folder / "nginx.conf").write_text(configuration(upstream, port, folder))
    words = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for(port, process)
        yield f"https://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
