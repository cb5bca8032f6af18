"""Certificates run out and the mesh root is rotated while packets flow; a host that was off comes back."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.netns.lab import CommandError, Lab, until
from tests.netns.mesh import Mesh, Pinging

# Seconds that a certificate is good: a node's is renewed two or three times in a test.
LIFETIME = 12


@pytest.fixture(scope="module")
def mesh(able: None) -> Iterator[Mesh]:
    with Lab("ctl") as lab:
        mesh = Mesh(lab, environ={"OVERMESH_CERTIFICATE_LIFETIME": str(LIFETIME)})
        mesh.join("a", "b", "c")
        yield mesh


def roots(mesh: Mesh, step: str = "status") -> dict[str, Any]:
    state: dict[str, Any] = mesh.ctl(f"root {step}")
    return state


def until_ready(mesh: Mesh, *, but: str = "") -> None:
    """Wait until a step of the rotation has reached everybody but one who is off."""

    def waited_for() -> list[Any]:
        now = roots(mesh)
        members = [member for member in now["members"] if member["name"] != but]
        return [*now["controllers"], *now["agents"], *members, *([now["records"]] if now["records"] else [])]

    until(lambda: not waited_for(), "nobody has to be waited for")


def test_certificates_run_out_again_and_again(mesh: Mesh) -> None:
    ends = {mesh["a"].status()["certificate_until"]}
    pings = Pinging(mesh["a"], mesh["b"].addresses[0])

    def renewed() -> bool:
        ends.add(mesh["a"].status()["certificate_until"])
        return len(ends) > 3

    until(renewed, "three renewals", timeout=4 * LIFETIME)
    assert pings.stop().lost == 0
    assert mesh["a"].status()["controller"]["connected"]
    mesh.until_in_step()


def test_an_agent_that_was_off_until_its_certificate_had_run_out(mesh: Mesh) -> None:
    mesh["c"].kill_agent()
    over = time.time() + LIFETIME + 1
    until(lambda: time.time() > over, "it has run out")
    mesh["c"].start_agent()
    mesh["c"].until_working()
    mesh.until_in_step()


def test_the_root_is_rotated_while_one_is_off_and_packets_flow(mesh: Mesh) -> None:
    pings = [Pinging(mesh["a"], mesh[name].addresses[0]) for name in ("b", "c")]
    mesh["c"].kill_agent()  # its fastpath goes on
    assert [root["state"] for root in roots(mesh, "stage")["roots"]] == ["signs", "next"]
    until_ready(mesh)
    assert [root["state"] for root in roots(mesh, "activate")["roots"]] == ["old", "signs"]
    until_ready(mesh, but="c")
    with pytest.raises(CommandError, match="have not come over yet: c"):
        roots(mesh, "retire")
    assert [root["state"] for root in roots(mesh, "retire --force")["roots"]] == ["signs"]
    mesh["c"].start_agent()
    mesh["c"].until_working()
    mesh.join("d")
    assert [ping.stop().lost for ping in pings] == [0, 0]
    for name in ("a", "b", "c", "d"):
        assert mesh[name].status()["problems"] == []
        assert mesh[name].reaches(mesh["a" if name != "a" else "d"].addresses[0])


def test_all_start_again_with_the_new_root_alone(mesh: Mesh) -> None:
    mesh.stop_controller()
    for member in mesh.members.values():
        member.kill_agent()
    mesh.start_controller()
    for member in mesh.members.values():
        member.start_agent()
        member.until_working()
    mesh.until_in_step()
    assert [root["state"] for root in roots(mesh)["roots"]] == ["signs"]
