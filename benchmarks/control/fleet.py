"""Simulated agents: each joins with a real token, then follows its map over a connection of its own.

    Host --join port--> Member --mesh port--> Agent: hello, receive, ack, reconnect; report when it has moved

They say and answer what agent/join.py and agent/sync.py say and answer. What they leave out is what happens
on the host: signatures, the interface, the fastpath, the disk. Some keep the whole map and hold its digest
against every message; the others take a message's word for it, as long as it follows what they have.
"""

import asyncio
import os
import ssl
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from random import random
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from benchmarks.control.http2 import Connection, request_headers
from overmesh import __version__, rpc
from overmesh.agent import controllers
from overmesh.agent.joinport import certificate_request
from overmesh.agent.pace import AckLimiter, Backoff
from overmesh.errors import MeshError, UnreachableError
from overmesh.model import Digest
from overmesh.proto import mesh_pb2
from overmesh.proto.codec import item_values
from overmesh.token import JoinToken

_JOIN = request_headers("/overmesh.mesh.v1.Join/Join", rpc.CONTROLLER_NAME)
_WATCH = request_headers("/overmesh.mesh.v1.Mesh/Watch", rpc.CONTROLLER_NAME)
_REPORT = request_headers("/overmesh.mesh.v1.Mesh/Report", rpc.CONTROLLER_NAME)

_FIRST_ENDPOINT = IPv4Address("198.18.0.1")  # RFC 2544, for benchmarks
_LISTENING = "127.0.0.1"
_HEALTH = mesh_pb2.Health(backend="tun", mtu=1420)
# rpc.KEEPALIVE's, in seconds.
_PING_EVERY = 10


# Joining.


@dataclass(frozen=True, slots=True)
class Host:
    """A host with keys that wants to join."""

    number: int
    tls: EllipticCurvePrivateKey
    public_key: bytes

    @classmethod
    def new(cls, number: int) -> Self:
        """Return one with fresh keys; any 32 bytes under 2^255 will do for a key that nobody uses."""
        random = bytearray(os.urandom(32))
        random[31] &= 0x3F
        return cls(number, generate_private_key(SECP256R1()), bytes(random))

    def request(self, token: JoinToken) -> mesh_pb2.JoinRequest:
        """Return what it says to the join port."""
        name = f"host-{self.number}"
        return mesh_pb2.JoinRequest(
            token_id=token.id,
            token_secret=token.secret_text,
            name=name,
            csr=certificate_request(self.tls, name),
            public_key=self.public_key,
            endpoints=[endpoint(self.number)],
            host_id=f"machine {self.number}",
            version=__version__,
            suites=[mesh_pb2.SUITE_CHACHA, mesh_pb2.SUITE_AES],
            modes=[mesh_pb2.MODE_PLAIN, mesh_pb2.MODE_SEALED],
            lanes=1,
        )


def endpoint(number: int, port: int = 51820) -> mesh_pb2.Endpoint:
    """Return where a host says it is."""
    return mesh_pb2.Endpoint(address=str(_FIRST_ENDPOINT + number), port=port)


@dataclass(frozen=True, slots=True)
class Member:
    """A host that has joined: its number, node id, and TLS as its certificate has it."""

    number: int
    id: str
    tls: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class Entry:
    """Where to join, and whom to trust there. scratch: a directory in memory.

    A real host knows the root's key alone; what that costs, it costs the host.
    """

    port: int
    token: JoinToken
    root: Path
    scratch: Path

    async def join(self, host: Host) -> Member:
        """Make a host a member as agent/join.py does.

        Raises:
            MeshError: the controller says no, or is gone.

        """
        connection = await self.connect()
        try:
            return await self.redeem(host, connection)
        finally:
            connection.close()

    async def connect(self) -> Connection:
        """Return a connection to the join port."""
        return await _connect(self.port, _verifying(self.root))

    async def redeem(self, host: Host, connection: Connection) -> Member:
        """Do the second half alone, over a connection that is there.

        Raises:
            MeshError: the controller says no, or is gone.

        """
        data = await connection.unary(_JOIN, host.request(self.token).SerializeToString())
        reply = mesh_pb2.JoinReply.FromString(data)
        return Member(host.number, reply.node_id, self._tls(host, reply.certificate))

    def _tls(self, host: Host, certificate: bytes) -> ssl.SSLContext:
        context = _verifying(self.root)
        key = host.tls.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        leaf = x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM)
        file = self.scratch / f"{host.number}.pem"  # ssl reads them from nowhere else
        file.write_bytes(key + leaf)
        context.load_cert_chain(file)
        file.unlink()
        return context


def _verifying(root: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(root)
    context.set_alpn_protocols(["h2"])
    return context


async def _connect(port: int, context: ssl.SSLContext) -> Connection:
    made = asyncio.get_running_loop().create_connection(
        Connection, _LISTENING, port, ssl=context, server_hostname=rpc.CONTROLLER_NAME
    )
    _, connection = await made
    return connection


# Following.


@dataclass(slots=True)
class Census:
    """What all agents together have seen since the last `expect`.

    members: how many hosts there are.
    pending, unacked: agents that do not hold the awaited revision yet, or have not acked it.
    reasons: why streams have ended.
    delivered, acked: seconds from `expect` to the last of them. apply: seconds that a host takes over a map.
    """

    members: int = 0
    apply: float = 0.0

    deltas: int = 0
    snapshots: int = 0
    heartbeats: int = 0
    acks: int = 0
    lost: int = 0
    connected: int = 0
    wrong: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    revision: int = 0
    pending: int = 0
    unacked: int = 0
    delivered: float = 0.0
    acked: float = 0.0
    _since: float = 0.0

    def expect(self, revision: int, agents: Iterable["Agent"], since: float) -> None:
        """Count from now on who holds a revision; `since`: when it was made (monotonic)."""
        agents = list(agents)
        self.revision, self._since = revision, since
        self.pending = sum(agent.revision < revision for agent in agents)
        self.unacked = sum(agent.acked < revision for agent in agents)
        now = time.monotonic() - since
        self.delivered, self.acked = now, now

    def moved(self, before: int, after: int) -> None:
        """Note that an agent's map has got further."""
        if before < self.revision <= after:
            self.pending -= 1
            self.delivered = time.monotonic() - self._since

    def has_acked(self, before: int, after: int) -> None:
        """Note that an agent has said so."""
        self.acks += 1
        if before < self.revision <= after:
            self.unacked -= 1
            self.acked = time.monotonic() - self._since


class Agent:
    """One agent's stream.

    Args:
        member: who it is.
        ports: the mesh ports of the controllers, the one to begin with first.
        census: told of everything.
        items: the map that it holds and checks; None: it checks nothing.
        new: its host has just joined; how it carries packets is not known before its fastpath runs.

    """

    def __init__(
        self,
        member: Member,
        ports: Sequence[int],
        census: Census,
        items: dict[str, bytes] | None,
        *,
        new: bool = False,
    ) -> None:
        self.member = member
        self.revision = 0
        self.acked = 0
        self.connected = False
        self.healthy = not new
        self.digest = b""
        self._ports = list(ports)
        self._census = census
        self.items = items
        self._chunks: dict[int, Mapping[str, bytes]] = {}
        self._connection: Connection | None = None
        self._stream = 0
        self._limiter = AckLimiter()
        self._ack_due = False
        self._backoff = Backoff()
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """Where its controller is."""
        return self._ports[0]

    def hold(self, revision: int, digest: bytes) -> None:
        """Begin with this map rather than with none."""
        self.revision = self.acked = revision
        self.digest = digest

    async def connect(self) -> None:
        """Open the stream to the first of its controllers.

        Raises:
            OSError: nobody is there.

        """
        self._chunks = {}
        self._connection = await _connect(self._ports[0], self.member.tls)
        self._stream = self._connection.call(_WATCH, self._received, self._ended)
        hello = mesh_pb2.Hello(
            revision=self.revision,
            digest=self.digest,
            host_id=f"machine {self.member.number}",
            version=__version__,
            health=_HEALTH if self.healthy else None,
        )
        self._send(mesh_pb2.WatchRequest(hello=hello))

    def ping(self) -> None:
        """Do what gRPC's keepalive does."""
        if self._connection:
            self._connection.ping()

    def close(self) -> None:
        """Hang up, for good."""
        if self._task:
            self._task.cancel()
        if self._connection:
            self._connection.close()
        self._left()

    async def report(self, port: int) -> int:
        """Say that it has moved, and return the revision at which that is known.

        Raises:
            MeshError: the controller does not take it.

        """
        if self._connection is None:
            raise UnreachableError("not connected")
        request = mesh_pb2.ReportRequest(
            endpoints=[endpoint(self.member.number, port)],
            lanes=1,
            host_id=f"machine {self.member.number}",
        )
        data = await self._connection.unary(_REPORT, request.SerializeToString())
        return mesh_pb2.ReportReply.FromString(data).revision

    def _send(self, request: mesh_pb2.WatchRequest) -> None:
        if self._connection:
            self._connection.send(self._stream, request.SerializeToString())

    # Receiving.

    def _received(self, data: bytes) -> None:
        if not self.connected:
            self.connected = True
            self._census.connected += 1
            self._backoff.reset()
        reply = mesh_pb2.WatchReply.FromString(data)
        match reply.WhichOneof("body"):
            case "delta":
                self._census.deltas += 1
                self._delta(reply.delta)
            case "snapshot":
                self._snapshot(reply.snapshot)
            case "heartbeat":
                self._census.heartbeats += 1
                if (reply.heartbeat.revision, reply.heartbeat.digest) == (self.revision, self.digest):
                    return
                self._wrong(f"heartbeat of {reply.heartbeat.revision} at {self.revision}")

    def be_healthy(self) -> None:
        """Say how it carries packets, once that is known."""
        self.healthy = True
        self._ack()

    def _delta(self, delta: mesh_pb2.Delta) -> None:
        if delta.from_revision != self.revision:
            self._wrong(f"delta from {delta.from_revision} at {self.revision}")
        if self.items is not None:
            digest = Digest.from_bytes(self.digest)
            for key in delta.removed:
                digest = digest.remove(key, self.items.pop(key))
            for key, signed in item_values(delta.items).items():
                if key in self.items:
                    digest = digest.remove(key, self.items[key])
                digest = digest.add(key, signed)
                self.items[key] = signed
            self._check(digest, delta.digest)
        self._move(delta.to_revision, delta.digest)

    def _snapshot(self, message: mesh_pb2.Snapshot) -> None:
        self._chunks[message.chunk] = item_values(message.items) if self.items is not None else {}
        if len(self._chunks) < message.chunks:
            return
        self._census.snapshots += 1
        if self.items is not None:
            self.items = {key: signed for chunk in self._chunks.values() for key, signed in chunk.items()}
            self._check(Digest.of(self.items), message.digest)
        self._chunks = {}
        self._move(message.revision, message.digest)

    def _check(self, found: Digest, said: bytes) -> None:
        if found.to_bytes() != said:
            self._wrong("the map's digest is another")

    def _wrong(self, what: str) -> None:
        self._census.wrong.append(f"{self.member.id}: {what}")

    # Acking.

    def _move(self, revision: int, digest: bytes) -> None:
        self._census.moved(self.revision, revision)
        self.revision, self.digest = revision, digest
        if not self._ack_due:
            self._ack_due = True
            wait = max(self._census.apply, self._limiter.take(time.monotonic()))
            if wait:
                asyncio.get_running_loop().call_later(wait, self._ack)
            else:
                self._ack()

    def _ack(self) -> None:
        self._ack_due = False
        ack = mesh_pb2.Ack(
            revision=self.revision, digest=self.digest, health=_HEALTH if self.healthy else None
        )
        self._send(mesh_pb2.WatchRequest(ack=ack))
        self._census.has_acked(self.acked, self.revision)
        self.acked = self.revision

    # Reconnecting.

    def _ended(self, error: MeshError | None) -> None:
        self._left()
        self._census.lost += 1
        self._census.reasons[error.cause if error else "ended"] += 1
        self._task = asyncio.ensure_future(self._reconnect())

    def _left(self) -> None:
        self._connection = None
        if self.connected:
            self.connected = False
            self._census.connected -= 1

    async def _reconnect(self) -> None:
        # The controller served others too, and all of them are looking for another one now.
        pause = random() * controllers.spread(self._census.members)
        while True:
            await asyncio.sleep(pause)
            self._ports.append(self._ports.pop(0))
            try:
                await self.connect()
            except (OSError, ssl.SSLError):
                pause = self._backoff.delay()
                self._backoff.grow()
            else:
                return


async def keep_pinging(agents: Sequence[Agent]) -> None:
    """Send what the keepalive of so many agents sends, spread out evenly, until cancelled."""
    for turn in _forever():
        for agent in agents[turn % (10 * _PING_EVERY) :: 10 * _PING_EVERY]:
            agent.ping()
        await asyncio.sleep(0.1)


def _forever() -> Iterator[int]:
    turn = 0
    while True:
        yield turn
        turn += 1
