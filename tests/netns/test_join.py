"""What a host that wants in can meet: each time one cause, one fix, an exit code, and nothing left behind."""

import re
import time
from dataclasses import replace

import pytest

from overmesh.controller.trust import MeshRoot
from overmesh.token import JoinToken
from tests.netns.lab import Host, until
from tests.netns.mesh import CONTROLLER, IPV4, IPV6, Mesh

STATE = "/var/lib/overmesh/agent"


@pytest.fixture
def host(mesh: Mesh) -> Host:
    """A host that has not joined."""
    return mesh.host(f"h{sum(1 for _ in mesh.lab)}")


def join(host: Host, token: str, options: str = "", *, to: str = IPV4, before: str = "") -> tuple[int, str]:
    """Return the exit code and the error line of a join."""
    ran = host.run(f"{before} meshctl join {to} --token {token} {options}", check=False)
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.splitlines()) <= 1, ran.stderr
    return ran.returncode, ran.stderr.strip()


def assert_nothing_left(mesh: Mesh, host: Host) -> None:
    assert host.run(f"ls -A {STATE}", check=False).stdout == ""
    assert "om0" not in host.run("ip link").stdout
    assert host.name not in mesh.nodes()


def test_steps_and_closing_lines(mesh: Mesh, host: Host) -> None:
    said = host.run(f"meshctl join {IPV6} --token {mesh.token()}").stdout
    steps = re.findall(r"^✓ (\w+)", said, re.MULTILINE)
    assert steps == ["host", "reach", "tls", "token", "address", "state"]
    assert f"node       {host.name} in network mesh" in said
    assert "packets    sealed: encrypted (WireGuard)" in said
    assert said.splitlines()[-1] == "next       start the agent: meshctl agent run"
    assert host.run(f"stat -c %a {STATE}/tls.key {STATE}/noise.key").stdout.split() == ["600", "600"]


def test_twice_is_once(mesh: Mesh, host: Host) -> None:
    token = mesh.token("--uses 2")
    assert join(host, token) == (0, "")
    first = mesh.nodes()[host.name]
    again = host.run(f"meshctl join {IPV4} --token {token} --json")
    assert '"already_member": true' in again.stdout
    assert mesh.nodes()[host.name]["addresses"] == first["addresses"]


def test_an_operator_lets_it_in(mesh: Mesh, host: Host) -> None:
    token = mesh.token("--require-approval --tag rack:7")
    code, said = join(host, token, "--no-wait")
    assert code == 3
    assert f"On a controller: meshctl node approve {host.name}." in said
    joining = host.start(f"meshctl join {IPV4} --token {token}")
    until(lambda: "waits for approval" in joining.output, "it says that it waits")
    (waiting,) = mesh.ctl("node pending")["pending"]
    assert (waiting["name"], waiting["state"]) == (host.name, "waiting")
    assert waiting["id"] in joining.output
    mesh.ctl(f"node approve {host.name}")
    assert joining.wait() == 0
    assert re.search(r"^✓ approval +given", joining.output, re.MULTILINE)
    assert mesh.nodes()[host.name]["tags"] == ["rack:7"]
    audit = mesh.lab[CONTROLLER].run(f"meshctl audit --node {host.name}").stdout
    assert re.search(rf"node approved  {host.name} \(.*by operator root  from this host", audit)


def test_token_used_up(mesh: Mesh, host: Host) -> None:
    token = mesh.token()
    assert join(mesh.host("first"), token) == (0, "")
    code, said = join(host, token)
    assert code == 1
    assert re.match(r"meshctl: .*used up.*\. .*meshctl token create", said), said
    assert_nothing_left(mesh, host)


def test_token_expired(mesh: Mesh, host: Host) -> None:
    token = mesh.token("--expires 1s")
    time.sleep(1.5)
    code, said = join(host, token)
    assert code == 1
    assert re.match(r"meshctl: .*expired.*\. .*meshctl token create", said), said
    assert_nothing_left(mesh, host)


def test_token_revoked(mesh: Mesh, host: Host) -> None:
    token = mesh.token()
    mesh.ctl(f"token revoke {token.split('.')[1]}")
    code, said = join(host, token)
    assert code == 1
    assert re.match(r"meshctl: .*revoked.*\. .*meshctl token create", said), said
    assert_nothing_left(mesh, host)


def test_token_with_a_wrong_pin_tells_the_secret_to_nobody(mesh: Mesh, host: Host) -> None:
    token = mesh.token()
    wrong = str(replace(JoinToken.parse(token), pin=JoinToken.new(MeshRoot.new().public_key).pin))
    code, said = join(host, wrong)
    assert code == 1
    assert "does not hold the mesh root that the token pins" in said
    assert_nothing_left(mesh, host)
    assert join(host, token) == (0, "")  # not used up


@pytest.mark.parametrize("token", ["om2.abc", "nonsense", "om2.3f9a0c27d1.x.y"])
def test_token_mistyped(host: Host, token: str) -> None:
    code, said = join(host, token)
    assert code == 2
    assert said.startswith("meshctl: the token is ")


def test_no_controller_there(mesh: Mesh, host: Host) -> None:
    code, said = join(host, mesh.token(), to="192.0.2.99")
    assert code == 1
    assert said.startswith("meshctl: 192.0.2.99:7442 can't be reached: No route to host."), said
    code, said = join(host, mesh.token(), to=f"{IPV4}:7999")
    assert code == 1
    assert said.startswith(f"meshctl: {IPV4}:7999 can't be reached: Connection refused."), said
    code, said = join(host, mesh.token(), to="controller.invalid")
    assert code == 1
    assert said.startswith("meshctl: the name controller.invalid is not known."), said
    assert_nothing_left(mesh, host)


def test_name_taken(mesh: Mesh, host: Host) -> None:
    token = mesh.token("--uses 2")
    assert join(mesh.host("taken"), token) == (0, "")
    code, said = join(host, token, "--name taken")
    assert code == 1
    assert re.match(r"meshctl: .*taken.*\. Take another name", said), said
    assert_nothing_left(mesh, host)
    assert join(host, token) == (0, "")  # the refused attempt took no use of the token


def test_no_address_left(mesh: Mesh) -> None:
    mesh.ctl("network create tiny --range 10.99.0.0/30")
    token = mesh.token("--network tiny --uses 0")
    for name in ("tiny1", "tiny2"):
        assert join(mesh.host(name), token) == (0, "")
    late = mesh.host("tiny3")
    code, said = join(late, token)
    assert code == 1
    assert said.startswith("meshctl: network tiny has no free address left in 10.99.0.0/30. Remove nodes"), (
        said
    )
    assert_nothing_left(mesh, late)
    mesh.ctl("node remove tiny1 --network tiny")
    assert join(late, token) == (0, "")


def test_range_collides_with_a_route_of_the_host(mesh: Mesh, host: Host) -> None:
    host.run(f"ip route add 10.77.5.0/24 via {IPV4}")
    code, said = join(host, mesh.token())
    assert code == 1
    assert "10.77.0.0/16" in said
    assert "10.77.5.0/24" in said
    assert_nothing_left(mesh, host)
    host.run("ip route delete 10.77.5.0/24")
    assert join(host, mesh.token()) == (0, "")


def test_no_tun_device(mesh: Mesh, host: Host) -> None:
    host.run("mount -t tmpfs none /dev/net")
    code, said = join(host, mesh.token())
    assert code == 1
    assert "/dev/net/tun" in said
    assert_nothing_left(mesh, host)


def test_no_permission(mesh: Mesh, host: Host) -> None:
    code, said = join(host, mesh.token(), before="setpriv --bounding-set -net_admin --inh-caps -net_admin")
    assert code == 1
    assert re.search(r"root|CAP_NET_ADMIN|sudo", said), said
    assert_nothing_left(mesh, host)


def test_port_in_use(mesh: Mesh, host: Host) -> None:
    taker = host.start(
        [
            "python",
            "-c",
            "import socket,time; s=socket.socket(type=socket.SOCK_DGRAM); s.bind(('',51820)); time.sleep(60)",
        ]
    )
    host.run("sh -c 'until ss -Hlun | grep -q :51820; do sleep 0.05; done'")
    token = mesh.token()
    code, said = join(host, token, "--port 51820")
    assert code == 1
    assert said.startswith("meshctl: UDP port 51820 is in use by another program."), said
    code, said = join(host, token)
    assert code == 1
    assert said.startswith("meshctl: network mesh is sealed, and UDP port 51820 is in use by another"), said
    assert_nothing_left(mesh, host)
    taker.kill()
    taker.wait()
    assert join(host, token) == (0, "")  # not used up
    assert [end["port"] for end in mesh.nodes()[host.name]["endpoints"]] == [51820, 51820]


def test_a_plain_network_has_a_port_of_its_own(mesh: Mesh, host: Host) -> None:
    mesh.ctl("network create rack --mode plain")
    assert join(host, mesh.token("--network rack")) == (0, "")
    [node] = mesh.ctl("node list --network rack")["nodes"]
    assert [end["port"] for end in node["endpoints"]] == [6081, 6081]


def test_controller_port_in_use(mesh: Mesh) -> None:
    ran = mesh.lab[CONTROLLER].run(
        "meshctl controller run --state-dir /run/other --runtime-dir /run/other",
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("meshctl: port 7442/tcp is in use by another process.")
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("file", ["membership.json", "tls.key", "noise.key", "root.pem", "node.pem"])
def test_corrupt_state_file(mesh: Mesh, file: str) -> None:
    host = mesh.host("corrupt")
    join(host, mesh.token())
    kept = host.read(f"{STATE}/{file}")
    host.write(f"{STATE}/{file}", "nonsense")
    ran = host.run("meshctl agent run", check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"meshctl: {STATE}/{file} "), ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    host.write(f"{STATE}/{file}", kept)


def test_corrupt_state_can_be_left(mesh: Mesh, host: Host) -> None:
    assert join(host, mesh.token()) == (0, "")
    host.write(f"{STATE}/node.pem", "nonsense")
    ran = host.run("meshctl leave", check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"meshctl: {STATE}/node.pem "), ran.stderr
    host.run("meshctl leave --force")
    assert host.run(f"ls -A {STATE}", check=False).stdout == ""
    mesh.ctl(f"node remove {host.name}")
    assert join(host, mesh.token()) == (0, "")


def test_unknown_key_in_a_config_file(mesh: Mesh, host: Host) -> None:
    host.write("/etc/overmesh/agent.toml", 'intreface = "om1"\n')
    code, said = join(host, mesh.token())
    assert code == 2
    assert said == "meshctl: /etc/overmesh/agent.toml: unknown key 'intreface'. Did you mean 'interface'?"
    assert_nothing_left(mesh, host)


def test_agent_without_membership(host: Host) -> None:
    ran = host.run("meshctl agent run", check=False)
    assert ran.returncode == 1
    assert ran.stderr == (
        "meshctl: this host has not joined a mesh. Run the line that `meshctl token create` printed.\n"
    )
