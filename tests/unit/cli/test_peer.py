import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import segno
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from overmesh import wgquick
from overmesh.cli import client
from overmesh.cli import peer as verbs
from overmesh.errors import NameTakenError, UnconfirmedError
from overmesh.proto import admin_pb2, mesh_pb2
from tests.unit.cli import test_node
from tests.unit.cli.conftest import Fake, Meshctl, Ran

PRIVATE = X25519PrivateKey.from_private_bytes(b"\7" * 32)
PUBLIC = PRIVATE.public_key().public_bytes_raw()
KEY = wgquick.key_text(PUBLIC)


def peer(name: str = "phone", **fields: Any) -> admin_pb2.Node:
    said: dict[str, Any] = {
        "kind": mesh_pb2.KIND_WIREGUARD,
        "public_key": PUBLIC,
        "addresses": ["10.77.0.9", "fd00::9"],
        "endpoints": [],
        "mtu": 0,
    }
    return test_node.node(name, **(said | fields))


def agent(name: str = "web1", **fields: Any) -> admin_pb2.Node:
    return test_node.node(name, **({"mtu": 1380, "kind": mesh_pb2.KIND_AGENT} | fields))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the keys of the default network's peers are kept."""
    monkeypatch.setenv("OVERMESH_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state" / "peers" / "mesh"


@pytest.fixture
def mesh(controller: Fake, home: Path) -> Fake:
    """A controller that knows an agent's node and a peer, and lets another in."""
    controller.answers["AddPeer"] = admin_pb2.AddPeerReply(node=peer(), revision=9)
    listed = [peer(), agent()]
    controller.answers["ListNodes"] = admin_pb2.ListNodesReply(revision=9, nodes=listed)
    network = admin_pb2.Network(name="mesh", number=1)
    controller.answers["ListNetworks"] = admin_pb2.ListNetworksReply(networks=[network])
    return controller


def keep(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(wgquick.key_text(PRIVATE.private_bytes_raw()) + "\n")


# add


def test_add_a_public_key(mesh: Fake, home: Path, meshctl: Meshctl) -> None:
    where = ("--endpoint", "192.0.2.7:999", "--endpoint", "2001:db8::7")
    ran = meshctl("peer", "add", "phone", "--public-key", KEY, *where)
    assert ran == Ran(
        0,
        "Added phone (10.77.0.9, fd00::9) at revision 9.\n"
        "Print its configuration: meshctl peer config phone\n",
        "",
    )
    assert mesh.requests == [
        admin_pb2.AddPeerRequest(
            network="mesh",
            name="phone",
            public_key=PUBLIC,
            endpoints=[
                mesh_pb2.Endpoint(address="192.0.2.7", port=999),
                mesh_pb2.Endpoint(address="2001:db8::7", port=51820),
            ],
        )
    ]
    assert not home.exists()


def test_add_again_says_so(mesh: Fake, meshctl: Meshctl) -> None:
    mesh.answers["AddPeer"] = admin_pb2.AddPeerReply(
        node=peer(network="lab"), revision=9, already_member=True
    )
    assert meshctl("peer", "add", "phone", "--public-key", KEY, "--network", "lab").out == (
        "phone is a member already (10.77.0.9, fd00::9).\n"
        "Print its configuration: meshctl peer config phone --network lab\n"
    )


def test_add_as_json(mesh: Fake, meshctl: Meshctl) -> None:
    said = json.loads(meshctl("peer", "add", "phone", "--public-key", KEY, "--json").out)
    assert said["node"]["name"] == "phone"
    del said["node"]
    assert said == {"revision": 9, "already_member": False, "private_key_file": None}


def test_generate_keeps_the_private_key_here(mesh: Fake, home: Path, meshctl: Meshctl) -> None:
    ran = meshctl("peer", "add", "Phone", "--generate")
    file = home / "phone.key"
    assert f"Its private key is in {file}." in ran.out.replace("\n", " ")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    text = file.read_text()
    private = X25519PrivateKey.from_private_bytes(wgquick.key_value(text.strip()))
    assert mesh.requests[0].public_key == private.public_key().public_bytes_raw()
    assert text.strip() not in ran.out + ran.err


def test_generate_elsewhere(mesh: Fake, tmp_path: Path, meshctl: Meshctl) -> None:
    file = tmp_path / "my.key"
    said = meshctl("peer", "add", "phone", "--generate", "--private-key-file", str(file), "--json").out
    assert json.loads(said)["private_key_file"] == str(file)
    assert wgquick.key_value(file.read_text().strip())


def test_a_refusal_leaves_no_key(mesh: Fake, home: Path, meshctl: Meshctl) -> None:
    mesh.answers["AddPeer"] = NameTakenError("the name phone is taken", "take another name")
    ran = meshctl("peer", "add", "phone", "--generate")
    assert (ran.code, ran.err) == (1, "meshctl: the name phone is taken. Take another name.\n")
    assert not home.exists()
    keep(home / "printer.key")
    assert meshctl("peer", "add", "phone", "--generate").code == 1
    assert [file.name for file in home.iterdir()] == ["printer.key"]


def test_a_peer_that_may_be_there_keeps_its_key(
    mesh: Fake, home: Path, meshctl: Meshctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CALL_TIMEOUT", 0.3)
    mesh.answers["AddPeer"] = UnconfirmedError("etcd owes the answer; it may or may not have happened")
    ran = meshctl("peer", "add", "phone", "--generate")
    assert ran.err.endswith(
        "it may or may not have happened. See `meshctl node list` before you try again.\n"
    )
    assert (home / "phone.key").exists()


def test_a_key_is_never_overwritten(mesh: Fake, home: Path, meshctl: Meshctl) -> None:
    keep(home / "phone.key")
    before = (home / "phone.key").read_text()
    ran = meshctl("peer", "add", "phone", "--generate")
    assert (ran.code, ran.out) == (1, "")
    assert "phone.key exists" in ran.err
    assert (home / "phone.key").read_text() == before
    assert not mesh.requests


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["phone"], 2, "say which key the peer has"),
        (["phone", "--generate", "--public-key", KEY], 2, "say which key the peer has"),
        (
            ["phone", "--public-key", KEY, "--private-key-file", "x"],
            2,
            "--private-key-file is for --generate",
        ),
        (["phone", "--public-key", "abc"], 2, "'abc' is not a WireGuard key: 32 bytes in base64"),
        (["phone", "--public-key", ""], 2, "'' is not a WireGuard key: 32 bytes in base64"),
        (["phone", "--generate", "--endpoint", "phone.example:1"], 2, "endpoint 'phone.example:1' is not an"),
        (["../../x", "--generate"], 1, "'../../x' can't be a peer name"),
        (["phone", "--generate", "--network", "a/b"], 1, "'a/b' can't be a network name"),
        (["phone", "--generate", "--private-key-file", "/dev/null/x"], 1, "/dev/null/x can't be written"),
    ],
)
def test_add_what_can_not_be(
    args: list[str], code: int, said: str, mesh: Fake, home: Path, meshctl: Meshctl
) -> None:
    ran = meshctl("peer", "add", *args)
    assert (ran.code, ran.out, ran.err.count("\n")) == (code, "", 1)
    assert ran.err.startswith(f"meshctl: {said}")
    assert not mesh.requests
    assert not home.exists()


# config


def test_config(mesh: Fake, home: Path, meshctl: Meshctl) -> None:
    keep(home / "phone.key")
    web = wgquick.key_text(bytes(range(32)))
    assert meshctl("peer", "config", "PHONE") == Ran(
        0,
        "# phone in network mesh\n"
        "[Interface]\n"
        "PrivateKey = BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n"
        "Address = 10.77.0.9/32, fd00::9/128\n"
        "MTU = 1380\n"
        "\n"
        "# web1\n"
        "[Peer]\n"
        f"PublicKey = {web}\n"
        "AllowedIPs = 10.77.0.2/32, fd00::2/128\n"
        "Endpoint = [2001:db8::2]:6081\n"
        "PersistentKeepalive = 25\n",
        "",
    )


def test_config_as_json(mesh: Fake, home: Path, meshctl: Meshctl) -> None:
    said = json.loads(meshctl("peer", "config", "phone", "--keepalive", "0", "--json").out)
    text = said.pop("config")
    assert said == {"name": "phone", "network": "mesh", "complete": False}
    assert "# PrivateKey = put the one here" in text
    assert "Keepalive" not in text


def test_config_has_the_mtu_of_the_network(mesh: Fake, meshctl: Meshctl) -> None:
    mesh.answers["ListNetworks"].networks[0].mtu = 1300
    assert "MTU = 1300\n" in meshctl("peer", "config", "phone").out


def test_config_leaves_out_whose_record_can_not_be_read(mesh: Fake, meshctl: Meshctl) -> None:
    mesh.answers["ListNodes"].nodes.append(admin_pb2.Node(id="id-bad", network="mesh"))
    ran = meshctl("peer", "config", "phone")
    assert (ran.code, ran.out.count("[Peer]")) == (0, 1)


def test_config_with_a_key_from_elsewhere(mesh: Fake, home: Path, tmp_path: Path, meshctl: Meshctl) -> None:
    keep(tmp_path / "my.key")
    ran = meshctl("peer", "config", "phone", "--private-key-file", str(tmp_path / "my.key"))
    assert "\nPrivateKey = BwcH" in ran.out


def test_config_names_what_is_wrong_with_the_key(mesh: Fake, home: Path, meshctl: Meshctl) -> None:
    file = home / "phone.key"
    ran = meshctl("peer", "config", "phone", "--private-key-file", str(file))
    assert (ran.code, ran.out) == (1, "")
    assert f"{file} can't be read: No such file or directory." in ran.err
    keep(file)
    for content, said in ((b"\xff\0", "holds no private key"), (KEY.encode(), "of another peer")):
        file.write_bytes(content)
        ran = meshctl("peer", "config", "phone")
        assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
        assert said in ran.err


def test_config_of_what_is_no_peer(mesh: Fake, meshctl: Meshctl) -> None:
    ran = meshctl("peer", "config", "tablet")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "meshctl: network mesh has no peer 'tablet'. See `meshctl node list`.\n"
    ran = meshctl("peer", "config", "web1")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("meshctl: web1 is no stock WireGuard peer: it runs an agent")


# The QR code.


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `peer config` take stdout for one."""
    stdout = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(verbs, "sys", SimpleNamespace(stdout=stdout))


def test_a_qr_code_follows_on_a_terminal(
    mesh: Fake, home: Path, terminal: None, meshctl: Meshctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(home / "phone.key")
    coded: list[str] = []
    make = segno.make_qr

    def make_qr(text: str, **said: Any) -> segno.QRCode:
        coded.append(text)
        return make(text, **said)

    monkeypatch.setattr(segno, "make_qr", make_qr)
    ran = meshctl("peer", "config", "phone")
    assert (ran.code, ran.err) == (0, "")
    text, drawn = ran.out.split("PersistentKeepalive = 25\n")
    assert coded == [f"{text}PersistentKeepalive = 25\n"]
    assert "█" in drawn or "▀" in drawn


def test_no_qr_code_with_json(mesh: Fake, home: Path, terminal: None, meshctl: Meshctl) -> None:
    keep(home / "phone.key")
    assert json.loads(meshctl("peer", "config", "phone", "--json").out)["complete"]


def test_why_there_is_no_qr_code(
    mesh: Fake, home: Path, terminal: None, meshctl: Meshctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = meshctl("peer", "config", "phone")
    assert ran.err == "No QR code: it would lack the private key, which is not kept here.\n"
    keep(home / "phone.key")
    monkeypatch.setenv("COLUMNS", "40")
    assert "columns, this terminal has 40.\n" in meshctl("peer", "config", "phone").err
    mesh.answers["ListNodes"].nodes.extend(agent(f"web{number}") for number in range(2, 30))
    ran = meshctl("peer", "config", "phone")
    assert ran.out.endswith("PersistentKeepalive = 25\n")
    assert ran.err == f"No QR code: it holds 2953 bytes, this is {len(ran.out)}.\n"


def test_what_a_qr_code_holds() -> None:
    assert segno.make_qr("x" * 2953, error="l", boost_error=False).version == 40
    with pytest.raises(segno.DataOverflowError):
        segno.make_qr("x" * 2954, error="l", boost_error=False)


# remove


@pytest.mark.parametrize("kept", [True, False])
def test_remove(kept: bool, mesh: Fake, home: Path, meshctl: Meshctl) -> None:
    if kept:
        keep(home / "phone.key")
    mesh.answers["ListNodes"] = admin_pb2.ListNodesReply(nodes=[peer()])
    mesh.answers["RemoveNode"] = admin_pb2.RemoveNodeReply(node=peer(), revision=12)
    ran = meshctl("peer", "remove", "phone", "--json")
    said = json.loads(ran.out)
    assert (said["node"]["name"], said["revision"]) == ("phone", 12)
    assert said["removed_private_key_file"] == (str(home / "phone.key") if kept else None)
    assert not (home / "phone.key").exists()
    assert mesh.requests[-1] == admin_pb2.RemoveNodeRequest(network="mesh", node="id-phone")


def test_remove_says_what_is_gone(mesh: Fake, home: Path, meshctl: Meshctl) -> None:
    keep(home / "phone.key")
    mesh.answers["ListNodes"] = admin_pb2.ListNodesReply(nodes=[peer()])
    mesh.answers["RemoveNode"] = admin_pb2.RemoveNodeReply(node=peer(), revision=12)
    ran = meshctl("peer", "remove", "phone")
    assert ran.out.startswith("Removed phone (10.77.0.9, fd00::9) at revision 12.\n")
    assert f"The private key in {home / 'phone.key'} is gone." in ran.out.replace("\n", " ")


def test_an_agents_node_is_not_removed(mesh: Fake, meshctl: Meshctl) -> None:
    mesh.answers["ListNodes"] = admin_pb2.ListNodesReply(nodes=[agent()])
    ran = meshctl("peer", "remove", "web1")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("meshctl: web1 is no stock WireGuard peer")
    assert len(mesh.requests) == 1
