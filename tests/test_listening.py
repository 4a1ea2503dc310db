"""A Ray of one's own machine is for this machine: nothing of it can be reached from any other."""

import os
import socket
from collections.abc import Iterator

import psutil
import pytest
import ray.serve
from conftest import free_port
from fastapi import Request
from support.endpoint import Endpoint
from support.listening import LOOPBACK, family, interface, listening, ports

from data.errors import UserError
from serve import instance
from serve.deploy import start
from serve.locate import Located
from serve.settings import ServedEngineSettings, ServeSettings


def other_addresses() -> list[str]:
    """Of this machine, besides loopback."""
    return [
        a.address
        for addresses in psutil.net_if_addrs().values()
        for a in addresses
        if a.family == socket.AF_INET and not a.address.startswith("127.")
    ]


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
    others = other_addresses()
    if not others:
        pytest.skip("this machine has no address but loopback")
    found = ports(family(os.getpid()))
    assert found
    for port in found:
        with socket.socket() as caller:
            caller.settimeout(5)
            assert caller.connect_ex((others[0], port)) != 0, f"{others[0]}:{port} answers"


@ray.serve.deployment
class Neighbour:
    """Another team's application."""

    async def __call__(self, request: Request) -> str:
        return "still here"


@pytest.fixture
def shared_serve(ray_cluster: object) -> Iterator[int]:
    """The port of a Ray Serve that listens everywhere and has another team's application."""
    port = free_port()
    ray.serve.start(http_options={"host": "0.0.0.0", "port": port})
    neighbour = Neighbour.options(ray_actor_options={"num_cpus": 0.1})  # type: ignore[attr-defined]
    ray.serve.run(neighbour.bind(), name="neighbour", route_prefix="/neighbour")
    yield port
    instance.shut_down()


@pytest.mark.ray
@pytest.mark.case("B9: on a Serve that others started, which listens everywhere")
def test_on_a_shared_serve_only_this_machine_may_call_and_the_others_stay(shared_serve: int, tiny_policy: str) -> None:
    [address] = other_addresses()[:1] or [""]
    small = {"port": shared_serve, "num_cpus": 0.1, "engine": ServedEngineSettings(max_num_seqs=2), "access_log": False}
    with pytest.raises(UserError, match=f"listens on 0.0.0.0:{shared_serve}, not on 127.0.0.1:1"):
        start(ServeSettings(**small | {"port": 1}), [Located(tiny_policy, "tiny")])
    endpoint = start(ServeSettings(**small), [Located(tiny_policy, "tiny")])
    try:
        here = Endpoint(endpoint.url)
        assert here.chat(max_tokens=2)[0] == 200
        assert [here.get(path)[0] for path in ("/", "/docs", "/v1/models")] == [200] * 3
        if address:
            there = Endpoint(f"http://{address}:{shared_serve}")
            assert [there.get(path)[0] for path in ("/", "/docs", "/healthz", "/v1/models")] == [403] * 4
            assert there.chat(max_tokens=2)[0] == 403
            assert there.get("/neighbour") == (200, b"still here")
        with pytest.raises(UserError, match="steerlm already runs on this cluster"):
            start(ServeSettings(**small), [Located(tiny_policy, "tiny")])
    finally:
        endpoint.stop()
    assert instance.applications() == ["neighbour"]
    assert Endpoint(endpoint.url).get("/neighbour") == (200, b"still here")
    assert Endpoint(endpoint.url).get("/healthz")[0] == 404
    instance.shut_down()
    assert not instance.running()
