"""The agents that are connected here, and what is known of them.

    mirror ──changes──► Agents: wakes the streams of that network, ends those of removed nodes

How a stream is served is in watch.py, by which rules in session.py.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import length_hint

from overmesh.controller.membership import removed, revoked
from overmesh.controller.mirror import Mirror
from overmesh.controller.peermap import Position
from overmesh.controller.serving.caller import caller
from overmesh.controller.session import Session
from overmesh.controller.store import keys
from overmesh.controller.trust import Identity
from overmesh.controller.view import Changes
from overmesh.errors import CloneError, OvermeshError, RemovedError, ReplacedError, UnreachableError
from overmesh.model import Problem
from overmesh.proto import mesh_pb2
from overmesh.proto.codec import problem_values, text_value

# Streams that a change wakes in one turn of the event loop.
WOKEN_AT_ONCE = 100

_log = logging.getLogger("overmesh.controller")


@dataclass(slots=True)
class Agent:
    """One connected agent. `end` says why its stream has to end; origin: the address that it calls from."""

    identity: Identity
    host_id: str
    version: str
    session: Session
    instance: str = ""
    origin: str = ""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    end: OvermeshError | None = None
    last_seen: float = 0
    problems: tuple[Problem, ...] = ()
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)

    def wake_in(self, seconds: float) -> None:
        """Have it wake at the latest after so many seconds; it may wake sooner."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        # Most deadlines move away long before they come: a timer that is early costs less than a new one.
        if self._timer and self._timer.when() <= due:
            return
        self.rest()
        self._timer = loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.wake.set()

    def rest(self) -> None:
        """Forget when to wake."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def sighting(self, *, online: bool) -> "Sighting":
        """Return what is to be said of it."""
        return Sighting(
            online=online,
            last_seen=self.last_seen,
            acked=self.session.acked,
            in_step=online and self.session.in_step,
            version=self.version,
            problems=self.problems,
            host_id=self.host_id,
        )

    def finish(self, why: OvermeshError) -> None:
        """Have the stream end with this error; the first reason stays."""
        self.end = self.end or why
        self.wake.set()


@dataclass(frozen=True, slots=True)
class Sighting:
    """What is known of an agent, connected or not. last_seen: unix seconds; 0: never."""

    online: bool = False
    last_seen: float = 0
    acked: int = 0
    in_step: bool = False
    version: str = ""
    problems: tuple[Problem, ...] = ()
    host_id: str = ""


@dataclass(frozen=True, slots=True)
class Behind:
    """An agent that does not hold a revision yet, and why."""

    node_id: str
    acked: int
    reason: str


class Agents:
    """Who is connected as what, since this controller started.

    Args:
        mirror: whose maps they follow.
        on_presence: called with (identity, whether it is there, its instance) when a node comes or goes.
        clock: unix seconds.

    """

    def __init__(
        self,
        mirror: Mirror,
        on_presence: Callable[[Identity, bool, str], None],
        clock: Callable[[], float],
    ) -> None:
        self._mirror = mirror
        self._on_presence = on_presence
        self._clock = clock
        self._live: dict[str, dict[str, Agent]] = {}
        self._gone: dict[Identity, Sighting] = {}
        mirror.on_change(self._changed)

    async def catch_up(self, identity: Identity, hello: mesh_pb2.Hello) -> None:
        """Know at least as much as an agent that comes from another controller.

        Raises:
            StoreUnavailableError: that can't be.

        """
        await self._mirror.look_up(keys.credential(identity.network, identity.node_id))
        if not await self._mirror.catch_up(hello.revision):
            went = f"went back from revision {hello.revision} to {self._mirror.revision}"
            self._alarm(identity, f"{went}: restored from a backup, or tampered with")
            return
        known = self._mirror.view(identity.network).map.position(hello.revision)
        if hello.revision and known and known.digest != hello.digest:
            self._alarm(identity, f"holds another map at revision {hello.revision} than it did before")

    def _alarm(self, identity: Identity, what: str) -> None:
        """Say aloud what an agent is witness to."""
        named = self.named(identity)
        who = named.get("node", identity.node_id)
        self._mirror.notices.note(identity.network, "store", f"{what} (seen by {who})")
        _log.error("the store is not what an agent has seen", extra=named | {"what": f"the store {what}"})

    def open(self, identity: Identity, hello: mesh_pb2.Hello, now: float) -> Agent:
        """Take in an agent that said hello, whose host is the node's (`Clones.check`); an older stream ends.

        Raises:
            RemovedError: its node is not a member.

        """
        view = self._mirror.view(identity.network)
        self.check_member(identity)
        live = self._live.setdefault(identity.network, {})
        if older := live.get(identity.node_id):
            older.finish(_replaced())
        session = Session(view.map, Position(hello.revision, hello.digest), now)
        agent = Agent(
            identity,
            hello.host_id,
            text_value(hello.version),
            session,
            hello.instance,
            caller().origin,
            last_seen=self._clock(),
        )
        live[identity.node_id] = agent
        self._gone.pop(identity, None)
        self._on_presence(identity, True, agent.instance)
        _log.info("agent connected", extra=self.named(identity) | {"revision": hello.revision})
        return agent

    def check_member(self, identity: Identity) -> None:
        """Raise RemovedError for a node that is no member."""
        network, node_id = identity.network, identity.node_id
        view = self._mirror.view(network)
        # Only a node that runs an agent has one: its key may be a stock WireGuard peer's by now.
        known = node_id in self._mirror.held("credentials", network)
        # Whoever can write to the store may have put back what belonged to a revoked one.
        void = view.revocation(node_id) is not None and view.node(node_id) is None
        if void or not known:
            raise self._why_out(network, node_id)

    def _why_out(self, network: str, node_id: str) -> RemovedError:
        revocation = self._mirror.view(network).revocation(node_id)
        return revoked(revocation) if revocation and revocation.banned else removed(network)

    def replaced(self, identity: Identity) -> None:
        """End the stream of a node: another of its instances speaks to another controller now."""
        if agent := self.live(identity.network, identity.node_id):
            agent.finish(_replaced())

    def quarantined(self, network: str, node_id: str, error: CloneError) -> None:
        """End the stream of a node: who has it open is a copy."""
        if agent := self.live(network, node_id):
            _log.warning(
                "the stream of a copy ends", extra=self.named(agent.identity) | {"reason": error.cause}
            )
            agent.finish(error)

    def close(self, agent: Agent) -> None:
        """Forget a stream that has ended."""
        identity = agent.identity
        live = self._live.get(identity.network, {})
        if live.get(identity.node_id) is not agent:
            return
        del live[identity.node_id]
        self._on_presence(identity, False, agent.instance)
        _log.info("agent disconnected", extra=self.named(identity))
        if identity.node_id in self._mirror.held("nodes", identity.network):
            self._gone[identity] = agent.sighting(online=False)

    def ack(self, agent: Agent, ack: mesh_pb2.Ack) -> None:
        """Take in what an agent holds now."""
        misses = agent.session.misses
        agent.session.on_ack(Position(ack.revision, ack.digest))
        agent.last_seen = self._clock()
        agent.problems = problem_values(ack.problems)
        agent.wake.set()
        if agent.session.misses > misses:
            _log.warning(
                "an agent holds a map with a wrong digest: it gets a snapshot",
                extra=self.named(agent.identity) | {"revision": ack.revision, "times": agent.session.misses},
            )

    def _changed(self, network: str, changes: Changes) -> None:
        live = self._live.get(network, {})
        _wake(iter(list(live.values())))
        for node_id in _removed_nodes(changes):
            self._gone.pop(Identity(network, node_id), None)
            if node_id in live:
                live[node_id].finish(self._why_out(network, node_id))

    # Asking.

    def named(self, identity: Identity) -> dict[str, str]:
        """Return the log fields that say which node."""
        return self._mirror.view(identity.network).log_fields(identity.node_id)

    def live(self, network: str, node_id: str) -> Agent | None:
        """Return the agent that is connected as a node, if there is one."""
        return self._live.get(network, {}).get(node_id)

    def check_connected(self, identity: Identity, host_id: str, instance: str = "") -> None:
        """Raise unless a stream of this very agent is open as this node.

        Raises:
            RemovedError: the node is no member.
            ReplacedError: the stream is another instance's.
            UnreachableError: there is none of this host, or it is about to end.

        """
        self.check_member(identity)
        agent = self.live(identity.network, identity.node_id)
        if agent is None or agent.host_id != host_id:
            raise UnreachableError("no stream of this host is open here as the node", "open one first")
        if agent.instance != instance:
            raise _replaced()
        if agent.end:
            raise agent.end

    def sighting(self, network: str, node_id: str) -> Sighting:
        """Return what is known of a node's agent."""
        agent = self._live.get(network, {}).get(node_id)
        if agent is None:
            return self._gone.get(Identity(network, node_id), Sighting())
        return agent.sighting(online=True)

    def count(self, network: str) -> int:
        """Return how many agents of a network are connected."""
        return sum(1 for _ in self._counting(network))

    def behind(self, network: str, revision: int) -> Iterator[Behind]:
        """Yield the connected agents that have not acked a revision with the right digest."""
        for agent in self._counting(network):
            acked = agent.session.acked
            if acked < revision:
                yield Behind(agent.identity.node_id, acked, _why_behind(agent.session))

    def _counting(self, network: str) -> Iterator[Agent]:
        # A stream that is to end may hang in a write for a while: nobody should wait for that.
        return (agent for agent in self._live.get(network, {}).values() if agent.end is None)

    def finish_all(self, why: OvermeshError) -> None:
        """End every stream."""
        for live in self._live.values():
            for agent in live.values():
                agent.finish(why)


def _wake(agents: Iterator[Agent]) -> None:
    """Have all of them look for what to send; not at once, so that whoever calls is answered in between."""
    for agent in islice(agents, WOKEN_AT_ONCE):
        # Who owes an ack is sent nothing before that, and its ack wakes the stream.
        if agent.session.in_flight_since is None:
            agent.wake.set()
    if length_hint(agents):
        asyncio.get_running_loop().call_soon(_wake, agents)


def _replaced() -> ReplacedError:
    return ReplacedError("a newer stream of this host has taken over")


def _removed_nodes(changes: Changes) -> Iterator[str]:
    for key, signed in changes.items():
        kind, _, node_id = key.partition("/")
        if kind == "node" and signed is None:
            yield node_id


def _why_behind(session: Session) -> str:
    if session.misses and not session.acked:
        return f"its map had a wrong digest {session.misses} time(s); it is sent a snapshot"
    return f"holds revision {session.acked}" if session.acked else "has not acked any map yet"
