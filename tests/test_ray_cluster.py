"""`ray up` would accept ray_cluster.yaml: Ray's own validation, offline, and the versions that must agree."""

import copy
import re
from pathlib import Path

import botocore.session
import pytest
import yaml
from ray.autoscaler._private.aws.config import (
    _configure_subnets_and_groups_from_network_interfaces,
    _create_default_ssh_inbound_rules,
)
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8"))


def validate(config):
    # Ray fills in the defaults in place, and calls a config without them invalid.
    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_it(config):
    validate(config)


def test_ray_refuses_a_typo(config):
    config["idle_timeout_minuets"] = config.pop("idle_timeout_minutes")
    with pytest.raises(Exception, match="idle_timeout_minuets"):
        validate(config)


def test_ray_refuses_a_typo_in_a_node_type(config):
    config["available_node_types"]["cpu"]["min_worker"] = 0
    with pytest.raises(Exception, match="min_worker"):
        validate(config)


def test_image_has_the_ray_and_python_of_the_lock(config):
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    ray_version = re.search(r"^ray==(\S+)", lock, re.MULTILINE).group(1)
    assert re.fullmatch(
        rf"rayproject/ray:{re.escape(ray_version)}-py311-gpu(@sha256:[0-9a-f]{{64}})?", config["docker"]["image"]
    )


def test_every_node_type_says_what_it_is(config):
    for name, node in config["available_node_types"].items():
        assert {"CPU", "GPU"} <= node["resources"].keys(), name
        assert "InstanceType" in node["node_config"], name


def test_the_head_computes_nothing(config):
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}


def test_training_is_on_demand_and_annotation_on_spot(config):
    def market(name):
        return (
            config["available_node_types"][name]["node_config"]
            .get("InstanceMarketOptions", {})
            .get("MarketType", "on-demand")
        )

    assert (market("gpu-annotate"), market("gpu-train")) == ("spot", "on-demand")


def test_nothing_listens_for_the_world_and_the_token_is_asked_for(config):
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    options = " ".join(config["docker"]["run_options"])
    assert "RAY_AUTH_MODE=token" in options
    assert "RAY_USAGE_STATS_ENABLED=0" in options
    token = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+)", options).group(1)
    assert token in config["file_mounts"]


@pytest.mark.case("B13: SSH and the instance's credentials on AWS")
def test_ssh_is_as_narrow_as_your_group_and_credentials_need_a_session(config):
    """Without SecurityGroupIds Ray makes a group with SSH from 0.0.0.0/0; `IpPermissions` only add to it."""
    assert [rule["IpRanges"] for rule in _create_default_ssh_inbound_rules()] == [[{"CidrIp": "0.0.0.0/0"}]]
    assert "security_group" not in config["provider"]
    for name, node in config["available_node_types"].items():
        cards = node["node_config"].get("NetworkInterfaces", [{"Groups": node["node_config"].get("SecurityGroupIds")}])
        assert all(card["Groups"] == ["sg-YOUR-GROUP"] for card in cards), name
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required", name
        assert node["node_config"]["MetadataOptions"]["HttpPutResponseHopLimit"] == 1, name


def test_aws_knows_these_options(config):
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for node in config["available_node_types"].values():
        assert node["node_config"].keys() <= shape.members.keys()
        assert node["node_config"]["MetadataOptions"].keys() <= shape.members["MetadataOptions"].members.keys()


def test_training_nodes_talk_over_efa(config):
    """Every network card of the machine, with its group and subnet: as Ray's and AWS's own rules want it."""
    train = config["available_node_types"]["gpu-train"]
    cards = train["node_config"]["NetworkInterfaces"]
    assert train["node_config"]["InstanceType"] == "p4d.24xlarge"
    assert [(card["NetworkCardIndex"], card["DeviceIndex"]) for card in cards] == [(0, 0), (1, 1), (2, 1), (3, 1)]
    assert {card["InterfaceType"] for card in cards} == {"efa"}
    found = _configure_subnets_and_groups_from_network_interfaces(train["node_config"])
    assert set(found["SubnetIds"]) == {"subnet-YOUR-SUBNET"}
    assert set(found["SecurityGroupIds"]) == {"sg-YOUR-GROUP"}
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    assert {key for card in cards for key in card} <= shape.members["NetworkInterfaces"].member.members.keys()
    options = " ".join(train["docker"]["worker_run_options"])
    for needed in ("/dev/infiniband", "memlock=-1", "FI_PROVIDER=efa", "NCCL_NET_PLUGIN=ofi", "NCCL_SOCKET_IFNAME="):
        assert needed in options


def test_spot_notices_reach_ray(config):
    """The watcher is on every node, starts after Ray and beside it, and does not keep the start from ending."""
    [*_, ray, watch] = config["worker_start_ray_commands"]
    assert ray.startswith("ray start")
    file = re.search(r"python (\S+) watch --address \$RAY_HEAD_IP:6379", watch).group(1)
    assert config["file_mounts"][file] == "cluster/spot.py"
    assert (ROOT / "cluster" / "spot.py").exists()
    assert watch.endswith("&")


def test_setup_installs_the_lock(config):
    [install] = [command.split() for command in config["setup_commands"] if "pip install" in command]
    assert "--require-hashes" in install
    lock = Path(install[install.index("-r") + 1])
    included = re.findall(r"^-r (\S+)$", (ROOT / lock.name).read_text(encoding="utf-8"), re.MULTILINE)
    for name in (lock.name, *included):
        assert config["file_mounts"][str(lock.parent / name)] == name


def test_the_head_can_start_machines():
    """With boto3, which no command of its own installs."""
    assert re.search("^boto3==", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
