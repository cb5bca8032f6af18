"""A controller and its agents in memory, joined by bad wires, under a clock that a test turns.

    Joins, Membership, Mirror, Agents, Session  ──Wire──►  Replica        the real rules of both ends
    Ledger (the store)                           ◄──Wire──  acks

No sockets, no tasks, no waiting: everything happens in `World.turn`, and what happens follows from the
seed. A Wire loses, doubles, delays and thereby reorders messages, which TCP would not: rules that live
with this live with anything.
"""

import heapq
import itertools
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from random import Random
from typing import Any, TypeVar

from overmesh.agent.pace import Backoff
from overmesh.agent.peermap import Held, Outcome, Replica
from overmesh.agent.sync import PATIENCE, SILENCE
from overmesh.controller.agents import Agent
from overmesh.controller.mirror import Mirror
from overmesh.controller.parts import Parts
from overmesh.controller.peermap import Position
from overmesh.controller.store import keys
from overmesh.controller.store.base import Compare, KeyValue, Op, Put, RangeResult, TxnResult, Watcher
from overmesh.controller.trust import Identity
from overmesh.errors import OvermeshError, RemovedError
from overmesh.model import Digest, Endpoint
from overmesh.proto import mesh_pb2
from overmesh.token import JoinToken
from tests.unit.controller.lab import ROOT, START, Host
from tests.unit.controller.store.model import Model

TICK = 0.05
T = TypeVar("T")


def done(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that has no reason to wait."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise AssertionError("it waits for something")


class Ledger:
    """A store whose changes are in the mirror before anyone can wait for them."""

    def __init__(self) -> None:
        self.model = Model(1)
        self.mirror: Mirror | None = None

    async def get(self, key: str) -> KeyValue | None:
        return self.model.current.get(key)

    async def range(self, prefix: str, *, after: str = "", limit: int = 0, revision: int = 0) -> RangeResult:
        return RangeResult(tuple(self.model.range(prefix, after, revision)), self.model.revision)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        succeeded = all(self.model.holds(compare) for compare in compares)
        before = self.model.revision
        if succeeded:
            self.model.apply(ops)
        if self.mirror and self.model.revision > before:
            self.mirror._take(self.model.log[-1])
        return TxnResult(succeeded, self.model.revision)

    def watch(self, prefix: str, start: int) -> Watcher:
        raise NotImplementedError

    async def compact(self, revision: int) -> None:
        raise NotImplementedError

    async def grant(self, ttl: float) -> int:
        raise NotImplementedError

    async def keepalive(self, lease: int) -> float:
        raise NotImplementedError

    async def revoke(self, lease: int) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


@dataclass
class Faults:
    """How bad the wires are: probabilities per message or second, and the longest delay in seconds."""

    loss: float = 0.0
    double: float = 0.0
    breaks: float = 0.0
    delay: float = 0.05


@dataclass
class Wire:
    """One direction of a stream."""

    world: "World"
    waiting: list[tuple[float, int, Any]] = field(default_factory=list)

    def send(self, message: Any) -> None:
        faults, random = self.world.faults, self.world.random
        for _ in range(1 + (random.random() < faults.double)):
            if random.random() >= faults.loss:
                at = self.world.now + random.random() * faults.delay
                heapq.heappush(self.waiting, (at, next(self.world.order), message))

    def arrived(self) -> list[Any]:
        messages = []
        while self.waiting and self.waiting[0][0] <= self.world.now:
            messages.append(heapq.heappop(self.waiting)[2])
        return messages


@dataclass
class Stream:
    """Both directions, and whether each end still takes it for open."""

    to_agent: Wire
    to_controller: Wire
    agent: Agent | None = None
    refusal: OvermeshError | None = None
    broken: bool = False
    broken_since: float = 0


class Member:
    """A host with the agent's real replica; what it keeps on disk survives a restart."""

    def __init__(self, world: "World", host: Host, token: JoinToken) -> None:
        self.world, self.host, self.token = world, host, token
        self.admission = done(world.parts.joins.join(host.application(token)))
        self.backoff = Backoff(world.random.random)
        self.stream: Stream | None = None
        self.next_try = world.now
        self.heard = world.now
        self.behind = 0
        self.removed = False
        self.was_at: set[tuple[int, bytes]] = set()
        self.resyncs = 0
        self.restart(Held())

    def restart(self, held: Held) -> None:
        answer = self.admission
        self.replica = Replica(ROOT.anchor, answer.network, answer.node_id, answer.node, held)
        self.hang_up()

    @property
    def position(self) -> Position:
        return Position(self.replica.revision, self.replica.digest.to_bytes())

    def hang_up(self) -> None:
        if self.stream:
            self.stream.broken, self.stream.broken_since = True, self.world.now
        self.stream = None
        self.next_try = self.world.now + self.backoff.delay()
        self.backoff.grow()

    def turn(self) -> None:
        world = self.world
        if self.removed:
            return
        if self.stream is None:
            if world.now >= self.next_try:
                self._connect()
            return
        for message in self.stream.to_agent.arrived():
            self._receive(message)
            if self.stream is None:
                return
        if self.stream.refusal or world.now - self.heard > SILENCE:
            self.removed = isinstance(self.stream.refusal, RemovedError)
            self.hang_up()

    def _connect(self) -> None:
        revision, digest = self.replica.begin()
        self.stream = Stream(Wire(self.world), Wire(self.world))
        self.heard, self.behind = self.world.now, 0
        self.was_at.add((revision, digest))
        self.world.accept(self, mesh_pb2.Hello(revision=revision, digest=digest, host_id=self.host.name))

    def _receive(self, message: bytes) -> None:
        assert self.stream
        self.heard = self.world.now
        outcome = self.replica.receive(mesh_pb2.WatchReply.FromString(message))
        self.behind = self.behind + 1 if outcome is Outcome.BEHIND else 0
        if outcome is Outcome.RESYNC or self.behind > PATIENCE:
            self.resyncs += 1
            self.hang_up()
            return
        if outcome in (Outcome.CHANGED, Outcome.CURRENT):
            self.backoff.reset()
        if outcome is Outcome.CHANGED:
            assert self.replica.digest == Digest.of(self.replica.held().items)
            at = self.position
            self.was_at.add((at.revision, at.digest))
            self.stream.to_controller.send(mesh_pb2.Ack(revision=at.revision, digest=at.digest))


class World:
    """One mesh. Times are seconds since the start."""

    def __init__(self, seed: int, faults: Faults | None = None) -> None:
        self.random = Random(seed)
        self.faults = faults or Faults()
        self.order = itertools.count()
        self.now = 0.0
        self.ledger = Ledger()
        self.members: dict[str, Member] = {}
        self.streams: list[tuple[Member, Stream]] = []
        self.names = itertools.count()
        self.start_controller()
        done(self.parts.membership.ensure_network(("10.9.0.0/22", "fd00:9::/64")))
        self.token = done(self.parts.tokens.create("mesh", 10**6, 0, ()))[1]

    def clock(self) -> float:
        return START + self.now

    def start_controller(self) -> None:
        """Start one, or a new one in place of the old: it knows only what is in the store."""
        for member, stream in self.streams:
            stream.broken = True
            if member.stream is stream:
                member.hang_up()
        self.streams = []
        self.parts = Parts.of(self.ledger, ROOT, self.clock, "c1", self.random.getrandbits)
        self.ledger.mirror = self.parts.mirror
        done(self.parts.mirror.load())

    # What people and hosts do.

    def join(self) -> Member:
        host = Host(f"n{next(self.names)}", public_key=self.random.randbytes(31) + b"\0")
        member = self.members[host.id] = Member(self, host, self.token)
        return member

    def remove(self, member: Member) -> int:
        del self.members[member.host.id]
        return done(self.parts.revocations.remove("mesh", member.host.id))

    def move(self, member: Member) -> None:
        place = Endpoint(ip_address(f"192.0.2.{self.random.randrange(1, 255)}"), 6081)
        done(self.parts.membership.report("mesh", member.host.id, [place]))

    def forge(self) -> None:
        """Somebody writes to the store past the controller."""
        key = keys.node("mesh", f"forged{self.random.randrange(3)}")
        done(self.ledger.txn([], [Put(key, self.random.randbytes(40))]))

    # The controller's end of the streams; watch.py does the same with tasks.

    def accept(self, member: Member, hello: mesh_pb2.Hello) -> None:
        stream = member.stream
        assert stream
        self.streams.append((member, stream))
        try:
            stream.agent = self.parts.agents.open(Identity("mesh", member.host.id), hello, self.now)
        except OvermeshError as error:
            stream.refusal = error

    def _serve(self, member: Member, stream: Stream) -> None:
        agent = stream.agent
        assert agent
        for ack in stream.to_controller.arrived():
            self.parts.agents.ack(agent, ack)
        if agent.session.acked:
            known = self.parts.mirror.view("mesh").map.position(agent.session.acked)
            assert known is None or (known.revision, known.digest) in member.was_at
        try:
            if agent.end:
                raise agent.end
            for message in agent.session.poll(self.now):
                stream.to_agent.send(message)
            agent.session.written(self.now)
        except OvermeshError as error:
            stream.refusal = error
            self.parts.agents.close(agent)

    # Time.

    def turn(self) -> None:
        """Let one TICK pass."""
        self.now += TICK
        for member in list(self.members.values()):
            if member.stream and self.random.random() < self.faults.breaks * TICK:
                member.hang_up()
            member.turn()
        for member, stream in self.streams:
            # The controller notices a broken connection some time after the agent did.
            if stream.broken and self.now - stream.broken_since > self.random.random() * 5:
                if stream.agent:
                    self.parts.agents.close(stream.agent)
                stream.agent = None
                stream.refusal = stream.refusal or OvermeshError("broken")
            elif not stream.refusal:
                self._serve(member, stream)
        self.streams = [(member, stream) for member, stream in self.streams if not stream.refusal]

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK)):
            self.turn()

    @property
    def converged(self) -> bool:
        """Whether every agent is connected, known to be in step, and holds the very map."""
        head = self.parts.mirror.view("mesh").map.head
        return (
            self.parts.agents.count("mesh") == len(self.members)
            and not any(self.parts.agents.behind("mesh", head.revision))
            and all(member.position == head for member in self.members.values())
        )

    def settle(self, limit: float) -> float:
        """Let time pass until all agents have converged; return how long it took."""
        began = self.now
        while not self.converged:
            assert self.now - began < limit, self.story()
            self.turn()
        return self.now - began

    def story(self) -> str:
        """Say who is not where, for a test that fails."""
        head = self.parts.mirror.view("mesh").map.head
        lines = [f"at {self.now:.2f} the head is {head.revision}"]
        for member in self.members.values():
            if member.position != head or member.stream is None:
                sighting = self.parts.agents.sighting("mesh", member.host.id)
                lines.append(f"{member.host.name}: at {member.replica.revision}, known as {sighting}")
        return "\n".join(lines)
