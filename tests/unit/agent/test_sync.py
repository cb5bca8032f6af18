import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import grpc
import grpc.aio
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from overmesh import trace
from overmesh.agent import sync as syncs
from overmesh.agent.calls import leave
from overmesh.agent.pace import AckLimiter, Backoff
from overmesh.agent.peermap import Held, Replica
from overmesh.agent.reporting import Facts
from overmesh.agent.state import Identity
from overmesh.agent.sync import Sync
from overmesh.config import AgentConfig
from overmesh.controller.daemon import running
from overmesh.controller.membership import Membership, Signer
from overmesh.controller.trust.certificates import ServerCertificates
from overmesh.errors import StateError, UnreachableError
from overmesh.model import Endpoint, Problem
from overmesh.proto import admin_pb2, mesh_pb2, mesh_pb2_grpc
from tests.unit.agent.conftest import Mesh, host, joined, state

FACTS = Facts((Endpoint(ip_address("192.0.2.7"), 6081),), "tun", "because", 1420, 2)


class Member:
    """A host with its replica and its Sync, without an interface or a fastpath."""

    def __init__(self, config: AgentConfig, held: Held | None = None, host_id: str = "") -> None:
        self.config = config
        self.state = state(config)
        self.identity = self.state.identity()
        mine = self.identity.membership
        self.replica = Replica(self.identity.roots, mine.network, mine.node_id, mine.node, held)
        self.sync = Sync(self.identity, host_id or config.host_id, self.replica, self.state, self.apply)
        self.applied: list[int] = []
        self.kept: list[int] = []
        self.problems: tuple[Problem, ...] = ()

    async def apply(self) -> Sequence[Problem]:
        self.applied.append(self.replica.revision)
        self.kept.append(self.state.map().revision)
        return (*self.replica.view(0).problems, *self.problems)

    @property
    def peers(self) -> list[str]:
        return [peer.node.name for peer in self.replica.view(0).map.peers]


@asynccontextmanager
async def following(*members: Member) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(member.sync.run()) for member in members]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def listed(mesh: Mesh, name: str) -> Any:
    """Return what the controller knows of a node."""
    request = admin_pb2.ListNodesRequest(network="mesh", node=name)
    return (await mesh.admin("ListNodes", request)).nodes[0]


async def until_listed(mesh: Mesh, name: str, at: Sequence[str] = (), **wanted: object) -> Any:
    """Wait until the controller knows this of a node, and that it is at these addresses; return all."""
    async with asyncio.timeout(20):
        while True:
            node = await listed(mesh, name)
            if all(getattr(node, field) == value for field, value in wanted.items()) and (
                not at or [one.address for one in node.endpoints] == at
            ):
                return node
            await asyncio.sleep(0.02)


async def in_step(mesh: Mesh, name: str) -> None:
    await until_listed(mesh, name, in_step=True)


# With a controller.


async def test_the_map_is_applied_kept_and_acked(mesh: Mesh, tmp_path: Path) -> None:
    config = host(tmp_path, "a")
    await joined(mesh, config)
    member = Member(config)
    async with following(member):
        await in_step(mesh, "a")
        assert member.state.map() == member.replica.held()
        assert (member.applied[-1], member.kept[0]) == (member.replica.revision, 0), "applied, then kept"
        assert member.sync.contact.connected
        assert member.sync.contact.confirmed > 0


async def test_a_trace_leads_from_a_join_to_the_ack_of_another_host(mesh: Mesh, tmp_path: Path) -> None:
    await joined(mesh, host(tmp_path, "a"))
    spans = InMemorySpanExporter()
    with trace.tracing("http://127.0.0.1:4318", "test", spans):
        async with following(Member(host(tmp_path, "a"))):
            await in_step(mesh, "a")
            with trace.span("join"):
                await joined(mesh, host(tmp_path, "b"))
            await in_step(mesh, "a")
    found = spans.get_finished_spans()
    (join,) = (span for span in found if span.name == "join")
    way = [span for span in found if span.context.trace_id == join.context.trace_id]
    by_id = {span.context.span_id: span for span in way}
    ack = next(span for span in way if span.name == "ack")
    assert dict(ack.attributes or {}) == {"network": "mesh", "node": "a", "id": (await listed(mesh, "a")).id}
    upward = [ack.name]
    while ack.parent:
        ack = by_id[ack.parent.span_id]
        upward.append(ack.name)
    assert upward == ["ack", "apply", "/overmesh.mesh.v1.Join/Join", "join"]
    assert "store txn" in {span.name for span in way}


async def test_who_joins_is_seen_and_who_is_removed_is_gone(mesh: Mesh, tmp_path: Path) -> None:
    await joined(mesh, host(tmp_path, "a"))
    member = Member(host(tmp_path, "a"))
    async with following(member):
        await until(lambda: member.replica.revision > 0)
        await joined(mesh, host(tmp_path, "b"))
        await until(lambda: member.peers == ["b"])
        await mesh.remove("b")
        await until(lambda: member.peers == [])
        await in_step(mesh, "a")


async def test_what_could_not_be_done_is_told(mesh: Mesh, tmp_path: Path) -> None:
    config = host(tmp_path, "a")
    await joined(mesh, config)
    member = Member(config)
    member.problems = (Problem("route 10.0.0.0/8", "in the way"),)
    async with following(member):
        await in_step(mesh, "a")
        [problem] = (await listed(mesh, "a")).problems
        assert (problem.subject, problem.reason) == ("route 10.0.0.0/8", "in the way")


async def test_a_map_that_can_not_be_kept_is_still_followed_and_told(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = host(tmp_path, "a")
    await joined(mesh, config)
    member = Member(config)

    def full(_: Held) -> None:
        raise StateError("map.json can't be written: No space left on device")

    monkeypatch.setattr(member.state, "save_map", full)
    async with following(member):
        await in_step(mesh, "a")
        [problem] = (await listed(mesh, "a")).problems
        assert (problem.subject, "No space left" in problem.reason) == ("state", True)


async def test_facts_that_are_refused_are_a_problem_and_the_stream_stays(mesh: Mesh, tmp_path: Path) -> None:
    config = host(tmp_path, "a")
    await joined(mesh, config)
    member = Member(config)
    unreachable = Endpoint(ip_address("127.0.0.1"), 6081)
    async with following(member):
        member.sync.report(replace(FACTS, endpoints=(unreachable,)))
        await until(lambda: bool(member.sync.problems))
        [problem] = member.sync.problems
        assert (problem.subject, "127.0.0.1" in problem.reason) == ("report", True)
        await joined(mesh, host(tmp_path, "b"))
        await until(lambda: member.peers == ["b"])
        assert member.sync.contact.connected
        member.sync.report(FACTS)
        await until_listed(mesh, "a", mtu=1420)
        await until(lambda: member.sync.problems == ())


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[mesh_pb2.ReportRequest]:
    """Return what is said by Report, as it comes."""
    said: list[mesh_pb2.ReportRequest] = []
    send = Sync._send

    async def noted(self: Sync, request: mesh_pb2.ReportRequest, *there: Any) -> None:
        said.append(request)
        await send(self, request, *there)

    monkeypatch.setattr(Sync, "_send", noted)
    return said


async def test_where_a_host_has_joined_it_need_not_report(
    mesh: Mesh, tmp_path: Path, reports: list[mesh_pb2.ReportRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AckLimiter, "take", lambda _self, _now: 0.0)
    config = replace(host(tmp_path, "a"), endpoints=("192.0.2.7:6081",), lanes=2)
    await joined(mesh, config)
    member = Member(config)
    async with following(member):
        await in_step(mesh, "a")
        member.sync.report(FACTS)
        node = await until_listed(mesh, "a", mtu=1420)
        assert (node.backend, node.backend_reason, node.lanes) == ("tun", "because", 2)
    again = Member(config, member.state.map())
    again.sync.report(replace(FACTS, mtu=1300))
    async with following(again):
        await until_listed(mesh, "a", mtu=1300)
    assert reports == []


async def test_what_the_map_says_wrong_of_where_a_host_is_is_put_right(
    mesh: Mesh, tmp_path: Path, reports: list[mesh_pb2.ReportRequest]
) -> None:
    config = replace(host(tmp_path, "a"), endpoints=("192.0.2.7:6081",), lanes=2)
    await joined(mesh, config)
    member = Member(config)
    member.sync.report(FACTS)
    async with following(member):
        await in_step(mesh, "a")
        elsewhere = Endpoint(ip_address("192.0.2.66"), 6081)
        node = member.identity.membership.node_id
        signer = Signer(mesh.controller.root, time.time)
        await Membership(mesh.controller.mirror, signer).report("mesh", node, [elsewhere], 2)
        await until(lambda: len(reports) == 1)
        await until(lambda: bool(member.replica.place and member.replica.place.endpoints == FACTS.endpoints))


async def test_facts_are_reported_and_again_when_they_change(mesh: Mesh, tmp_path: Path) -> None:
    config = host(tmp_path, "a")
    await joined(mesh, config)
    member = Member(config)
    async with following(member):
        member.sync.report(FACTS)
        node = await until_listed(mesh, "a", mtu=1420)
        assert (node.backend, node.backend_reason) == ("tun", "because")
        await until(lambda: bool(member.replica.place and member.replica.place.endpoints == FACTS.endpoints))
        member.sync.report(replace(FACTS, mtu=1400))
        await until_listed(mesh, "a", mtu=1400)


async def test_a_controller_that_was_away_is_found_again_and_the_map_resumed(
    mesh: Mesh, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = host(tmp_path, "a")
    own = replace(mesh.config, state_dir=tmp_path / "own", runtime_dir=tmp_path / "own-run")
    caplog.set_level(logging.INFO)
    async with AsyncExitStack() as stack:
        async with running(own) as controller:
            port = controller.listening.mesh_port
            await joined(Mesh(own, controller), config)
            member = Member(config)
            await stack.enter_async_context(following(member))
            await until(lambda: member.sync.contact.connected and member.replica.revision > 0)
            held = member.replica.revision
        await until(lambda: not member.sync.contact.connected)
        assert member.sync.contact.error
        assert (member.replica.revision, member.state.map().revision) == (held, held)
        async with running(replace(own, mesh_port=port)) as controller:
            await in_step(Mesh(own, controller), "a")
    connects = [vars(record)["revision"] for record in caplog.records if record.message == "agent connected"]
    assert connects == [0, held]


async def test_a_removed_node_drops_its_peers_and_says_so(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncs, "REMOVED_DELAY", 0.1)
    for name in "ab":
        await joined(mesh, host(tmp_path, name))
    member = Member(host(tmp_path, "a"))
    async with following(member):
        await until(lambda: member.peers == ["b"])
        await mesh.remove("a")
        await until(lambda: member.sync.contact.removed and member.state.map().revision == 0)
        assert (member.peers, member.applied[-1]) == ([], 0)
        await joined(mesh, host(tmp_path, "a"))
        await until(lambda: not member.sync.contact.removed and member.peers == ["b"])


async def test_an_end_is_the_end_though_a_call_fails_on_being_ended(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail_when_cancelled(_stub: Any, _address: str) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise UnreachableError("the channel is closed") from None

    await joined(mesh, host(tmp_path, "a"))
    member = Member(host(tmp_path, "a"))
    monkeypatch.setattr(member.sync, "_send_reports", fail_when_cancelled)
    task = asyncio.create_task(member.sync.run())
    await until(lambda: member.sync.contact.connected)
    task.cancel()
    await asyncio.wait({task}, timeout=2)
    assert task.cancelled()


async def test_an_end_is_the_end_though_a_message_comes_just_then(mesh: Mesh, tmp_path: Path) -> None:
    await joined(mesh, host(tmp_path, "a"))
    messages: asyncio.Queue[mesh_pb2.WatchReply] = asyncio.Queue()
    stream = SimpleNamespace(write=AsyncMock(), read=messages.get)
    task = asyncio.create_task(Member(host(tmp_path, "a")).sync._receive(stream))
    await until(lambda: stream.write.called)
    messages.put_nowait(mesh_pb2.WatchReply(heartbeat=mesh_pb2.Heartbeat(revision=1)))
    task.cancel()
    await asyncio.wait({task}, timeout=2)
    assert task.cancelled()


async def test_a_clone_is_told_what_it_is(mesh: Mesh, tmp_path: Path) -> None:
    config = host(tmp_path, "a")
    await joined(mesh, config)
    first, clone = Member(config), Member(config, host_id="another machine")
    first.sync.report(FACTS)
    clone.sync.report(replace(FACTS, endpoints=(Endpoint(ip_address("192.0.2.66"), 6081),), mtu=1300))
    async with following(first):
        await until_listed(mesh, "a", at=["192.0.2.7"], mtu=FACTS.mtu)
        assert (first.sync.contact.copied, clone.sync.contact.copied) == (False, True), "before it has asked"
        async with following(clone):
            await until(lambda: "another host is connected as this node" in clone.sync.contact.error)
        assert first.sync.contact.connected
        assert clone.sync.contact.copied
        node = await listed(mesh, "a")
        assert (node.mtu, [one.address for one in node.endpoints]) == (FACTS.mtu, ["192.0.2.7"])


async def test_the_original_that_finds_its_copy_connected_stays_out_of_the_way(
    mesh: Mesh, tmp_path: Path
) -> None:
    config = host(tmp_path, "a")
    await joined(mesh, config)
    original, clone = Member(config), Member(config, host_id="another machine")
    async with following(clone):
        await until(lambda: clone.sync.contact.connected)
        async with following(original):
            await until(lambda: original.sync.contact.copied)
            assert original.applied == [0], "and the host was told so"


async def test_a_machine_that_a_controller_takes_is_the_node_from_then_on(mesh: Mesh, tmp_path: Path) -> None:
    """As when the machine id was made anew."""
    config = host(tmp_path, "a")
    await joined(mesh, config)
    moved = Member(config, host_id="another machine")
    assert moved.sync.contact.copied
    async with following(moved):
        await until(lambda: not moved.sync.contact.copied and bool(moved.applied))
    assert moved.state.identity().membership.host_id == "another machine"
    assert not Member(config, host_id="another machine").sync.contact.copied


@pytest.mark.parametrize("revision", [1, 10**9])
async def test_a_replica_that_went_astray_gets_the_whole_map(
    mesh: Mesh, tmp_path: Path, revision: int
) -> None:
    config = host(tmp_path, "a")
    await joined(mesh, config)
    member = Member(config, Held(revision, revision, {"node/zz": b"what is this"}))
    async with following(member):
        await in_step(mesh, "a")
        assert "node/zz" not in member.replica.held().items


async def test_leaving_is_told_and_known_to_have_been_told(mesh: Mesh, tmp_path: Path) -> None:
    config = host(tmp_path, "a")
    await joined(mesh, config)
    identity = state(config).identity()
    await leave(identity, "a")
    assert await mesh.nodes() == []
    await leave(identity, "a")


async def test_leaving_without_a_controller_is_an_error(mesh: Mesh, tmp_path: Path) -> None:
    config = host(tmp_path, "a")
    await joined(mesh, config)
    identity = state(config).identity()
    away = replace(identity, membership=replace(identity.membership, controllers=("127.0.0.1:1",)))
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1 does not answer: Connection refused"):
        await leave(away, "a")


# With a controller that misbehaves.


@asynccontextmanager
async def instead(
    mesh: Mesh, identity: Identity, say: Sequence[mesh_pb2.WatchReply]
) -> AsyncIterator[Identity]:
    """Run a mesh port that says this and then nothing; give the identity that goes there."""

    class Says(mesh_pb2_grpc.MeshServicer):
        async def Watch(  # noqa: N802
            self, requests: object, context: object
        ) -> AsyncIterator[mesh_pb2.WatchReply]:
            for reply in say:
                yield reply
            await asyncio.Event().wait()

    certificates = ServerCertificates(mesh.controller.root, lambda: mesh.controller.root.anchor, [])
    server = grpc.aio.server()
    mesh_pb2_grpc.add_MeshServicer_to_server(Says(), server)  # type: ignore[no-untyped-call]
    port = server.add_secure_port("127.0.0.1:0", certificates.credentials(mutual=True))
    await server.start()
    try:
        yield replace(identity, membership=replace(identity.membership, controllers=(f"127.0.0.1:{port}",)))
    finally:
        await server.stop(0)


async def end_of(member: Member, mesh: Mesh, say: Sequence[mesh_pb2.WatchReply]) -> str:
    """Return why the member gave up on a controller that says this."""
    async with instead(mesh, member.identity, say) as identity:
        member.sync.identity = identity
        async with following(member):
            await until(lambda: bool(member.sync.contact.error))
    return member.sync.contact.error


async def test_a_silent_stream_is_given_up(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncs, "SILENCE", 0.2)
    await joined(mesh, host(tmp_path, "a"))
    assert await end_of(Member(host(tmp_path, "a")), mesh, []) == "the controller was silent for 0 s"


async def test_a_stream_that_is_alive_but_stale_is_given_up(mesh: Mesh, tmp_path: Path) -> None:
    await joined(mesh, host(tmp_path, "a"))
    newer = mesh_pb2.WatchReply(heartbeat=mesh_pb2.Heartbeat(revision=9, digest=b"newer"))
    reason = await end_of(Member(host(tmp_path, "a")), mesh, [newer] * (syncs.PATIENCE + 1))
    assert reason == "the map at revision 0 can't be brought up to date"


async def test_a_delta_from_elsewhere_starts_the_stream_anew(mesh: Mesh, tmp_path: Path) -> None:
    await joined(mesh, host(tmp_path, "a"))
    elsewhere = mesh_pb2.WatchReply(delta=mesh_pb2.Delta(from_revision=5, to_revision=6))
    reason = await end_of(Member(host(tmp_path, "a")), mesh, [elsewhere])
    assert reason == "the map at revision 0 can't be brought up to date"


# The rules, with a clock that is turned by hand.


def test_acks_go_at_once_after_a_quiet_time_then_one_a_second() -> None:
    limiter = AckLimiter(rate=1.0, burst=3)
    assert [limiter.take(100.0) for _ in range(5)] == [0, 0, 0, 1, 2]
    assert limiter.take(102.5) == 0.5
    assert limiter.take(200.0) == 0


def test_retries_wait_ever_longer_until_one_works() -> None:
    backoff = Backoff(random=lambda: 1.0)
    delays = []
    for _ in range(9):
        delays.append(backoff.delay())
        backoff.grow()
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    backoff.reset()
    assert backoff.delay() == 0.5


def test_retries_of_many_agents_are_spread() -> None:
    assert Backoff(random=lambda: 0.0).delay() == 0
    assert len({Backoff().delay() for _ in range(10)}) > 1
