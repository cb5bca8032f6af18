import asyncio
import datetime
import hashlib
import ipaddress
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from overmesh.agent import join as joins
from overmesh.agent import joinport
from overmesh.agent.host import Route
from overmesh.agent.join import join
from overmesh.agent.joinport import Target
from overmesh.agent.netlink import Netlink
from overmesh.config import AgentConfig
from overmesh.controller.trust import CertificateRequest, Identity, MeshRoot
from overmesh.controller.trust.certificates import ServerCertificates
from overmesh.controller.trust.rootkey import RootKey
from overmesh.errors import (
    ApprovalPendingError,
    MeshError,
    NameTakenError,
    OvermeshError,
    PinMismatchError,
    RangeCollisionError,
    StateError,
    TokenError,
    UnreachableError,
    UsageError,
)
from overmesh.model import Mode, Suite
from overmesh.proto import admin_pb2, mesh_pb2, mesh_pb2_grpc
from overmesh.token import JoinToken
from tests.unit.agent.conftest import RANGES, Mesh, host, joined, state
from tests.unit.controller.lab import Host


async def steps(config: AgentConfig, where: str, token: str, name: str = "web1") -> list[str]:
    """Join; return the names of the steps."""
    done: list[str] = []
    await join(config, where, token, name, lambda step, _: done.append(step))
    return done


async def refused(
    config: AgentConfig, where: str, token: str, name: str = "web1"
) -> tuple[OvermeshError, list[str]]:
    """Fail to join; return why, and the steps that were done. Nothing may be left behind."""
    done: list[str] = []
    with pytest.raises(OvermeshError) as raised:
        await join(config, where, token, name, lambda step, _: done.append(step))
    assert not config.state_dir.exists()
    assert raised.value.fix
    return raised.value, done


# It works.


async def waiting(config: AgentConfig, mesh: Mesh, token: str) -> "asyncio.Task[list[str]]":
    """Return a join that waits for an operator."""
    said = asyncio.Event()
    done: list[str] = []

    def step(name: str, _: str) -> None:
        done.append(name)
        if name == "waiting":
            said.set()

    async def joining() -> list[str]:
        await join(config, mesh.join_port, token, "web1", step)
        return done

    task = asyncio.create_task(joining())
    async with asyncio.timeout(10):
        await said.wait()
    return task


async def test_a_host_that_an_operator_has_to_let_in(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joins, "_PAUSE", 0.05)
    config, token = host(tmp_path, "a"), await mesh.token(1, approval=True)
    with pytest.raises(ApprovalPendingError, match=r"web1 \(\w{16}\) waits for approval") as raised:
        await join(config, mesh.join_port, token, "web1", lambda *_: None, wait=False)
    assert raised.value.fix == "on a controller: meshctl node approve web1"
    key = state(config).keys()
    assert key

    interrupted = await waiting(config, mesh, token)
    interrupted.cancel()
    await asyncio.wait({interrupted})
    joining = await waiting(config, mesh, token)
    await mesh.admin("ApproveNode", admin_pb2.DecideRequest(node="web1"))
    assert await joining == ["host", "reach", "tls", "waiting", "approval", "token", "address", "state"]
    assert state(config).identity().keys.public == key.public


async def test_a_host_that_is_denied_forgets_its_keys(mesh: Mesh, tmp_path: Path) -> None:
    config, token = host(tmp_path, "a"), await mesh.token(approval=True)
    joining = asyncio.create_task(refused(config, mesh.join_port, token))
    await asyncio.sleep(0.5)
    await mesh.admin("DenyNode", admin_pb2.DecideRequest(node="web1"))
    error, done = await joining
    assert isinstance(error, TokenError)
    assert "has denied web1" in error.cause
    assert done[-1] == "waiting"


async def test_a_host_becomes_a_member(mesh: Mesh, tmp_path: Path) -> None:
    config = host(tmp_path, "a")
    assert await steps(config, mesh.join_port, await mesh.token()) == [
        "host",
        "reach",
        "tls",
        "token",
        "address",
        "state",
    ]
    identity = state(config).identity()
    assert (identity.membership.name, identity.membership.network_name) == ("web1", "mesh")
    assert identity.membership.controllers == (f"127.0.0.1:{mesh.controller.listening.mesh_port}",)
    assert await mesh.nodes() == ["web1"]


async def test_what_the_controller_learns_of_a_host(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joins, "suites", lambda: (Suite.CHACHA, Suite.AES))
    config = replace(host(tmp_path, "a"), endpoints=("192.0.2.7", "192.0.2.7:7000"))
    told = await joined(mesh, config)
    assert told.mode is Mode.SEALED
    [node] = (await mesh.admin("ListNodes", admin_pb2.ListNodesRequest(network="mesh"))).nodes
    assert [(end.address, end.port) for end in node.endpoints] == [("192.0.2.7", 51820), ("192.0.2.7", 7000)]
    assert list(node.suites) == [mesh_pb2.SUITE_CHACHA, mesh_pb2.SUITE_AES]


async def test_the_address_that_worked_is_followed_first(mesh: Mesh, tmp_path: Path) -> None:
    config = host(tmp_path, "a")
    there = str(mesh.join_port).replace("127.0.0.1", "localhost")
    await steps(config, there, await mesh.token())
    port = mesh.controller.listening.mesh_port
    assert state(config).identity().membership.controllers == (f"localhost:{port}", f"127.0.0.1:{port}")


async def test_joining_again_gives_the_same_node(mesh: Mesh, tmp_path: Path) -> None:
    config = host(tmp_path, "a")
    first = await joined(mesh, config)
    again = await joined(mesh, config)
    assert (first.already_member, again.already_member) == (False, True)
    assert (again.node_id, again.addresses) == (first.node_id, first.addresses)


async def test_a_host_whose_agent_runs_is_told_what_it_is(mesh: Mesh, tmp_path: Path) -> None:
    config = host(tmp_path, "a")
    first = await joined(mesh, config)
    with state(config).locked():
        again = await joined(mesh, config)
    assert (again.node_id, again.addresses, again.already_member) == (first.node_id, first.addresses, True)


async def test_the_name_is_the_hosts_when_none_is_wanted(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Web_7.example.org")
    await steps(host(tmp_path, "a"), mesh.join_port, await mesh.token(), name="")
    assert await mesh.nodes() == ["web-7"]


# The controller says no.


async def test_a_used_token(mesh: Mesh, tmp_path: Path) -> None:
    token = await mesh.token(uses=1)
    await steps(host(tmp_path, "a"), mesh.join_port, token, "a")
    error, done = await refused(host(tmp_path, "b"), mesh.join_port, token, "b")
    assert isinstance(error, TokenError)
    assert done == ["host", "reach", "tls"]


async def test_a_name_that_is_taken(mesh: Mesh, tmp_path: Path) -> None:
    await joined(mesh, host(tmp_path, "a"))
    error, _ = await refused(host(tmp_path, "b"), mesh.join_port, await mesh.token(), "a")
    assert isinstance(error, NameTakenError)


# Whom not to trust.


async def test_a_token_of_another_mesh(mesh: Mesh, tmp_path: Path) -> None:
    other = JoinToken.new(MeshRoot.new().public_key)
    error, done = await refused(host(tmp_path, "a"), mesh.join_port, str(other))
    assert isinstance(error, PinMismatchError)
    assert "does not hold the mesh root that the token pins" in error.cause
    assert done == ["host"]


@asynccontextmanager
async def impostor(chain: bytes, key: bytes) -> AsyncIterator[tuple[str, list[mesh_pb2.JoinRequest]]]:
    """Run a join port that shows this chain; give its address and what it was told."""
    told: list[mesh_pb2.JoinRequest] = []

    class Listens(mesh_pb2_grpc.JoinServicer):
        async def Join(self, request: mesh_pb2.JoinRequest, context: object) -> mesh_pb2.JoinReply:  # noqa: N802
            told.append(request)
            return mesh_pb2.JoinReply()

    server = grpc.aio.server()
    mesh_pb2_grpc.add_JoinServicer_to_server(Listens(), server)  # type: ignore[no-untyped-call]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
    await server.start()
    try:
        yield f"127.0.0.1:{port}", told
    finally:
        await server.stop(0)


async def test_a_man_in_the_middle_who_shows_the_root_does_not_get_the_secret(tmp_path: Path) -> None:
    root, key = MeshRoot.new(), generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "controller.overmesh")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    leaf = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("controller.overmesh")]), critical=False)
        .sign(key, SHA256())
    )
    chain = leaf.public_bytes(Encoding.PEM) + root.pem
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    async with impostor(chain, pem) as (where, told):
        error, done = await refused(host(tmp_path, "a"), where, str(JoinToken.new(root.public_key)))
    assert isinstance(error, PinMismatchError)
    assert "shows the mesh root that the token pins, but holds no controller's certificate" in error.cause
    assert (done, told) == (["host"], [])


async def test_a_certificate_of_the_root_for_something_else_does_not_get_the_secret(tmp_path: Path) -> None:
    """A member has one too: it must not pass for the controller."""
    root, member = MeshRoot.new(), Host("mallory")
    leaf = root.issue_node(CertificateRequest.parse(member.csr()), Identity("mesh", member.id))
    chain = x509.load_der_x509_certificate(leaf).public_bytes(Encoding.PEM) + root.pem
    pem = member.tls.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    async with impostor(chain, pem) as (where, told):
        error, done = await refused(host(tmp_path, "a"), where, str(JoinToken.new(root.public_key)))
    assert isinstance(error, PinMismatchError)
    assert (done, told) == (["host"], [])


@pytest.mark.parametrize(("hours", "said"), [(-72, "has run out"), (72, "not yet valid")])
async def test_clocks_that_are_too_far_apart_are_named(tmp_path: Path, hours: int, said: str) -> None:
    root = MeshRoot(RootKey.new(), clock=lambda: time.time() + hours * 3600)
    shown = root.issue_server([])
    async with impostor(shown.chain, shown.key) as (where, told):
        error, _ = await refused(host(tmp_path, "a"), where, str(JoinToken.new(root.public_key)))
    assert isinstance(error, UnreachableError)
    assert said in error.cause
    assert told == []


# Nobody there, or something else.


async def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        error, done = await refused(host(tmp_path, "a"), where, str(JoinToken.new(MeshRoot.new().public_key)))
    assert isinstance(error, UnreachableError)
    assert (error.cause, done) == (f"{where} can't be reached: Connection refused", ["host"])


async def test_something_else_listens(tmp_path: Path) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        error, _ = await refused(host(tmp_path, "a"), where, str(JoinToken.new(MeshRoot.new().public_key)))
    assert isinstance(error, UnreachableError)
    assert error.cause == f"{where} does not speak TLS"


async def test_a_name_that_nobody_knows(tmp_path: Path) -> None:
    token = str(JoinToken.new(MeshRoot.new().public_key))
    error, _ = await refused(host(tmp_path, "a"), "controller.invalid", token)
    assert error.cause == "the name controller.invalid is not known"


async def test_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joinport, "REACH_TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        error, done = await refused(host(tmp_path, "a"), where, str(JoinToken.new(MeshRoot.new().public_key)))
    assert isinstance(error, UnreachableError)
    assert "does not answer within" in error.cause
    assert done == ["host"]


async def test_when_the_answer_is_lost_the_same_line_gives_the_same_node(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys stay: the controller knows them, and the token's one use was theirs."""
    config, token = host(tmp_path, "a"), await mesh.token(uses=1)
    redeem = joins._redeem

    async def lost(*args: object) -> mesh_pb2.JoinReply:
        await redeem(*args)  # type: ignore[arg-type]
        raise joins._Unknown(UnreachableError("the connection broke"))

    with monkeypatch.context() as broken:
        broken.setattr(joins, "_redeem", lost)
        with pytest.raises(UnreachableError, match="the connection broke"):
            await join(config, mesh.join_port, token, "web1", lambda *_: None)
    with pytest.raises(UnreachableError, match="can't be reached"):
        await join(config, "127.0.0.1:1", token, "web1", lambda *_: None)
    keys = state(config).keys()
    again = await join(config, mesh.join_port, token, "web1", lambda *_: None)
    assert again.already_member
    assert keys
    assert state(config).identity().keys.public == keys.public


async def test_no_answer_to_the_token_says_to_try_again(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joins, "REDEEM_TIMEOUT", 0.0)
    with pytest.raises(UnreachableError) as raised:
        await join(host(tmp_path, "a"), mesh.join_port, await mesh.token(), "web1", lambda *_: None)
    assert "run the same line again" in raised.value.fix


# This host can't.


async def test_a_colliding_route_is_named_and_the_membership_given_back(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def routes(self: Netlink, link: int = 0) -> tuple[Route, ...]:
        return (Route(ipaddress.ip_network(RANGES[0]), 1, protocol=2),)

    monkeypatch.setattr(Netlink, "routes", routes)
    error, _ = await refused(host(tmp_path, "a"), mesh.join_port, await mesh.token())
    assert isinstance(error, RangeCollisionError)
    assert error.cause == f"the overlay's range {RANGES[0]} overlaps {RANGES[0]} on lo"
    assert await mesh.nodes() == []


async def test_a_host_in_another_mesh(mesh: Mesh, tmp_path: Path) -> None:
    config = host(tmp_path, "a")
    await joined(mesh, config)
    kept = hashlib.sha256((config.state_dir / "node.pem").read_bytes()).digest()
    root = MeshRoot.new()
    credentials = ServerCertificates(root, lambda: root.anchor, []).credentials(mutual=False)
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    with pytest.raises(StateError, match="this host is in another mesh: in network mesh, as a"):
        await join(config, f"127.0.0.1:{port}", str(JoinToken.new(root.public_key)), "a", lambda *_: None)
    await server.stop(0)
    assert hashlib.sha256((config.state_dir / "node.pem").read_bytes()).digest() == kept


async def test_an_answer_for_another_host_is_not_believed(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redeem, stranger = joins._redeem, host(tmp_path, "b")
    await joined(mesh, stranger)
    theirs = state(stranger).identity()

    async def swapped(*args: object) -> mesh_pb2.JoinReply:
        reply = await redeem(*args)  # type: ignore[arg-type]
        reply.node_id, reply.node = theirs.membership.node_id, theirs.membership.node
        return reply

    monkeypatch.setattr(joins, "_redeem", swapped)
    config = host(tmp_path, "a")
    with pytest.raises(MeshError, match="it is for another host"):
        await join(config, mesh.join_port, await mesh.token(), "a", lambda *_: None)
    assert not config.state_dir.exists()


@pytest.mark.parametrize(
    "shown", [b"", MeshRoot.new().der, Host("a").csr()], ids=["none", "another", "something else"]
)
async def test_another_root_in_the_answer_is_not_believed(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: bytes
) -> None:
    redeem = joins._redeem

    async def swapped(*args: object) -> mesh_pb2.JoinReply:
        reply = await redeem(*args)  # type: ignore[arg-type]
        reply.root = shown
        return reply

    monkeypatch.setattr(joins, "_redeem", swapped)
    error, _ = await refused(host(tmp_path, "a"), mesh.join_port, await mesh.token())
    assert "it does not hold the mesh root that the token pins" in error.cause


async def test_a_root_that_another_has_made_for_the_right_key_is_not_believed(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go by another fingerprint, so no record of a rotation would be about it."""
    redeem, key = joins._redeem, mesh.controller.root.public_key

    async def swapped(*args: object) -> mesh_pb2.JoinReply:
        reply = await redeem(*args)  # type: ignore[arg-type]
        reply.root = joinport._anchor(key).public_bytes(Encoding.DER)
        return reply

    monkeypatch.setattr(joins, "_redeem", swapped)
    error, _ = await refused(host(tmp_path, "a"), mesh.join_port, await mesh.token())
    assert "it does not hold the mesh root that the token pins" in error.cause


# How the controller may be named.


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("mesh.example.org", Target("mesh.example.org", 7442)),
        ("mesh.example.org:99", Target("mesh.example.org", 99)),
        ("192.0.2.1", Target("192.0.2.1", 7442)),
        ("192.0.2.1:99", Target("192.0.2.1", 99)),
        ("2001:db8::1", Target("2001:db8::1", 7442)),
        ("[2001:db8::1]", Target("2001:db8::1", 7442)),
        ("[2001:db8::1]:99", Target("2001:db8::1", 99)),
    ],
)
def test_a_controller_by_name_or_address(text: str, target: Target) -> None:
    assert Target.parse(text) == target
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    "text", ["", "a b", "host:0", "host:65536", "host:x", "https://host", "[::1", "a:b:c"]
)
def test_what_is_no_controller(text: str) -> None:
    with pytest.raises(UsageError, match="is not a controller"):
        Target.parse(text)
