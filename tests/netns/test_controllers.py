"""Two controllers on one etcd: one is killed, and its agents go on with the other while packets flow."""

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.etcd import needs_etcd
from tests.netns.lab import Host, Lab, Process, until
from tests.netns.mesh import IPV4, Mesh, Pinging

# In the order in which the lab's hosts are made.
STORE, OTHER = "192.0.2.2", "192.0.2.3"
STATE = "/var/lib/overmesh/controller"
LEASE = 30.0


@pytest.fixture(scope="module")
def mesh(able: None) -> Iterator[Mesh]:
    needs_etcd()
    with Lab("ctl", "store", "other") as lab:
        start_etcd(lab["store"])
        mesh = Mesh(lab, environ={"OVERMESH_STORE": f"etcd://{STORE}:2379/mesh"})
        mesh.join("a", "b", "c")
        yield mesh


def start_etcd(host: Host) -> None:
    urls = {"client": f"http://{STORE}:2379", "peer": f"http://{STORE}:2380"}
    host.start(
        [
            "etcd",
            "--data-dir=/var/lib/overmesh/etcd",
            f"--listen-client-urls={urls['client']}",
            f"--advertise-client-urls={urls['client']}",
            f"--listen-peer-urls={urls['peer']}",
            f"--initial-advertise-peer-urls={urls['peer']}",
            f"--initial-cluster=default={urls['peer']}",
        ]
    )


@pytest.fixture(scope="module")
def other(mesh: Mesh) -> Process:
    """A second controller: it needs the root's key and the store, and that is all."""
    host = mesh.lab["other"]
    host.run(f"mkdir -p {STATE}")
    for name in ("root.key", "root.pem"):
        host.write(f"{STATE}/{name}", mesh.lab["ctl"].read(f"{STATE}/{name}"))
    process = host.start(f"meshctl controller run --advertise {OTHER}", environ=mesh.environ)
    until(lambda: "controller ready" in process.log or not process.running, "the other controller is ready")
    assert process.running, process.log
    return process


def told(host: Host, command: str) -> Any:
    return json.loads(host.run(f"meshctl {command} --json", timeout=60).stdout)


def controllers(host: Host) -> dict[str, bool]:
    """Return the controllers that one knows, by where agents reach them, and whether they answer."""
    return {one["mesh"][0]: one["answers"] for one in told(host, "controller list")["controllers"]}


def connected_to(mesh: Mesh, target: str) -> bool:
    states = [member.status()["controller"] for member in mesh.members.values()]
    return all(state["connected"] and state["address"].startswith(target) for state in states)


def test_each_lists_both(mesh: Mesh, other: Process) -> None:
    both = {f"{IPV4}:7443": True, f"{OTHER}:7443": True}
    for name in ("ctl", "other"):
        until(lambda host=mesh.lab[name]: controllers(host) == both, f"{name} lists both")  # type: ignore[misc]


def test_agents_go_over_when_theirs_is_killed_and_no_packet_is_lost(mesh: Mesh, other: Process) -> None:
    pings = Pinging(mesh["a"], mesh["b"].addresses[0])
    mesh.stop_controller(signal.SIGKILL)
    took = until(lambda: connected_to(mesh, OTHER), "all agents are with the other one")
    assert took < LEASE / 2
    second = mesh.lab["other"]
    nodes = told(second, "node list")
    assert [problem["subject"] for problem in nodes["problems"]] == [f"controller {IPV4}:7443"], "it is named"
    assert all(node["online"] for node in nodes["nodes"])
    token = told(second, "token create")["secret_token"]
    late = mesh.host("late")
    late.start(f"meshctl join {OTHER} --token {token} --foreground")
    addresses = until_addresses(late)
    until(
        lambda: mesh["c"].reaches(addresses[0]), "a host that joins at the other one is reached", timeout=60
    )
    assert told(second, "wait --converged --timeout 60s")["converged"], (
        "once the lease of the dead one is over"
    )
    assert controllers(second) == {f"{OTHER}:7443": True}
    assert pings.stop().lost == 0


def until_addresses(host: Host) -> list[str]:
    found: list[str] = []

    def has() -> bool:
        said = host.run("meshctl status --json", check=False).stdout
        found[:] = json.loads(said or "{}").get("addresses", [])
        return bool(found)

    until(has, f"{host.name} has addresses")
    return found


def test_a_host_that_starts_finds_the_one_that_is_alive(mesh: Mesh, other: Process) -> None:
    """It joined at the one that is dead."""
    mesh["c"].kill_agent()
    mesh["c"].start_agent()
    until(lambda: connected_to(mesh, OTHER), "its agent is with the other one")


def test_the_one_that_was_killed_comes_back_and_agents_come_back_to_it(mesh: Mesh, other: Process) -> None:
    pings = Pinging(mesh["a"], mesh["b"].addresses[0])
    mesh.start_controller()
    both = {f"{IPV4}:7443": True, f"{OTHER}:7443": True}
    until(lambda: controllers(mesh.lab["ctl"]) == both, "it lists both")
    other.kill(signal.SIGTERM)
    other.wait()
    until(lambda: connected_to(mesh, IPV4), "all agents are with the first one again")
    assert mesh.ctl("wait --converged")["converged"]
    assert pings.stop().lost == 0


def test_agents_leave_a_controller_that_has_lost_its_store(mesh: Mesh, other: Process) -> None:
    host, second = mesh.lab["other"], mesh.lab["ctl"]
    process = host.start(f"meshctl controller run --advertise {OTHER}", environ=mesh.environ)
    until(lambda: "controller ready" in process.log, "the other controller is back")
    pings = Pinging(mesh["a"], mesh["b"].addresses[0])
    second.run(f"ip route add blackhole {STORE}/32")
    said = second.run("meshctl token create", check=False)
    assert said.returncode == 1
    assert "can't be reached" in said.stderr or "may or may not" in said.stderr, said.stderr
    waited = second.run("meshctl wait --converged --timeout 3s", check=False)
    assert (waited.returncode, "the store can't be asked" in waited.stderr) == (3, True), waited.stderr
    listed = second.run("meshctl node list")
    assert listed.stderr.startswith("! store: not heard for "), listed.stderr
    until(lambda: connected_to(mesh, OTHER), "all agents are with the one that has the store", timeout=90)
    assert told(host, "wait --converged --timeout 60s")["converged"]
    second.run(f"ip route del blackhole {STORE}/32")
    both = {f"{IPV4}:7443": True, f"{OTHER}:7443": True}
    until(lambda: controllers(host) == both, "the one that was cut off is in the map again")
    assert pings.stop().lost == 0
