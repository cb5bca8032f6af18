"""What happens to a controller with N agents, phase by phase, and what each phase costs it.

join       each host in full: redeem the token, open the stream, ack, say how it is, hang up
fill       the other hosts redeem the token over one connection, and nothing else
connect    all agents come with the map that they hold, and stay
idle       heartbeats, keepalives, presence
change     one agent has moved: until the last one knows, until the last one has said so
failover   the controller is killed: all find the other one and go on where they were
collapse   five changes a second, for five seconds
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.control.fleet import Agent, Census, Entry, Host, Member, keep_pinging
from benchmarks.control.rig import Controller, Used

# Hosts that join, or agents that connect, at once.
AT_ONCE = 64
# One agent in so many checks every digest.
SAMPLE = 100
# Seconds that a host takes to apply a map.
_APPLY = 1.5
_STEP = 0.01
# Seconds until what an agent says last is heard for certain, before it hangs up.
_TAKEN_IN = 0.05
# What CPU seconds are counted in.
_CLOCK = 0.01
_ENCODED = "overmesh_records_encoded_total"

# After all agents have connected, in this order; the last but one needs a second controller.
PHASES = ("idle", "change", "failover", "collapse")

Row = dict[str, float]


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything: agents, full joins, changes measured, seconds of idling, phases after that.

    spread: the agents begin at all controllers in equal parts, not all at the first; what is used is then the
    sum over the controllers.
    """

    agents: int
    joins: int = 1000
    changes: int = 3
    idle: float = 10.0
    phases: Sequence[str] = PHASES
    spread: bool = False


class Scenario:
    """One run.

    Args:
        controllers: fresh ones of one mesh.
        size: how much.
        scratch: a directory in memory.
        keep: called after each phase with all that was found so far.

    """

    def __init__(
        self,
        controllers: Sequence[Controller],
        size: Size,
        scratch: Path,
        keep: Callable[[Row], None] = lambda _: None,
    ) -> None:
        self._controllers = controllers
        self._size = size
        self._scratch = scratch
        self._keep = keep
        self._first = controllers[0]
        # Those whose work counts.
        self._serving = list(controllers) if size.spread else [self._first]
        self._census = Census(members=size.agents)
        self._agents: list[Agent] = []
        self._moves = 0
        self._idle_memory = self._used().memory
        self.row: Row = {"agents": size.agents, "controllers": len(controllers), "spread": size.spread}

    async def run(self) -> Row:
        """Go through all phases; return what was found.

        Raises:
            RuntimeError: an agent saw what it should not.

        """
        await self._join()
        await self._connect()
        pinging = asyncio.create_task(keep_pinging(self._agents))
        for phase in self._size.phases:
            await getattr(self, f"_{phase}")()
            self._keep(self.row)
        pinging.cancel()
        for agent in self._agents:
            agent.close()
        await asyncio.sleep(_STEP)  # until the loop has let go of their sockets
        if self._census.wrong:
            raise RuntimeError(f"{len(self._census.wrong)} times wrong: {self._census.wrong[:5]}")
        return self.row

    # Joining.

    async def _join(self) -> None:
        entry = Entry(self._first.join_port, await self._first.token(), self._first.root, self._scratch)
        guide = Agent(await entry.join(Host.new(0)), [self._first.mesh_port], self._census, {})
        await guide.connect()
        await _until(lambda: guide.revision > 0)
        members = [guide.member]
        hosts = [Host.new(number) for number in range(1, self._size.agents)]
        in_full = hosts[: self._size.joins]

        async def join(host: Host) -> None:
            member = await entry.join(host)
            await self._come_and_go(member, guide)
            members.append(member)

        async with self._measured("join") as spent:
            await _crowd(join, in_full)
        self.row["joins"] = len(in_full)
        self.row["join_per_cpu_s"], self.row["join_per_s"] = (
            len(in_full) / spent.cpu,
            len(in_full) / spent.wall,
        )
        members += await self._filled(entry, hosts[len(in_full) :])
        await _until(lambda: len(guide.items or {}) > 2 * len(members))
        self._agents = [self._agent(member, guide) for member in members]
        guide.close()
        grown = self._used().memory - self._idle_memory
        self.row["memory_kib_per_member"] = grown / len(members)

    async def _filled(self, entry: Entry, hosts: Sequence[Host]) -> list[Member]:
        members, connection = [], await entry.connect()

        async def redeem(host: Host) -> None:
            members.append(await entry.redeem(host, connection))

        async with self._measured("fill"):
            await _crowd(redeem, hosts)
        connection.close()
        return members

    async def _come_and_go(self, member: Member, guide: Agent) -> None:
        census = Census()
        agent = Agent(member, [self._first.mesh_port], census, None, new=True)
        agent.hold(guide.revision, guide.digest)
        await agent.connect()
        await _until(lambda: bool(census.acks or census.heartbeats))
        agent.be_healthy()
        await asyncio.sleep(_TAKEN_IN)
        agent.close()
        self._census.wrong += census.wrong

    def _agent(self, member: Member, guide: Agent) -> Agent:
        ports = [controller.mesh_port for controller in self._controllers]
        first = member.number % len(ports) if self._size.spread else 0
        ports = [*ports[first:], *ports[:first]]
        items = dict(guide.items or {}) if member.number % SAMPLE == 0 else None
        agent = Agent(member, ports, self._census, items)
        agent.hold(guide.revision, guide.digest)
        return agent

    # Following.

    async def _connect(self) -> None:
        async with self._measured("connect"):
            await _crowd(lambda agent: agent.connect(), self._agents)
            await _until(lambda: all(agent.connected for agent in self._agents))
        await asyncio.sleep(5)
        grown = self._used().memory - self._idle_memory
        self.row["memory_kib_per_agent"] = grown / len(self._agents)

    async def _idle(self) -> None:
        async with self._measured("idle"):
            await asyncio.sleep(self._size.idle)
        self.row["idle_cpu_share"] = self.row["idle_cpu_s"] / self.row["idle_s"]

    async def _change(self) -> None:
        # Hosts that ack at once show what a change costs in all; those that take a while, what sending costs.
        for name, apply in (("change", 0.0), ("slow_change", _APPLY)):
            self._census.apply = apply
            rows = [await self._one_change() for number in range(self._size.changes)]
            print(json.dumps(rows), flush=True)
            self.row |= {f"{name}_{key}": median(row[key] for row in rows) for key in rows[0]}
        self._census.apply = 0.0

    async def _one_change(self) -> Row:
        self._moves += 1
        encoded = self._first.counted(_ENCODED)
        census, began, before = self._census, time.monotonic(), self._used().cpu
        census.expect(await self._agents[0].report(51820 + self._moves), self._agents, began)
        await _until(lambda: not census.pending)
        delivered = self._used().cpu - before
        await _until(lambda: not census.unacked)
        if not await self._first.converged(census.revision, 30):
            raise RuntimeError("an ack is missing")
        row = {
            "delivered_s": census.delivered,
            "delivered_cpu_s": delivered,
            "acked_s": time.monotonic() - began,
            "acked_cpu_s": self._used().cpu - before,
            "encoded": self._first.counted(_ENCODED) - encoded,
        }
        await asyncio.sleep(2)
        return row

    async def _collapse(self) -> None:
        census, before = self._census, self._census.deltas
        async with self._measured("collapse"), asyncio.TaskGroup() as group:
            reports = []
            for number in range(25):
                reports.append(group.create_task(self._agents[number].report(52000 + number)))
                await asyncio.sleep(0.2)
            revision = max([await report for report in reports])
            census.expect(revision, self._agents, time.monotonic())
            await _until(lambda: not census.unacked)
        self.row["collapse_deltas_per_agent"] = (census.deltas - before) / len(self._agents)

    async def _failover(self) -> None:
        if len(self._controllers) == 1:
            return
        census = self._census
        theirs = sum(agent.port == self._first.mesh_port for agent in self._agents)
        lost = census.lost + theirs
        self._serving = [one for one in self._serving if one is not self._first] or [self._controllers[1]]
        snapshots, before, began = census.snapshots, self._used().cpu, time.monotonic()
        self._first.kill()
        self._first = self._serving[0]
        await _until(lambda: census.lost >= lost)
        await _until(lambda: all(agent.connected for agent in self._agents))
        self.row["failover_s"] = time.monotonic() - began
        print(f"failover: {self.row['failover_s']:.1f} s; streams ended: {census.reasons}", flush=True)
        self.row["failover_cpu_s"] = self._used().cpu - before
        self.row["failover_snapshots"] = census.snapshots - snapshots

    def _used(self) -> Used:
        each = [controller.used() for controller in self._serving]
        return Used(sum(one.cpu for one in each), sum(one.memory for one in each))

    @asynccontextmanager
    async def _measured(self, phase: str) -> "AsyncIterator[Spent]":
        spent = Spent()
        before, began = self._used(), time.monotonic()
        yield spent
        spent.cpu = max(_CLOCK, self._used().cpu - before.cpu)
        spent.wall = time.monotonic() - began
        self.row[f"{phase}_s"], self.row[f"{phase}_cpu_s"] = spent.wall, spent.cpu
        print(f"{phase}: {spent.wall:.1f} s, {spent.cpu:.2f} CPU-s of the controller", flush=True)


@dataclass(slots=True)
class Spent:
    """What a phase took, in seconds: of the clock, and of the controller's processor time."""

    wall: float = 0.0
    cpu: float = 0.0


async def _crowd(work: Callable[..., Awaitable[None]], items: Sequence[Agent] | Sequence[Host]) -> None:
    """Do something with each, AT_ONCE at a time."""
    queue = list(reversed(items))

    async def worker() -> None:
        while queue:
            await work(queue.pop())

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())


async def _until(true: Callable[[], bool], timeout: float = 120.0) -> None:
    async with asyncio.timeout(timeout):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(_STEP)
