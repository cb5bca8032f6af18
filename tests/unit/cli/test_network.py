import json

from overmesh.errors import ExistsError
from overmesh.proto import admin_pb2, mesh_pb2
from tests.unit.cli.conftest import Fake, Meshctl

LAB = admin_pb2.Network(
    name="lab",
    number=2,
    ranges=["10.90.0.0/16", "fd00:90::/64"],
    mode=mesh_pb2.MODE_SEALED,
    mtu=1400,
    revision=7,
    nodes=3,
)


def test_create(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["CreateNetwork"] = admin_pb2.CreateNetworkReply(network=LAB)
    ran = meshctl(
        "network", "create", "lab", "--range", "10.90.0.0/16", "--range", "fd00:90::/64", "--mtu", "1400"
    )
    assert ran.out == (
        "Made lab: sealed, 10.90.0.0/16 and fd00:90::/64. Let hosts in: meshctl token create --network lab\n"
    )
    assert controller.requests == [
        admin_pb2.CreateNetworkRequest(
            name="lab", ranges=["10.90.0.0/16", "fd00:90::/64"], mode=mesh_pb2.MODE_SEALED, mtu=1400
        )
    ]


def test_plain_is_what_one_asks_for(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["CreateNetwork"] = admin_pb2.CreateNetworkReply(network=LAB)
    assert meshctl("network", "create", "rack", "--mode", "plain").code == 0
    assert controller.requests == [admin_pb2.CreateNetworkRequest(name="rack", mode=mesh_pb2.MODE_PLAIN)]
    assert meshctl("network", "create", "rack", "--mode", "open").code == 2


def test_create_what_there_is(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["CreateNetwork"] = ExistsError("there is a network lab with other ranges")
    ran = meshctl("network", "create", "lab")
    assert (ran.code, ran.err) == (1, "meshctl: there is a network lab with other ranges.\n")


def test_list(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ListNetworks"] = admin_pb2.ListNetworksReply(
        networks=[LAB, admin_pb2.Network(name="mesh", number=1, mode=mesh_pb2.MODE_PLAIN)]
    )
    assert meshctl("network", "list").out == (
        "NAME  NUMBER  RANGES        MODE    MTU      NODES  REVISION\n"
        "lab        2  10.90.0.0/16  sealed  1400         3         7\n"
        "              fd00:90::/64\n"
        "mesh       1                plain   by host      0         0\n"
    )
    assert json.loads(meshctl("network", "list", "--json").out)["networks"][0] == {
        "name": "lab",
        "number": 2,
        "ranges": ["10.90.0.0/16", "fd00:90::/64"],
        "mode": "sealed",
        "mtu": 1400,
        "nodes": 3,
        "revision": 7,
    }


def test_a_mode_that_there_is_not(controller: Fake, meshctl: Meshctl) -> None:
    ran = meshctl("network", "create", "lab", "--mode", "foo")
    assert (ran.code, controller.requests) == (2, [])
    assert ran.err == (
        "meshctl: Invalid value for '--mode': 'foo' is not one of 'sealed', 'plain'. "
        "See meshctl network create --help.\n"
    )
