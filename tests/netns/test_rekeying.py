"""Hosts change their keys while packets flow; what was copied of the old ones is worth nothing after."""

from base64 import b64decode, b64encode

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.netns.lab import until
from tests.netns.mesh import Member, Mesh, Pinging
from tests.netns.test_trust import BY_HAND, MADE_UP

KEY_FILE = "/var/lib/overmesh/agent/noise.key"


def public_key(mesh: Mesh, name: str) -> str:
    key: str = mesh.nodes()[name]["public_key"]
    return key


def rotate(member: Member) -> None:
    member.host.run("meshctl node rotate-keys --grace 10s")


def until_changed(*members: Member) -> None:
    """Wait until no change of keys is under way."""
    until(
        lambda: not any(member.status()["keys"]["change"] for member in members),
        "the new keys are the only ones",
    )


def test_no_packet_is_lost(mesh: Mesh) -> None:
    mesh.join("a", "b")
    a, b = mesh["a"], mesh["b"]
    before = {name: public_key(mesh, name) for name in ("a", "b")}
    node_id, addresses = a.status()["node_id"], a.addresses
    pings = [Pinging(a, b.addresses[0]), Pinging(b, a.addresses[1])]
    rotate(a)
    assert a.status()["keys"]["change"]["stage"] == "announced"
    assert a.status()["working"]
    until_changed(a)
    # And both at once.
    rotate(a)
    rotate(b)
    until_changed(a, b)
    mesh.until_in_step()
    losses = [ping.stop() for ping in pings]
    assert [loss.lost for loss in losses] == [0, 0], losses
    assert min(loss.answered for loss in losses) > 1000
    assert (a.status()["node_id"], a.addresses) == (node_id, addresses)
    for name, key in before.items():
        assert public_key(mesh, name) != key

    # Handshakes between the new keys, with nothing left of before.
    a.kill_fastpath()
    until(lambda: a.reaches(b.addresses[0]), "a reaches b")


def test_a_crash_of_everything_in_the_middle(mesh: Mesh) -> None:
    mesh.join("a", "b")
    a, b = mesh["a"], mesh["b"]
    rotate(a)
    a.kill_fastpath()
    a.kill_agent()
    b.kill_fastpath()
    a.start_agent()
    until(lambda: a.reaches(b.addresses[0]) and b.reaches(a.addresses[0]), "they reach each other")
    until_changed(a)
    b.kill_fastpath()
    until(lambda: b.reaches(a.addresses[0]), "b reaches a by its new key")


def test_the_old_key_opens_nothing_any_more(mesh: Mesh) -> None:
    mesh.join("a", "b")
    a, b = mesh["a"], mesh["b"]
    old = a.host.read(KEY_FILE)
    rotate(a)
    until_changed(a)
    mesh.until_in_step()
    assert a.host.read(KEY_FILE) != old
    evil = mesh.host("evil")
    node, victim = mesh.nodes()["b"], b.status()
    by_hand = BY_HAND.format(
        number=mesh.ctl("network list")["networks"][0]["number"],
        public_key=node["public_key"],
        suite=node["suites"][-1],
        victim=victim["addresses"][0],
        endpoint=f"{victim['endpoints'][0]['address']}:51820",
    )
    evil.run("install -m 600 /dev/null /run/evil.key")
    evil.write("/run/evil.key", old)
    evil.write("/run/evil.toml", by_hand)
    evil.start("overmesh-fastpath --config /run/evil.toml")
    until(lambda: "om0" in evil.run("ip -4 -o addr show").stdout, "the fastpath by hand is up")
    before = victim["drops"].get("key_unknown", 0)
    ping = evil.run(f"ping -c 5 -i 0.1 -W 1 -I {MADE_UP} {victim['addresses'][0]}", check=False)
    assert " 0 received" in ping.stdout
    assert b.status()["drops"]["key_unknown"] > before
    private = X25519PrivateKey.from_private_bytes(b64decode(a.host.read(KEY_FILE)))
    assert b64encode(private.public_key().public_bytes_raw()).decode() == public_key(mesh, "a")
    assert a.reaches(b.addresses[0])
