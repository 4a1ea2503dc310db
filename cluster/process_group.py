"""How the processes of a training find each other: by their node's address in the cluster, not by its host name.

gloo looks up its own host name, and on many Linux images that is 127.0.0.1 or 127.0.1.1: workers on two nodes then wait
for each other on their own loopback. NCCL skips loopback by itself. Knows no model and no trainer.
"""

import os
from dataclasses import dataclass
from typing import Any

import psutil
import ray.util
from ray.train.torch import TorchConfig

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass
class OwnAddressConfig(TorchConfig):
    """Ray Train's process group, over the interface with the node's own address, or over GLOO_SOCKET_IFNAME if set."""

    @property
    def backend_cls(self) -> type[Any]:
        return _OwnAddressBackend


class _OwnAddressBackend(TorchConfig().backend_cls):  # type: ignore[misc]  # Ray's own, which has no public name
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """In a worker, before it makes its process group."""
    if interface := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault(GLOO_INTERFACE, interface)


def interface_of(address: str) -> str | None:
    """The name of this host's network interface that has `address`; None if none has (a NAT): then gloo chooses."""
    return next((name for name, found in psutil.net_if_addrs().items() if address in (a.address for a in found)), None)
