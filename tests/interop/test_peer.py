"""Stock WireGuard peers of a mesh: wg-quick and wireguard-go, with what `meshctl peer config` prints."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.interop.sealed import CONTROL
from tests.netns.lab import FASTPATH_DIR, Host, Lab, missing, until
from tests.netns.mesh import Mesh

KEY = "/run/overmesh/private.key"
PROGRAMS = ("wireguard-go", "wg", "wg-quick")

pytestmark = pytest.mark.skipif(
    bool(missing())
    or not all(shutil.which(name) for name in PROGRAMS)
    or not (FASTPATH_DIR / "overmesh-fastpath").exists(),
    reason=f"needs {', '.join(PROGRAMS)} and the built fastpath; {missing()}",
)


@dataclass
class Stock:
    """A host that runs WireGuard alone, and how `meshctl peer add` is told of it."""

    mesh: Mesh
    name: str
    options: str

    def __post_init__(self) -> None:
        self.host = self.mesh.host(self.name)
        # The machine has one folder for the sockets by which `wg` speaks to wireguard-go.
        self.host.run(f"mkdir -p {CONTROL}")
        self.host.run(f"mount -t tmpfs tmpfs {CONTROL}")

    def add(self) -> None:
        """Make it a member, and let it know."""
        self.addresses = self.mesh.ctl(f"peer add {self.name} {self.options}")["node"]["addresses"]
        self.mesh.ctl("wait --converged")
        self.host.run(f"wg-quick up {self._configured()}")

    def tell_again(self) -> None:
        """Let it know who has come since."""
        self.host.run(f"wg-quick down {self._configured()}")
        self.host.run(f"wg-quick up {self._configured()}")

    def _configured(self) -> str:
        """Write the file that a user is given; what is missing in it, the user knows."""
        file = f"/run/overmesh/{self.name}.conf"
        printed = self.mesh.lab["ctl"].run(f"meshctl peer config {self.name}").stdout
        if "\n# PrivateKey" in printed:
            printed = printed.replace("\n# PrivateKey", f"\nPrivateKey = {self.host.read(KEY).strip()}\n#")
        self.host.write(file, printed)
        return file


def reaches(host: Host, *addresses: str, size: int = 56) -> bool:
    """Tell whether each address answers one of a few pings; the first may wait for a handshake."""
    pings = (f"ping -c 2 -i 0.2 -W 2 -s {size} -M do {address}" for address in addresses)
    return all(host.run(ping, check=False).returncode == 0 for ping in pings)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """Two members with agents, in a network that is sealed as all are by default."""
    with Lab("ctl") as lab:
        mesh = Mesh(lab)
        mesh.join("a", "b")
        yield mesh


@pytest.fixture(scope="module")
def router(mesh: Mesh) -> Stock:
    """A peer with an endpoint: others may begin to talk. Its private key never leaves it."""
    host = mesh.host("router")
    public = host.run(f"sh -c 'umask 077; wg genkey > {KEY}; wg pubkey < {KEY}'").stdout.strip()
    place = host.run("ip -o -4 addr show dev eth0").stdout.split()[3].partition("/")[0]
    stock = Stock(mesh, "router", f"--public-key {public} --endpoint {place}:51999")
    stock.add()
    return stock


@pytest.fixture(scope="module")
def phone(mesh: Mesh, router: Stock) -> Stock:
    """A peer that nobody finds before it talks, with a key that meshctl made."""
    stock = Stock(mesh, "phone", "--generate")
    stock.add()
    return stock


def test_a_node_begins_to_talk_to_a_peer_with_an_endpoint(mesh: Mesh, router: Stock) -> None:
    assert reaches(mesh["a"].host, *router.addresses)
    assert reaches(mesh["b"].host, *router.addresses, size=1300)
    assert reaches(router.host, *mesh["a"].addresses, *mesh["b"].addresses)


def test_a_peer_without_one_is_found_by_what_it_sends(mesh: Mesh, phone: Stock) -> None:
    until(lambda: reaches(mesh["a"].host, *phone.addresses), "the phone's keepalives tell where it is")
    assert reaches(phone.host, *mesh["a"].addresses, *mesh["b"].addresses)
    assert reaches(mesh["b"].host, *phone.addresses)
    mesh["b"].host.run("meshctl ping phone --count 1")
    mtu = int(mesh["a"].status()["mtu"])
    assert reaches(phone.host, mesh["a"].addresses[0], size=mtu - 28)
    assert reaches(mesh["a"].host, phone.addresses[1], size=mtu - 48)


def test_two_peers_talk_to_each_other(mesh: Mesh, router: Stock, phone: Stock) -> None:
    router.tell_again()
    # wireguard-go asks every 5 seconds; until now the router did not know the phone.
    until(lambda: reaches(phone.host, *router.addresses), "the phone reaches the router")
    assert reaches(router.host, *phone.addresses)


def test_nobody_waits_for_peers(mesh: Mesh, phone: Stock) -> None:
    assert mesh.ctl("wait --converged")["agents"] == 2
    nodes = mesh.nodes()
    assert (nodes["phone"]["kind"], nodes["phone"]["online"]) == ("wireguard", False)
    assert mesh["a"].status()["working"]


def test_a_member_that_comes_later_reaches_them(mesh: Mesh, router: Stock, phone: Stock) -> None:
    mesh.join("c")
    router.tell_again()
    assert reaches(mesh["c"].host, *router.addresses)


def test_a_removed_peer_is_cut_off(mesh: Mesh, phone: Stock) -> None:
    host = mesh.lab["ctl"]
    key = "/var/lib/overmesh/controller/peers/mesh/phone.key"
    assert host.run(f"stat -c %a {key}").stdout == "600\n"
    mesh.ctl("node remove phone")
    mesh.ctl("wait --converged")
    a, b = mesh["a"], mesh["b"]
    assert not reaches(phone.host, a.addresses[0])
    assert not reaches(phone.host, b.addresses[1])
    assert not reaches(a.host, phone.addresses[0])
    assert reaches(a.host, *b.addresses)
    assert "phone" not in mesh.nodes()
