"""Traffic, and what it survives; what has to hold for plain networks as well is in test_modes.py."""

import signal

import pytest

from tests.netns.lab import until
from tests.netns.mesh import IPV6, Mesh, Pinging


@pytest.fixture(autouse=True)
def three(mesh: Mesh) -> None:
    """Three members, whatever the test before did."""
    mesh.join("a", "b", "c")


def test_host_with_ipv6_alone(mesh: Mesh) -> None:
    mesh.host("d").run("ip -4 addr flush dev eth0")
    mesh.join("d", via=IPV6)
    assert mesh["a"].reaches(mesh["d"].addresses[0])
    [peer] = [peer for peer in mesh["a"].status()["peers"] if peer["name"] == "d"]
    assert peer["endpoint"] == "[2001:db8::5]:51820"


def test_controller_restarted(mesh: Mesh) -> None:
    pinging = Pinging(mesh["a"], mesh["c"].addresses[1])
    nodes = mesh.nodes()
    mesh.stop_controller(signal.SIGKILL)
    mesh.start_controller()
    mesh.until_in_step()
    loss = pinging.stop()
    assert loss.lost == 0, loss
    assert {name: node["addresses"] for name, node in mesh.nodes().items()} == {
        name: node["addresses"] for name, node in nodes.items()
    }


@pytest.mark.parametrize(
    ("damage", "there"),
    [
        ("ip route delete 10.77.0.0/16", "ip route show 10.77.0.0/16"),
        ("ip addr delete {address} dev om0", "ip -o addr show dev om0 to {address}"),
        ("ip link set om0 down", "ip -o link show dev om0 up"),
        ("ip link delete om0", "ip -o link show dev om0"),
    ],
)
def test_drift_is_repaired(mesh: Mesh, damage: str, there: str) -> None:
    host, address = mesh["a"].host, mesh["a"].addresses[0]
    host.run(damage.format(address=address))

    def repaired() -> str:
        return host.run(there.format(address=address), check=False).stdout

    until(repaired, "it is repaired")
    assert mesh["a"].reaches(mesh["b"].addresses[0])
    assert mesh["a"].reaches(mesh["b"].addresses[1])


def test_removed_node_is_cut_off_both_ways(mesh: Mesh) -> None:
    a, c = mesh["a"], mesh.members.pop("c")
    address = c.addresses[0]
    other = a.addresses[0]
    assert a.reaches(address)
    mesh.ctl("node remove c")
    mesh.ctl("wait --converged")
    assert not a.reaches(address)
    assert not c.reaches(other)
    until(lambda: c.status()["membership"] == "removed", "c knows that it was removed")
    assert c.host.run("meshctl status", check=False).returncode == 3

    # It can leave, and be let in again.
    c.host.run("meshctl leave --force")
    assert c.agent.wait() == 0
    assert "om0" not in c.host.run("ip link").stdout
    mesh.join("c")
    assert mesh["c"].reaches(other)


def test_leave_frees_name_and_addresses(mesh: Mesh) -> None:
    b = mesh.members.pop("b")
    assert b.host.run("meshctl leave").stdout == "Left the mesh: name and addresses are free again.\n"
    assert b.agent.wait() == 0
    assert "b" not in mesh.nodes()
    assert b.host.run("ls -A /var/lib/overmesh/agent", check=False).stdout == ""
    assert "om0" not in b.host.run("ip link").stdout
    assert b.host.run("meshctl status", check=False).returncode == 1


def test_leave_after_a_crash(mesh: Mesh) -> None:
    """Without an agent `leave` does what the agent would."""
    mesh.join("e")
    e = mesh.members.pop("e")
    e.kill_agent()
    assert e.host.run("meshctl leave").stdout == "Left the mesh: name and addresses are free again.\n"
    assert "e" not in mesh.nodes()
    assert e.host.run("ls -A /var/lib/overmesh/agent", check=False).stdout == ""
    assert "om0" not in e.host.run("ip link").stdout
    assert "overmesh-fastp" not in e.host.run("ps -A").stdout
    ran = e.host.run("meshctl leave", check=False)
    assert (ran.returncode, ran.stderr.partition(".")[0]) == (1, "meshctl: this host has not joined a mesh")
