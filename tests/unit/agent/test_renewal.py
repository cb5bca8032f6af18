import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from overmesh.agent.joinport import Target, certificate_request, check_clock
from overmesh.agent.renewal import Renewal, Term
from overmesh.config import AgentConfig
from overmesh.controller.daemon import running
from overmesh.controller.trust import CertificateRequest, Identity, MeshRoot
from overmesh.errors import UnreachableError
from tests.unit.agent.conftest import Mesh, host, joined
from tests.unit.agent.test_sync import Member, following, in_step, until
from tests.unit.agent.world import ROOT, root_certificate

AT = Target("192.0.2.1", 7442)


def renewal(member: Member, clock: Callable[[], float] = time.time) -> Renewal:
    return Renewal(member.sync, member.replica, clock)


def serial(member: Member) -> int:
    return member.sync.identity.certificate.serial_number


async def member_of(mesh: Mesh, config: AgentConfig) -> Member:
    await joined(mesh, config)
    return Member(config)


async def test_another_certificate_is_kept_and_the_stream_moves_over(mesh: Mesh, tmp_path: Path) -> None:
    member = await member_of(mesh, host(tmp_path, "a"))
    async with following(member):
        await in_step(mesh, "a")
        before, revision = serial(member), member.replica.revision
        assert await renewal(member).attempt()
        assert serial(member) != before
        assert member.state.identity().certificate.serial_number == serial(member)
        await joined(mesh, host(tmp_path, "b"))
        await until(lambda: member.peers == ["b"])
        assert member.replica.revision > revision
    assert member.sync.contact.error == ""


async def test_it_is_renewed_again_and_again_before_it_runs_out(mesh: Mesh, tmp_path: Path) -> None:
    mesh.controller.root.lifetime = 4
    member = await member_of(mesh, host(tmp_path, "a"))
    renewing = renewal(member)
    seen = {serial(member)}
    async with following(member):
        task = asyncio.create_task(renewing.run())
        try:
            while len(seen) < 4:
                await asyncio.sleep(0.05)
                assert renewing.until > datetime.now(UTC).timestamp()
                seen.add(serial(member))
        finally:
            task.cancel()


def test_the_moment_is_at_half_of_its_time_and_differs() -> None:
    certificate = root_certificate(ROOT)
    early, late = (Term.of(certificate, share) for share in (max, min))
    assert early.due < late.due < early.end
    assert late.due - early.due == pytest.approx((early.end - early.begin) * 0.1)


async def test_a_host_that_was_off_until_all_had_run_out(mesh: Mesh, tmp_path: Path) -> None:
    member = await member_of(mesh, host(tmp_path, "a"))
    identity = member.sync.identity
    old = MeshRoot(*mesh.controller.root.keys, lifetime=60, clock=lambda: 1_700_000_000)
    request = CertificateRequest.parse(certificate_request(identity.keys.tls, "a"))
    der = old.issue_node(request, Identity("mesh", identity.membership.node_id))
    member.sync.identity = replace(identity, certificate=x509.load_der_x509_certificate(der))
    async with following(member):
        await until(lambda: member.sync.contact.untrusted)
        task = asyncio.create_task(renewal(member).run())
        await in_step(mesh, "a")
        task.cancel()


async def test_a_removed_host_finds_out_though_its_certificate_has_run_out(
    mesh: Mesh, tmp_path: Path
) -> None:
    member = await member_of(mesh, host(tmp_path, "a"))
    await mesh.remove("a")
    assert not await renewal(member).attempt()
    assert member.sync.contact.removed


async def test_no_controller_answers(mesh: Mesh, tmp_path: Path) -> None:
    member = await member_of(mesh, host(tmp_path, "a"))
    mine = replace(member.sync.identity.membership, join=("127.0.0.1:1",), controllers=())
    member.sync.identity = replace(member.sync.identity, membership=mine)
    renewing = renewal(member)
    assert not await renewing.attempt()
    assert renewing.problems == ()
    late = renewal(member, lambda: 4_000_000_000)
    assert not await late.attempt()
    assert [problem.subject for problem in late.problems] == ["certificate"]


async def test_another_mesh_at_the_join_port_is_not_believed(mesh: Mesh, tmp_path: Path) -> None:
    member = await member_of(mesh, host(tmp_path, "a"))
    before = serial(member)
    foreign = replace(mesh.config, state_dir=tmp_path / "other", runtime_dir=tmp_path / "other-run")
    async with running(foreign) as other:
        at = f"127.0.0.1:{other.listening.join_port}"
        mine = replace(member.sync.identity.membership, join=(at,), controllers=())
        member.sync.identity = replace(member.sync.identity, membership=mine)
        assert not await renewal(member).attempt()
    assert serial(member) == before
    assert member.replica.roots == member.sync.identity.roots


@pytest.mark.parametrize(
    ("moment", "said"),
    [
        (
            datetime(2025, 12, 31, 22, tzinfo=UTC),
            "not yet valid: this host's clock is behind by 2 hours or more",
        ),
        (datetime(2046, 2, 1, tzinfo=UTC), "has run out: this host's clock is ahead by 31 days or more"),
    ],
)
def test_a_clock_that_is_wrong_is_named(moment: datetime, said: str) -> None:
    certificate = root_certificate(ROOT)
    check_clock(certificate, AT, datetime(2026, 2, 1, tzinfo=UTC).timestamp())
    with pytest.raises(UnreachableError, match=said):
        check_clock(certificate, AT, moment.timestamp())


async def test_how_far_the_clocks_are_apart_is_a_problem(mesh: Mesh, tmp_path: Path) -> None:
    member = await member_of(mesh, host(tmp_path, "a"))
    now = datetime.now(UTC).timestamp()
    renewing = renewal(member, lambda: now - 1200)
    assert await renewing.attempt()
    assert [problem.reason for problem in renewing.problems] == [
        "this host's clock is behind the controller's by 20 minutes"
    ]
