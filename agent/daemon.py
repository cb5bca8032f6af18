"""The agent: makes this host match its map, and keeps it so.

    sync --------- the map changed -----------+
    fastpath ----- came up, went away --------+--> reconcile: view -> desire -> plan -> apply
    netlink ------ a link, an address --------+
    clock -------- every RECHECK seconds -----+
    service ------ meshctl asks: status, ping, wait, leave

Stopping the agent leaves the interface, its routes and the fastpath in place: traffic flows on, and
the next agent takes them over. `meshctl leave` takes all of it down.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address

from prometheus_client import Histogram

from overmesh import __version__, metrics, trace
from overmesh import log as logs
from overmesh.agent import netlink as rtnetlink
from overmesh.agent.apply import reconcile
from overmesh.agent.calls import Left, part
from overmesh.agent.desired import Desired, Made, Own, desire
from overmesh.agent.endpoints import candidates, configured
from overmesh.agent.fastpath import Fastpath
from overmesh.agent.host import Underlay
from overmesh.agent.metrics import gather
from overmesh.agent.netlink import Netlink
from overmesh.agent.peermap import Held, Replica, View
from overmesh.agent.preflight import check_host, check_ports, host_id, lanes
from overmesh.agent.rekeying import Rekeying
from overmesh.agent.renewal import Renewal
from overmesh.agent.reporting import Facts
from overmesh.agent.service import Service, serve
from overmesh.agent.state import Identity, StateDir
from overmesh.agent.sync import Sync
from overmesh.config import AgentConfig
from overmesh.errors import CorruptStateError, FastpathError, HostError, OvermeshError, RecordError
from overmesh.model import Address, Endpoint, Problem

# How often the host is looked at though nothing is known to have changed.
RECHECK = 10.0
# Changes come in groups; one look after the last of them is enough.
SETTLE = 0.1

_COPIED = "another machine has this host's keys; no packets until a controller takes this one for the node"

log = logging.getLogger("overmesh.agent")


@dataclass(frozen=True, slots=True)
class Current:
    """What was true at the last look."""

    view: View
    desired: Desired
    endpoints: tuple[Endpoint, ...]
    problems: tuple[Problem, ...]


class Agent:
    """One host's agent, between its start and its end."""

    def __init__(self, config: AgentConfig, state: StateDir, identity: Identity, netlink: Netlink) -> None:
        self.config = config
        self.replica, self._damaged = _replica(state, identity)
        self.fastpath = Fastpath(config, state.path / "fastpath.log", self.wake)
        self.sync = Sync(identity, host_id(config), self.replica, state, self.apply)
        self.renewal = Renewal(self.sync, self.replica)
        self.rekeying = Rekeying(self.sync, self.replica, state, self.apply, self._goes_by)
        self._lanes = lanes(config)
        self.numbers = metrics.registry()
        self._apply_seconds = Histogram(
            "overmesh_apply_seconds", "Time to make the host match its map", registry=self.numbers
        )
        self.current: Current | None = None
        self.applied = asyncio.Condition()
        self.left = False
        self.sync.contact.confirmed = state.map_time()
        self._state = state
        self._netlink = netlink
        self._made = Made()
        self._tasks: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._turn = asyncio.Lock()

    @property
    def identity(self) -> Identity:
        """Who this host is, with its present certificate."""
        return self.sync.identity

    def wake(self) -> None:
        """Have the host looked at soon."""
        self._wake.set()

    def stop(self) -> None:
        """Have the agent end; what it set up stays."""
        self._stop.set()

    async def run(self) -> None:
        """Work until stopped.

        Raises:
            HostError: from the start this host can't be what its map says.

        """
        # The interface first: the fastpath attaches to it, and a host that can't have one should say so now.
        await self._reconcile()
        async with asyncio.TaskGroup() as group:
            self._tasks = [
                group.create_task(work)
                for work in (
                    self.fastpath.run(),
                    self.sync.run(),
                    self.renewal.run(),
                    self.rekeying.run(),
                    self._keep_matching(),
                    self._follow_host(),
                )
            ]
            await self._stop.wait()
            for task in self._tasks:
                task.cancel()

    # Reconciling.

    async def apply(self) -> Sequence[Problem]:
        """Make the host match the replica now; return every problem with either."""
        try:
            with self._apply_seconds.time():
                await self._reconcile()
        except OvermeshError as error:
            if self.current:
                problems = (*self.current.view.problems, Problem("host", error.cause))
                self._note(replace(self.current, problems=problems))
        return self.problems

    async def _reconcile(self) -> None:
        async with self._turn:
            if self.left:
                return
            underlay = await self._netlink.underlay()
            view = self.replica.view(time.time())
            endpoints = await self._endpoints(underlay)
            own = Own(endpoints, *self.rekeying.private_keys, lanes=self._lanes)
            usable = replace(view.map, peers=()) if self.sync.contact.copied else view.map
            desired = desire(usable, self.config, underlay, own, self._made)
            done = await reconcile(desired, underlay, self._netlink, self.fastpath)
            self._note(Current(view, desired, endpoints, (*view.problems, *done.problems)))
            await self._report()
        async with self.applied:
            self.applied.notify_all()

    async def _goes_by(self, keys: tuple[bytes, bytes]) -> bool:
        """Tell whether the fastpath has these keys, or needs none."""
        state = await self.fastpath.applied()
        return state is not None and (state.private_key, state.other_private_key) in (keys, (b"", b""))

    def _note(self, now: Current) -> None:
        before = set(self.current.problems) if self.current else set()
        for problem in now.problems:
            if problem not in before:
                log.warning("problem", extra={"subject": problem.subject, "reason": problem.reason})
        self.current = now

    @property
    def revision(self) -> int:
        """Of the map that is in force on this host; 0: none yet."""
        return self.current.view.map.revision if self.current else 0

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that is not as it should be, by name."""
        # A map that was damaged on disk is one no more once there is another.
        damaged = () if self.replica.revision else self._damaged
        host = self.current.problems if self.current else ()
        keys = self.rekeying.problems(self.current.view.map.me) if self.current else ()
        return (*damaged, *self._copied(), *keys, *host, *self.sync.problems, *self.renewal.problems)

    def _copied(self) -> Iterator[Problem]:
        contact = self.sync.contact
        if contact.copied:
            yield Problem("identity", f"{_COPIED}: {contact.advice}" if contact.advice else _COPIED)

    async def _endpoints(self, underlay: Underlay) -> tuple[Endpoint, ...]:
        port = self.config.port_in(self.replica.network.mode)
        if self.config.endpoints:
            return configured(self.config.endpoints, port)
        return candidates(underlay, port, await self._sources())

    async def _sources(self) -> list[Address]:
        """Return the addresses from which this host reaches its controllers."""
        found = []
        for target in self.sync.controllers:
            # A controller known by name is not looked up here: this has to work without DNS.
            with suppress(ValueError):
                source = await self._netlink.source_toward(ip_address(target.rpartition(":")[0].strip("[]")))
                found += [source] if source else []
        return found

    async def _report(self) -> None:
        if self.current is None or not self.fastpath.running:
            return
        with suppress(FastpathError):
            stats = await self.fastpath.itself()
            mtu = self.current.desired.mtu
            self.sync.report(
                Facts(self.current.endpoints, stats.backend, stats.backend_reason, mtu, max(stats.lanes, 1))
            )

    async def _keep_matching(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RECHECK):
                    await self._wake.wait()
            self._wake.clear()
            await self.apply()

    async def _follow_host(self) -> None:
        while True:
            # It ends when more changed at once than the kernel keeps for us: then look, and listen again.
            with suppress(HostError, OSError):
                await self._listen_to_host()
            self.wake()
            await asyncio.sleep(SETTLE)

    async def _listen_to_host(self) -> None:
        loop = asyncio.get_running_loop()
        due = 0.0
        async with rtnetlink.changes() as changes:
            async for _ in changes:
                if loop.time() >= due:
                    due = loop.time() + SETTLE
                    loop.call_at(due, self.wake)

    # Leaving.

    async def leave(self, *, force: bool) -> Left:
        """Leave the mesh: tell the controller, take down what is ours, wipe what is kept, and stop.

        Args:
            force: go on though no controller could be told.

        Raises:
            MeshError: none could be, and force was not given; nothing has changed.

        """
        left = await part(self.sync.identity, self.sync.host_id, self.sync.instance, force=force)
        async with self._turn:
            self.left = True
            with suppress(FastpathError):
                await self.fastpath.shutdown()
            for task in self._tasks:
                task.cancel()
            await self._netlink.delete_tun(self.config.interface)
            self._state.wipe()
        log.info("left the mesh", extra={"told_controller": left.told, "copy_of": left.copy_of})
        self.stop()
        return left


def _replica(state: StateDir, identity: Identity) -> tuple[Replica, tuple[Problem, ...]]:
    """Return the replica as the last process left it; a damaged map is fetched anew, and said to be."""
    problems: tuple[Problem, ...] = ()
    try:
        held = state.map()
    except CorruptStateError as error:
        log.warning("the map on disk is damaged; waiting for a controller", extra={"reason": error.cause})
        held, problems = Held(), (Problem("map.json", error.cause),)
    mine = identity.membership
    try:
        return Replica(identity.roots, mine.network, mine.node_id, mine.node, held), problems
    except RecordError as error:
        raise state.corrupt("membership.json", f"its records do not verify: {error.cause}") from None


async def run(config: AgentConfig) -> None:
    """Be this host's agent until SIGTERM or SIGINT.

    Raises:
        NotJoinedError: this host is no member yet.
        CorruptStateError: what it keeps can't be used.
        HostError: it can't be what its map says.

    """
    logs.setup(config.log_format)
    check_host(config)
    async with AsyncExitStack() as stack:
        state = StateDir(config.state_dir)
        stack.enter_context(state.locked())
        identity = state.identity()
        netlink = await stack.enter_async_context(Netlink.open())
        agent = Agent(config, state, identity, netlink)
        check_ports(config, agent.replica.network.mode)
        service = Service(agent)
        await stack.enter_async_context(serve(service, config.socket))
        agent.numbers.register(metrics.Gathered(lambda: gather(service)))
        stack.enter_context(metrics.served(config.metrics, agent.numbers))
        stack.enter_context(trace.tracing(config.trace, "agent"))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, agent.stop)
        log.info("agent started", extra={"node": identity.membership.name, "version": __version__})
        await agent.run()
        log.info("agent stopped" if agent.left else "agent stopped; traffic flows on")
