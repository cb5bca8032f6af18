"""Offloads that a user does without, on hosts that carry packets already; what `status` says of lanes."""

from tests.netns.lab import until
from tests.netns.mesh import Mesh, Pinging


def test_a_restarted_agent_sees_to_offloads_and_lanes(mesh: Mesh) -> None:
    mesh.join("a", "b")
    a, b = mesh["a"], mesh["b"]
    before = a.status()["fastpath"]
    assert before["socket_buffers"]["wanted"] == 8 << 20
    pinging = Pinging(b, a.addresses[0])
    a.kill_agent()
    a.start_agent("agent run --no-offload uso,gro,avx512 --lanes 2")
    until(lambda: a.status().get("fastpath", {}).get("lanes") == 2, "the new fastpath")
    a.until_working()
    loss = pinging.stop()
    assert loss.gap < 5, loss

    fastpath = a.status()["fastpath"]
    assert fastpath["pid"] != before["pid"]
    assert fastpath["ports"] == [51820, 51821]
    off = {entry["name"] for entry in fastpath["offloads"] if entry["reason"] == "switched off"}
    assert off == {"uso", "gro", "avx512"}

    b.kill_agent()
    b.start_agent("agent run --lanes 2")
    until(lambda: len(a.status()["peers"][0]["endpoints"]) == 2, "both lanes of the peer")
    page = a.host.run("meshctl status").stdout
    assert "2 lanes on UDP ports 51820 to 51821" in page
    assert "192.0.2.3:51820-51821" in page

    a.kill_agent()
    a.start_agent("agent run --no-offload avx512,gro,uso --lanes 2")
    a.until_working()
    assert a.status()["fastpath"]["pid"] == fastpath["pid"], "nothing has changed"
