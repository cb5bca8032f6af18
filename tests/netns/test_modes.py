"""What has to hold in sealed and in plain networks alike."""

import json
import shlex
import signal

import pytest

from tests.netns.lab import until
from tests.netns.mesh import IPV4, Mesh, Pinging
from tests.netns.wire import LISTENING

both = pytest.mark.parametrize("mesh", ["sealed", "plain"], indirect=True)

PATHS = {"sealed": "sealed wireguard", "plain": "plain geneve"}
PAYLOAD = "secret"


@pytest.fixture(autouse=True)
def three(mesh: Mesh) -> None:
    """Three members, whatever the test before did."""
    mesh.join("a", "b", "c")


@both
@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_ping(mesh: Mesh, family: int) -> None:
    for source, target in (("a", "b"), ("b", "c"), ("c", "a")):
        mesh[source].host.run(f"ping -c 1 -W 2 {mesh[target].addresses[family]}")


@both
@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_packets_larger_than_the_mtu(mesh: Mesh, family: int) -> None:
    mesh["a"].host.run(f"ping -c 3 -i 0.2 -W 2 -s 8000 {mesh['b'].addresses[family]}")


@both
def test_ping_by_meshctl_names_the_path(mesh: Mesh) -> None:
    by_name = mesh["a"].host.run("meshctl ping b -c 2 -i 0.1").stdout
    assert "2 sent, 2 answered, 0% lost" in by_name
    assert f"via {PATHS[mesh.mode]} to 192.0.2." in by_name
    by_address = mesh["a"].host.run(f"meshctl ping {mesh['b'].addresses[1]} -c 2 -i 0.1").stdout
    assert "2 sent, 2 answered, 0% lost" in by_address
    assert "answered by its host" in by_address


@both
def test_what_the_wire_shows(mesh: Mesh) -> None:
    """Sealed: nothing of what is inside. Plain shows that the listener would have heard it."""
    a, b = mesh["a"], mesh["b"]
    ends = [end.status()["endpoints"][0]["address"] for end in (a, b)]
    listening = b.host.start(shlex.join(["python", "-m", "tests.netns.wire", *ends, PAYLOAD]))
    until(lambda: LISTENING in listening.log, "it listens")
    for address in b.addresses:
        a.host.run(f"ping -c 3 -i 0.1 -p {PAYLOAD.encode().hex()} {address}")
    listening.kill(signal.SIGINT)
    listening.wait()
    seen = json.loads(listening.output)
    if mesh.mode == "sealed":
        assert (seen["with_payload"], seen["others"]) == (0, {})
        assert seen["messages"]["data"] >= 12
    else:
        assert (seen["with_payload"], seen["messages"]) == (12, {})


@both
def test_status_of_peers(mesh: Mesh) -> None:
    until(lambda: mesh["a"].reaches(mesh["b"].addresses[0]), "a reaches b")
    [peer] = [peer for peer in mesh["a"].status()["peers"] if peer["name"] == "b"]
    assert (peer["kind"], peer["mode"]) == ("agent", mesh.mode)
    if mesh.mode == "sealed":
        assert peer["suite"] in mesh.nodes()["b"]["suites"]
        assert 0 <= peer["last_handshake_seconds"] < 180
    else:
        assert (peer["suite"], peer["last_handshake_seconds"]) == (None, None)


@both
def test_others_come_move_and_go(mesh: Mesh) -> None:
    """The fastpath is told what changes, while it carries packets."""
    a, b = mesh["a"], mesh["b"]
    pings = [Pinging(a, b.addresses[0]), Pinging(b, a.addresses[1])]
    for _ in range(3):
        mesh.join("d")
        d = mesh.members.pop("d")
        assert a.reaches(d.addresses[0])
        d.host.run("ip address add 198.51.100.4/24 dev eth0")
        until(lambda: "198.51.100.4" in str(mesh.nodes()["d"]), "d is there as well")
        d.host.run("ip address delete 198.51.100.4/24 dev eth0")
        until(lambda: "198.51.100.4" not in str(mesh.nodes()["d"]), "d is there no more")
        mesh.until_in_step()
        d.host.run("meshctl leave")
        d.agent.wait()
    mesh.until_in_step()
    assert [ping.stop().lost for ping in pings] == [0, 0]
    assert "everything anew" not in a.agent.log + b.agent.log


@both
def test_agent_killed(mesh: Mesh) -> None:
    pinging = Pinging(mesh["a"], mesh["b"].addresses[0])
    for name in ("a", "b"):
        mesh[name].kill_agent()
    for name in ("a", "b"):
        mesh[name].start_agent()
        mesh[name].until_working()
    loss = pinging.stop()
    assert loss.lost == 0, loss
    assert loss.answered > 100


@both
def test_fastpath_killed(mesh: Mesh) -> None:
    pinging = Pinging(mesh["a"], mesh["b"].addresses[0])
    before = mesh["b"].kill_fastpath()
    until(lambda: mesh["b"].status()["fastpath"]["pid"] not in (0, before), "another fastpath runs")
    mesh["b"].until_working()
    loss = pinging.stop()
    assert loss.gap < 1.5, loss
    assert mesh["b"].status()["fastpath"]["restarts"] >= 1


@pytest.mark.parametrize(
    ("mesh", "command"),
    [
        ("sealed", "agent run"),
        ("sealed", "join {controller} --token {token} --foreground"),
        ("plain", "agent run"),
    ],
    indirect=["mesh"],
)
def test_host_rebooted_while_no_controller_answers(mesh: Mesh, command: str) -> None:
    """Agent, fastpath and interface are gone: the host, or container, is back from its disk."""
    addresses, fastpath = mesh["b"].addresses, mesh["b"].status()["fastpath"]["pid"]
    command = command.format(controller=IPV4, token=mesh.token())
    mesh.stop_controller()
    pinging = Pinging(mesh["a"], mesh["c"].addresses[0])
    mesh["b"].kill_agent()
    mesh["b"].host.kill(fastpath)
    mesh["b"].host.run("ip link delete om0", check=False)
    mesh["b"].start_agent(command)
    mesh["b"].until_working()
    assert mesh["b"].addresses == addresses
    until(lambda: mesh["b"].reaches(mesh["a"].addresses[0]), "b reaches a")
    until(lambda: mesh["c"].reaches(addresses[1]), "c reaches b")
    status = mesh["b"].status()
    assert not status["controller"]["connected"]
    loss = pinging.stop()
    assert loss.lost == 0, loss
    mesh.start_controller()
    mesh.until_in_step()
