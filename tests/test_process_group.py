"""gloo listens on the node's address, in a real training too; a name set by hand stays."""

import os
import socket

import pytest
import ray.train
import ray.util
from ray.train.torch import TorchTrainer

from cluster.process_group import GLOO_INTERFACE, OwnAddressConfig, choose_interface, interface_of


def test_an_interface_is_found_by_its_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None, "an address of documentation, nobody's"
    assert {interface_of("127.0.0.1")} <= {name for _, name in socket.if_nameindex()}


def test_what_is_set_by_hand_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv(GLOO_INTERFACE, "eth7")
    choose_interface()
    assert os.environ[GLOO_INTERFACE] == "eth7"
    monkeypatch.delenv(GLOO_INTERFACE)
    choose_interface()
    assert os.environ[GLOO_INTERFACE] == "lo"
    monkeypatch.delenv(GLOO_INTERFACE)


@pytest.mark.ray
def test_a_training_s_workers_use_it(ray_cluster: object, tmp_path: object) -> None:
    def loop() -> None:
        import torch
        import torch.distributed

        total = torch.ones(1)
        torch.distributed.all_reduce(total)
        assert total.item() == 2.0
        assert os.environ[GLOO_INTERFACE] == interface_of(ray.util.get_node_ip_address())

    trainer = TorchTrainer(
        loop,
        torch_config=OwnAddressConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path)),
    )
    assert trainer.fit().error is None
