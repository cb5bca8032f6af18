"""Whoever can write to the store, or has copied a host's keys, still gets no packet through."""

import json
import time
import uuid
from base64 import b64encode
from ipaddress import ip_address

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from overmesh.model import Endpoint, Node, NodeEndpoints, Record
from overmesh.proto.signed import map_key, sign
from tests.netns.lab import Host, until
from tests.netns.mesh import CONTROLLER, IPV4, Member, Mesh, Pinging

STORE = "/var/lib/overmesh/controller/store.db"
MADE_UP = "10.77.66.66"

# What somebody with a SQLite shell would do.
WRITE = """
import json, sqlite3, sys
store = sqlite3.connect(sys.argv[1])
for key, value in json.loads(sys.argv[2]).items():
    [revision] = store.execute("UPDATE meta SET revision = revision + 1 RETURNING revision").fetchone()
    row = (key, bytes.fromhex(value), revision, revision, 1, 0)
    store.execute("INSERT OR REPLACE INTO kv (key, value, create_revision, mod_revision, version, lease)"
        " VALUES (?, ?, ?, ?, ?, ?)", row)
    store.execute("INSERT INTO history (position, key, value, create_revision, mod_revision, version, lease)"
        " VALUES (0, ?, ?, ?, ?, ?, ?)", row)
store.commit()
"""

BY_HAND = f"""
network_number = {{number}}
private_key_file = "/run/evil.key"
addresses = ["{MADE_UP}/16"]
[[peer]]
name = "victim"
public_key = "{{public_key}}"
suite = "{{suite}}"
prefixes = ["{{victim}}/32"]
endpoints = ["{{endpoint}}"]
"""


def write_to_store(mesh: Mesh, records: list[Record]) -> None:
    """Put records into the SQLite file under the keys where they belong, signed with a key of our own."""
    key = generate_private_key(SECP256R1())
    values = {}
    for record in records:
        kind, _, item = map_key(record).partition("/")
        values[f"/overmesh/v1/{'nodes' if kind == 'node' else kind}/mesh/{item}"] = sign(record, key).hex()
    mesh.stop_controller()
    mesh.lab[CONTROLLER].run(["python", "-c", WRITE, STORE, json.dumps(values)])
    mesh.start_controller()


def until_problem(member: Member, subject: str) -> str:
    """Wait until a member's status names something as a problem, and return why."""

    def reason() -> str | None:
        problems = {problem["subject"]: problem["reason"] for problem in member.status()["problems"]}
        return problems.get(subject)

    until(reason, f"{member.host.name} names {subject}")
    return reason() or ""


def underlay(host: Host) -> str:
    """Return a host's IPv4 address outside the overlay."""
    addresses = host.run("ip -4 -o addr show eth0").stdout.splitlines()
    return next(line.split()[3].split("/")[0] for line in addresses)


def copy_files(source: Host, copy: Host) -> None:
    """Have a host keep what another one's agent keeps."""
    copy.write("/run/files", source.run("sh -c 'tar -C /var/lib/overmesh -c agent | base64'").stdout)
    copy.run("sh -c 'base64 -d /run/files | tar -C /var/lib/overmesh -x'")


def test_copied_keys(mesh: Mesh) -> None:
    """A second machine with the first one's files: the one that is connected stays, the other is told."""
    mesh.join("original", "b")
    original, b = mesh["original"], mesh["b"]
    pinging = Pinging(b, original.addresses[0])
    copy = mesh.host("copy")
    copy_files(original.host, copy)
    clone = Member(copy, copy.start("meshctl agent run"))
    until(lambda: clone.status().get("controller", {}).get("error"), "the copy is refused")
    assert "another host is connected as this node" in clone.status()["controller"]["error"]
    assert not clone.reaches(b.addresses[0])
    shown = mesh.nodes()["original"]
    assert shown["online"]
    assert [seen["from"] for seen in shown["copies"]] == [underlay(copy)]
    assert shown["host"]["from"] == underlay(original.host)
    only_a_copy = "Left: this host was only a copy of original, which stays a member.\n"
    assert copy.run("meshctl leave").stdout.startswith(only_a_copy)
    clone.agent.wait()
    copy_files(original.host, copy)
    assert copy.run("meshctl leave").stdout.startswith(only_a_copy), "whose agent never ran, too"
    assert copy.run("ls -A /var/lib/overmesh/agent", check=False).stdout == ""
    assert "original" in mesh.nodes()
    loss = pinging.stop()
    assert loss.lost == 0, loss


def test_a_cloned_virtual_machine(mesh: Mesh) -> None:
    """The copy has the machine id too: one stays and has its packets, the other is told what to do."""
    mesh.join("vm", "b")
    vm, b = mesh["vm"], mesh["b"]
    copy = mesh.host("clone")
    copy_files(vm.host, copy)
    copy.write("/etc/machine-id", vm.host.read("/etc/machine-id"))
    before = mesh.ctl("node list")["revision"]
    pinging = Pinging(b, vm.addresses[0])
    clone = Member(copy, copy.start("meshctl agent run"))
    until(lambda: clone.status().get("problems"), "the copy has something to tell")
    reason = until_problem(clone, "identity")
    assert "systemd-machine-id-setup" in reason
    assert "of its machine id and is quarantined" in clone.status()["controller"]["error"]
    assert not clone.reaches(b.addresses[0])
    shown = mesh.nodes()["vm"]
    assert [seen["from"] for seen in shown["copies"]] == [underlay(copy)]
    assert [problem["subject"] for problem in shown["problems"]] == ["host"]
    clone.kill_agent()
    clone.start_agent()
    until(lambda: clone.status().get("controller", {}).get("error"), "the copy is refused again")
    assert not clone.reaches(b.addresses[0])
    time.sleep(5)
    assert vm.status()["working"]
    assert mesh.nodes()["vm"]["endpoints"][0]["address"] == underlay(vm.host)
    assert mesh.ctl("node list")["revision"] - before < 20
    loss = pinging.stop()
    assert loss.gap < 3, loss
    # The way out that it was told.
    copy.run("meshctl leave")
    clone.agent.wait()
    copy.write("/etc/machine-id", f"{uuid.uuid4().hex}\n")
    mesh.join("clone")
    assert mesh["clone"].reaches(vm.addresses[0])
    assert "vm" in mesh.nodes()


def test_a_revoked_node_is_cut_off_everywhere_and_does_not_come_back(mesh: Mesh) -> None:
    mesh.join("a", "b", "thief")
    a, b, thief = mesh["a"], mesh["b"], mesh["thief"]
    mesh.until_in_step()
    assert thief.reaches(a.addresses[0])
    pinging = Pinging(a, b.addresses[0])
    address = thief.addresses[0]
    mesh.ctl("node revoke thief --reason stolen")
    until(lambda: not thief.status()["peers"], "the revoked host has no peers")
    assert thief.status()["membership"] == "removed"
    mesh.until_in_step()
    for member in (a, b):
        assert "thief" not in [peer["name"] for peer in member.status()["peers"]]
        assert not member.reaches(address)
    assert not thief.reaches(a.addresses[0])
    thief.kill_agent()
    refused = thief.host.run(f"meshctl join {IPV4} --token {mesh.token()} --no-wait", check=False)
    assert "revoked for good" in refused.stdout + refused.stderr
    assert [node["name"] for node in mesh.ctl("node list --revoked")["revoked"]] == ["thief"]
    loss = pinging.stop()
    assert loss.lost == 0, loss


def test_made_up_endpoints_divert_no_packet(mesh: Mesh) -> None:
    mesh.join("a", "b")
    a, b = mesh["a"], mesh["b"]
    node_id, subject = b.status()["node_id"], f"endpoints/{b.status()['node_id']}"
    pinging = Pinging(a, b.addresses[0])
    b.kill_agent()  # or its next report would replace the record at once
    elsewhere = Endpoint(ip_address("192.0.2.99"), 51820)
    made_up = NodeEndpoints(node_id, "mesh", (elsewhere,), serial=1 << 62)
    write_to_store(mesh, [made_up])
    assert "not signed by this mesh's root" in until_problem(a, subject)
    b.start_agent()
    until(lambda: not a.status()["problems"], "b's own report has replaced the record")
    loss = pinging.stop()
    assert loss.lost == 0, loss


def test_made_up_peer_gets_no_packet_through(mesh: Mesh) -> None:
    mesh.join("a", "b")
    a, evil = mesh["a"], mesh.host("evil")
    place = underlay(evil)
    key = X25519PrivateKey.generate()
    public_key = key.public_key().public_bytes_raw()
    write_to_store(
        mesh,
        [
            Node("evil", "mesh", "evil", public_key, (ip_address(MADE_UP),), serial=1, not_after=1 << 40),
            NodeEndpoints("evil", "mesh", (Endpoint(ip_address(place), 51820),), serial=1),
        ],
    )
    for member in (a, mesh["b"]):
        assert "not signed by this mesh's root" in until_problem(member, "node/evil")
        assert "subject=node/evil" in member.agent.log
        assert "evil" not in [peer["name"] for peer in member.status()["peers"]]
    assert "node/evil" in a.host.run("meshctl status", check=False).stdout

    # It sends all the same, with a fastpath by hand that knows all there is to know.
    number = mesh.ctl("network list")["networks"][0]["number"]
    own, node = a.status(), mesh.nodes()["a"]
    by_hand = BY_HAND.format(
        number=number,
        public_key=node["public_key"],
        suite=node["suites"][-1],
        victim=own["addresses"][0],
        endpoint=f"{own['endpoints'][0]['address']}:51820",
    )
    evil.run("install -m 600 /dev/null /run/evil.key")
    evil.write("/run/evil.key", b64encode(key.private_bytes_raw()).decode())
    evil.write("/run/evil.toml", by_hand)
    evil.start("overmesh-fastpath --config /run/evil.toml")
    until(lambda: "om0" in evil.run("ip -4 -o addr show").stdout, "the fastpath by hand is up")
    before = own["drops"].get("key_unknown", 0)
    ping = evil.run(f"ping -c 5 -i 0.1 -W 1 -I {MADE_UP} {own['addresses'][0]}", check=False)
    assert " 0 received" in ping.stdout
    assert a.status()["drops"]["key_unknown"] > before
    assert not a.reaches(MADE_UP)
    assert a.reaches(mesh["b"].addresses[0])
