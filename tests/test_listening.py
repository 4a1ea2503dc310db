"""A Ray of one's own machine is for this machine: nothing of it can be reached from any other."""

import os
import socket

import psutil
import pytest
from support.listening import LOOPBACK, family, interface, listening, ports


def test_an_address_says_which_interface() -> None:
    assert [interface(ip) for ip in ("127.0.0.1", "::ffff:127.0.0.1", "::1")] == [LOOPBACK] * 3
    assert [interface(ip) for ip in ("0.0.0.0", "::", "10.0.0.7")] == [
        "all interfaces",
        "all interfaces",
        "the node's address",
    ]


@pytest.mark.ray
def test_a_local_ray_listens_on_loopback_alone(ray_cluster: object) -> None:
    found = listening(family(os.getpid()))
    assert {"gcs_server", "raylet"} <= {kind for kind, _ in found}
    assert {where for _, where in found} == {LOOPBACK}


@pytest.mark.ray
def test_none_of_its_ports_answers_at_the_machine_s_other_addresses(ray_cluster: object) -> None:
    others = [
        a.address
        for addresses in psutil.net_if_addrs().values()
        for a in addresses
        if a.family == socket.AF_INET and not a.address.startswith("127.")
    ]
    if not others:
        pytest.skip("this machine has no address but loopback")
    found = ports(family(os.getpid()))
    assert found
    for port in found:
        with socket.socket() as caller:
            caller.settimeout(5)
            assert caller.connect_ex((others[0], port)) != 0, f"{others[0]}:{port} answers"
