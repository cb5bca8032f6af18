"""Hosts that an operator has to let in."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from overmesh import rpc
from overmesh.controller.daemon import running
from overmesh.controller.join import Admission
from overmesh.controller.members import pending as pending_module
from overmesh.controller.members.pending import APPROVED, DENIED, GOOD_FOR, KEPT_AFTER_EXPIRY
from overmesh.controller.store import keys
from overmesh.controller.store.base import Put
from overmesh.errors import (
    ApprovalPendingError,
    CloneError,
    InvalidError,
    NameTakenError,
    NotFoundError,
    PoolExhaustedError,
    TokenError,
)
from overmesh.proto import admin_pb2
from overmesh.token import JoinToken
from tests.unit.controller.lab import Host, Mesh, client, config, mesh
from tests.unit.controller.test_on_etcd import in_step, target, two_controllers  # noqa: F401
from tests.unit.controller.test_watch import World


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with mesh(tmp_path) as here:
        yield here


async def asking(lab: Mesh, *, uses: int = 1, tags: tuple[str, ...] = ()) -> JoinToken:
    return (await lab.tokens.create("mesh", 3600, uses, tags, approval=True))[1]


async def join(lab: Mesh, host: Host, token: JoinToken, **other: Any) -> Admission:
    return await lab.joins.join(host.application(token, **other))


async def waits(lab: Mesh, host: Host, token: JoinToken, **other: Any) -> ApprovalPendingError:
    with pytest.raises(ApprovalPendingError) as raised:
        await join(lab, host, token, **other)
    return raised.value


def states(lab: Mesh) -> list[tuple[str, str]]:
    return [(host.name, host.state(lab.clock.now)) for host in lab.pending.known("mesh")]


def uses_left(lab: Mesh) -> int:
    return lab.tokens.known()[0].uses_left


async def test_from_waiting_to_member(lab: Mesh) -> None:
    host, token = Host("a"), await asking(lab, uses=2, tags=("rack:7",))
    error = await waits(lab, host, token)
    assert error.cause == f"a ({host.id}) waits for approval"
    assert error.fix == "on a controller: meshctl node approve a"
    assert (states(lab), uses_left(lab)) == ([("a", "waiting")], 1)
    assert not lab.addresses()
    assert not lab.mirror.held("names", "mesh")

    await waits(lab, host, token)  # Ctrl-C, and again
    assert (states(lab), uses_left(lab)) == ([("a", "waiting")], 1)

    await lab.pending.decide("mesh", "a", APPROVED)
    admission = await join(lab, host, token)
    assert (admission.node_id, admission.already_member) == (host.id, False)
    assert (states(lab), uses_left(lab)) == ([], 1)
    node = lab.mirror.view("mesh").node(host.id)
    assert node
    assert node.tags == ("rack:7",)
    for named in ("A", host.id):
        with pytest.raises(NotFoundError, match="does not wait for approval: it is a member") as raised:
            await lab.pending.decide("mesh", named, APPROVED)
        assert raised.value.fix == f"to take it out: `meshctl node remove {named}`"
    assert (await join(lab, host, token)).already_member


async def test_one_use_is_one_host_that_waits(lab: Mesh) -> None:
    token = await asking(lab)
    await waits(lab, Host("a"), token)
    with pytest.raises(TokenError, match="used up"):
        await join(lab, Host("b"), token)
    await lab.pending.decide("mesh", "a", DENIED)
    with pytest.raises(TokenError, match="used up"):
        await join(lab, Host("b"), token)


async def test_an_approved_host_needs_no_token_that_is_still_good(lab: Mesh) -> None:
    host, token = Host("a"), await asking(lab)
    await waits(lab, host, token)
    await lab.pending.decide("mesh", host.id, APPROVED)
    lab.clock.now += 4000  # the token has expired, and is used up
    assert not (await join(lab, host, token)).already_member


async def test_revoking_the_token_ends_the_waiting(lab: Mesh) -> None:
    host, token = Host("a"), await asking(lab)
    await waits(lab, host, token)
    await lab.pending.decide("mesh", "a", APPROVED)
    await lab.tokens.revoke(token.id)
    with pytest.raises(TokenError, match="revoked"):
        await join(lab, host, token)


async def test_denied(lab: Mesh) -> None:
    host, token = Host("a"), await asking(lab, uses=0)
    await waits(lab, host, token)
    await lab.pending.decide("mesh", "a", DENIED)
    for name in ("a", "b"):
        with pytest.raises(TokenError, match="controller has denied a"):
            await join(lab, host, token, name=name)
    await lab.pending.decide("mesh", "a", APPROVED)  # on second thoughts
    await join(lab, host, token)


@pytest.mark.parametrize(
    ("decision", "words"), [("", "nobody has approved a"), (APPROVED, "the approval of a")]
)
async def test_time_passes(lab: Mesh, decision: str, words: str) -> None:
    host, token = Host("a"), (await lab.tokens.create("mesh", 10**6, 0, (), approval=True))[1]
    await waits(lab, host, token)
    if decision:
        await lab.pending.decide("mesh", "a", decision)
    lab.clock.now += GOOD_FOR
    with pytest.raises(TokenError, match=words):
        await join(lab, host, token)
    with pytest.raises(TokenError, match="waited for too long"):
        await lab.pending.decide("mesh", "a", APPROVED)
    await waits(lab, host, await asking(lab))
    await lab.pending.decide("mesh", "a", APPROVED)
    await join(lab, host, token)


async def test_an_approval_is_for_one_name_on_one_machine(lab: Mesh) -> None:
    host, token = Host("a"), await asking(lab)
    for said in ({"name": "b"}, {"host_id": "another machine"}):
        await waits(lab, host, token)
        await lab.pending.decide("mesh", host.id, APPROVED)
        await waits(lab, host, token, **said)
        assert states(lab)[0][1] == "waiting"
    assert uses_left(lab) == 0


async def test_the_key_of_another_that_waits(lab: Mesh) -> None:
    host, token = Host("a"), await asking(lab, uses=0)
    await waits(lab, host, token)
    with pytest.raises(CloneError, match="waits with another TLS key"):
        await join(lab, Host("a", public_key=host.public_key), token)


async def test_what_would_be_in_vain_is_said_at_once(lab: Mesh) -> None:
    await lab.joined("a")
    with pytest.raises(NameTakenError):
        await join(lab, Host("a"), await asking(lab))


async def test_a_token_that_asks_for_none_lets_a_waiting_host_in(lab: Mesh) -> None:
    host = Host("a")
    await waits(lab, host, await asking(lab))
    await join(lab, host, await lab.token())
    assert states(lab) == []


async def test_no_more_than_so_many(lab: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_module, "MAX_PENDING", 2)
    token = await asking(lab, uses=0)
    for name in ("a", "b"):
        await waits(lab, Host(name), token)
    with pytest.raises(PoolExhaustedError, match="2 hosts wait"):
        await join(lab, Host("c"), token)


async def test_they_are_forgotten_in_time(lab: Mesh) -> None:
    await waits(lab, Host("a"), await asking(lab))
    await lab.pending.sweep()
    assert states(lab) == [("a", "waiting")]
    lab.clock.now += GOOD_FOR + KEPT_AFTER_EXPIRY + 1
    await lab.pending.sweep()
    assert states(lab) == []


async def test_whom(lab: Mesh) -> None:
    with pytest.raises(NotFoundError, match="no host 'a' waits"):
        await lab.pending.decide("mesh", "a", APPROVED)
    token, hosts = await asking(lab, uses=0), [Host("a"), Host("a")]
    for host in hosts:
        await waits(lab, host, token)
    with pytest.raises(InvalidError, match="several hosts wait as a") as raised:
        await lab.pending.decide("mesh", "a", APPROVED)
    assert all(host.id in raised.value.cause for host in hosts)
    await lab.pending.decide("mesh", hosts[0].id, DENIED)
    approved, _ = await lab.pending.decide("mesh", "a", APPROVED)
    assert approved.id == hosts[1].id


async def test_who_can_write_to_the_store_can_not_approve(lab: Mesh) -> None:
    host, token = Host("a"), await asking(lab)
    await waits(lab, host, token)
    kv = lab.mirror.key(keys.pending("mesh", host.id))
    assert kv
    forged = kv.value.replace(b'"decision":"waiting"', b'"decision":"approved"')
    assert forged != kv.value
    result = await lab.store.txn([], [Put(kv.key, forged)])
    await lab.mirror.reached(result.revision)
    with pytest.raises(TokenError, match="used up"):
        await join(lab, host, token)
    assert states(lab) == []


# Over gRPC.


@asynccontextmanager
async def a_world(path: Path) -> AsyncIterator[World]:
    settings = config(path)
    async with running(settings) as controller, client(settings, controller) as talking:
        yield World(controller, talking)


async def pending(here: Any) -> list[admin_pb2.Pending]:
    return list((await here.admin.ListPending(admin_pb2.ListPendingRequest())).pending)


async def test_a_join_is_held_until_somebody_decides(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        here, host = world.client, Host("a")
        token = await here.token(approval=True, uses=1)
        request = host.request(token)
        request.wait_seconds = 20
        joining = asyncio.ensure_future(here.join.Join(request))
        async with asyncio.timeout(5):
            while not (waiting := await pending(here)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (waiting[0].name, waiting[0].state, waiting[0].token) == ("a", "waiting", token.id)
        assert getattr(waiting[0], "from") == "127.0.0.1"
        metadata = ((rpc.REQUEST_ID, rpc.request_id()), (rpc.OPERATOR, "al"))
        decide = admin_pb2.DecideRequest(node="a")
        reply = await here.admin.ApproveNode(decide, metadata=metadata)
        assert (reply.pending.state, reply.pending.decided_by) == ("approved", "operator al")
        assert (await joining).node_id == host.id
        again = await here.admin.ApproveNode(decide, metadata=metadata)
        assert (again.revision, again.pending.id) == (reply.revision, host.id)


async def test_a_join_that_does_not_wait_is_told_at_once(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        token = await world.client.token(approval=True)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await world.client.join.Join(Host("a").request(token))
        assert isinstance(rpc.raised(raised.value, "x"), ApprovalPendingError)


async def test_one_use_is_one_host_that_waits_at_two_controllers(
    target: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    async with two_controllers(target, tmp_path) as [(first, one), (second, two)]:
        for number in range(5):
            token = await one.token(approval=True, uses=1)
            await in_step(first, second)
            requests = [Host(f"{name}{number}").request(token) for name in "ab"]
            asked = [here.join.Join(request) for here, request in zip((one, two), requests, strict=True)]
            refused = await asyncio.gather(*asked, return_exceptions=True)
            errors = {type(rpc.raised(error, "x")) for error in refused}  # type: ignore[arg-type]
            assert errors == {ApprovalPendingError, TokenError}
            await in_step(first, second)
            assert len(await pending(two)) == number + 1


async def test_another_controller_decides(target: str, tmp_path: Path) -> None:  # noqa: F811
    async with two_controllers(target, tmp_path) as [(first, one), (second, two)]:
        host, token = Host("a"), await one.token(approval=True)
        await in_step(first, second)
        request = host.request(token)
        request.wait_seconds = 20
        joining = asyncio.ensure_future(one.join.Join(request))
        async with asyncio.timeout(5):
            while not await pending(two):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await two.admin.ApproveNode(admin_pb2.DecideRequest(node="a"))
        assert (await joining).node_id == host.id
