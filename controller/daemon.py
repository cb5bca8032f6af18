"""The controller process: start order, background duties, signals, stop order.

store ► root ► mirror ► first network ► ports ► in the map ► agents may come
stop: not serving ► streams end ► servers ► what was said under the lease ► store
"""

import asyncio
import logging
import platform
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from overmesh import __version__, log, metrics, trace
from overmesh.config import JOIN_PORT, ControllerConfig
from overmesh.controller.admin import AdminService
from overmesh.controller.agents import Agents
from overmesh.controller.fleet import ControllersService, Fleet, Here
from overmesh.controller.fleet.controllers import Registration, called, known, reachable, shed_when_cut_off
from overmesh.controller.members.remembered import Remembered
from overmesh.controller.mirror import Mirror
from overmesh.controller.parts import Parts
from overmesh.controller.rotation.resigning import Resigning
from overmesh.controller.rotation.roots import Rotation
from overmesh.controller.rotation.rootwatch import RootWatch
from overmesh.controller.server import JoinService, Listening, MeshService, Servers
from overmesh.controller.serving import process
from overmesh.controller.serving.metrics import Metrics
from overmesh.controller.serving.reachable import own_addresses
from overmesh.controller.store import keys, open_store
from overmesh.controller.store.base import Put, Store, absent
from overmesh.controller.store.history import trim_history
from overmesh.controller.store.timed import TimedStore
from overmesh.controller.trust import CERTIFICATE_LIFETIMES, MeshRoot
from overmesh.controller.trust.certificates import ServerCertificates
from overmesh.controller.trust.rootfiles import load_or_create
from overmesh.errors import (
    ConfigError,
    PermissionMissingError,
    StateError,
    StoreUnavailableError,
    UnreachableError,
)

GRACE = 2.0
_TRIM_EVERY = 60.0
_SWEEP_EVERY = 600.0

_HOST_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")

_log = logging.getLogger("overmesh.controller")


def run(config: ControllerConfig) -> None:
    """Be a controller until SIGTERM or SIGINT.

    Raises:
        OvermeshError: it can't start, or lost its store.

    """
    log.setup(config.log_format)
    process.run(_run(config))


async def _run(config: ControllerConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(config) as controller:
        sparing = asyncio.create_task(process.spare_the_old())
        await controller.until(stop)
        sparing.cancel()
        _log.info("controller stops")


@dataclass(frozen=True, slots=True)
class Controller:
    """A controller that answers."""

    listening: Listening
    root: MeshRoot
    mirror: Mirror
    agents: Agents
    duties: "set[asyncio.Task[Any]]"

    async def until(self, stop: asyncio.Event) -> None:
        """Return when `stop` is set; raise what ended one of the duties."""
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait({stopped, *self.duties}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for duty in done & self.duties:
            duty.result()


@asynccontextmanager
async def running(
    config: ControllerConfig, clock: Callable[[], float] = time.time
) -> AsyncIterator[Controller]:
    """Run a controller for the length of a block.

    Args:
        config: its settings.
        clock: unix seconds.

    Raises:
        OvermeshError: it can't start; nothing is left behind.

    """
    async with AsyncExitStack() as undo:
        # Settings that can't be right end it before there is anything in the store for others to see.
        advertised = tuple(map(_host, config.advertise))
        _make_state_dir(config)
        numbers = Metrics()
        parts, following = await _on_the_store(undo, config, numbers, clock)
        remembered = await _remembered(undo, config, parts)

        hosts = advertised or _own_hosts(parts.mirror)
        certificates = ServerCertificates(parts.root, lambda: parts.mirror.roots, hosts, clock)
        servers = Servers(numbers.answered, parts.contact.current)
        undo.push_async_callback(servers.stop, GRACE)
        listening = servers.listen(
            config.listen,
            config.join_port,
            config.mesh_port,
            config.socket,
            lambda mutual: certificates.credentials(mutual=mutual),
        )
        registration = await _in_the_map(parts, hosts, listening)
        here = Here(parts.mirror, parts.agents, parts.contact, called(registration.record), clock)
        fleet = Fleet(parts.mirror, parts.root, registration.record, here)
        watch, rotation = _rotating(config, parts, fleet, registration)
        await servers.start(
            JoinService(parts, lambda: reachable(parts.mirror, registration.record), numbers.joined),
            MeshService(parts, remembered, numbers.acked),
            ControllersService(here),
            AdminService(parts, fleet, rotation, _join_target(hosts, listening)),
        )
        stopping = UnreachableError("the controller is stopping", "try again")
        undo.callback(parts.agents.finish_all, stopping)
        undo.push_async_callback(servers.drain)
        own = (certificates.keep_fresh(), watch.follow(), registration.keep(), remembered.keep())
        duties = {following, *(_duty(undo, duty) for duty in (*own, *_chores(parts)))}
        numbers.watch(parts.mirror, parts.agents, parts.lease)
        _log.info("controller ready", extra=_event(listening, parts.root, parts.mirror))
        yield Controller(listening, parts.root, parts.mirror, parts.agents, duties)


async def _on_the_store(
    undo: AsyncExitStack, config: ControllerConfig, numbers: Metrics, clock: Callable[[], float]
) -> "tuple[Parts, asyncio.Task[Any]]":
    """Return the parts, whose mirror has a network at least, and the duty that keeps it as the store is."""
    store = TimedStore(open_store(config.store_target), numbers.store_took)
    undo.push_async_callback(store.close)
    undo.enter_context(metrics.served(config.metrics, numbers.registry))
    undo.enter_context(trace.tracing(config.trace, "controller"))
    root = await _root(config, store, clock)
    parts = Parts.of(store, root, clock, platform.node())
    await parts.mirror.load()
    following = _duty(undo, parts.mirror.follow())
    undo.push_async_callback(parts.lease.end)
    await parts.membership.ensure_network(config.ranges)
    return parts, following


async def _remembered(undo: AsyncExitStack, config: ControllerConfig, parts: Parts) -> Remembered:
    """Return what is known of revocations beside the store, which has them all again."""
    remembered = Remembered(parts.mirror, parts.revocations, config.state_dir, parts.clock)
    remembered.load()
    await remembered.restore()
    undo.push_async_callback(remembered.end)
    return remembered


def _rotating(
    config: ControllerConfig, parts: Parts, fleet: Fleet, registration: Registration
) -> tuple[RootWatch, Rotation]:
    """Return what rotates the mesh root, here and on command."""
    mirror, root, signer = parts.mirror, parts.root, parts.signer
    resigning = Resigning(parts.store, mirror, root, signer)
    watch = RootWatch(mirror, root, resigning, config.state_dir, registration.enter)
    return watch, Rotation(mirror, root, signer, parts.tokens, fleet, resigning, watch, config.state_dir)


def _chores(parts: Parts) -> Iterator[Coroutine[Any, Any, None]]:
    """Yield what has to be done all the time; all controllers may do it at once."""
    yield parts.presence.keep_written()
    yield parts.lease.keep_alive()
    yield shed_when_cut_off(parts.lease, lambda: len(known(parts.mirror)) > 1, parts.agents)
    yield _every(_TRIM_EVERY, lambda: trim_history(parts.store))
    for sweep in (parts.tokens.sweep, parts.revocations.sweep, parts.pending.sweep, parts.clones.sweep):
        yield _every(_SWEEP_EVERY, sweep)
    yield _every(_SWEEP_EVERY, parts.audit.trim)


def _make_state_dir(config: ControllerConfig) -> None:
    try:
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionMissingError(
            f"{config.state_dir} can't be made: {error.strerror}", "run as root, or name another state_dir"
        ) from None


async def _root(config: ControllerConfig, store: Store, clock: Callable[[], float]) -> MeshRoot:
    """Return the mesh root, and make sure that this store is its."""
    if await store.get(keys.IMPORTING):
        raise StateError("an import into this store has not finished", "run `meshctl store import` again")
    kv = await store.get(keys.ROOT_PIN)
    if config.certificate_lifetime not in CERTIFICATE_LIFETIMES:
        raise ConfigError(
            f"certificate_lifetime: {config.certificate_lifetime} seconds can't be",
            f"say {CERTIFICATE_LIFETIMES[0]} to {CERTIFICATE_LIFETIMES[-1]}",
        )
    held = load_or_create(config.state_dir, kv.value if kv else None)
    root = MeshRoot(*held, lifetime=config.certificate_lifetime, clock=clock)
    if kv:
        root.sign_with(kv.value)
    else:
        put = Put(keys.ROOT_PIN, root.pin)
        made = await store.txn([absent(keys.ROOT_PIN), absent(keys.IMPORTING)], [put])
        pinned = await store.get(keys.ROOT_PIN)
        if not made.succeeded and not (pinned and pinned.value == root.pin):
            raise StateError("another controller has just started on this store with a root of its own")
    return root


def _duty(undo: AsyncExitStack, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[Any]":
    """Start a task that is ended when the controller stops."""
    task = asyncio.create_task(coroutine)

    async def end() -> None:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen: `until` has raised it, or it no longer matters

    undo.push_async_callback(end)
    return task


async def _every(seconds: float, duty: Callable[[], Coroutine[Any, Any, None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await duty()
        except StoreUnavailableError as error:
            _log.warning("a background duty has to wait", extra={"reason": error.cause})


def _host(text: str) -> str:
    """Return a setting of `advertise` that can be in a certificate and be connected to."""
    try:
        return str(ip_address(text))
    except ValueError:
        pass
    if all(_HOST_LABEL.fullmatch(label) for label in text.split(".")):
        return text
    raise ConfigError(
        f"advertise: {text!r} is neither a host name nor an IP address", "write it without a port"
    )


def _own_hosts(mirror: Mirror) -> tuple[str, ...]:
    overlays = (cidr for view in mirror.networks if view.usable for cidr in view.network.ranges)
    return tuple(map(str, own_addresses(overlays))) or ("localhost",)


async def _in_the_map(parts: Parts, hosts: Sequence[str], listening: Listening) -> Registration:
    mesh, join = (
        [_target(host, port) for host in hosts] for port in (listening.mesh_port, listening.join_port)
    )
    registration = Registration(parts.mirror, parts.lease, parts.root, mesh, join)
    await registration.enter()
    return registration


def _target(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _join_target(hosts: tuple[str, ...], listening: Listening) -> str:
    """Return what a user types after `meshctl join`: the port only when it is not the usual one."""
    return hosts[0] if listening.join_port == JOIN_PORT else _target(hosts[0], listening.join_port)


def _event(listening: Listening, root: MeshRoot, mirror: Mirror) -> dict[str, Any]:
    return {
        "version": __version__,
        "listen": listening.host,
        "join_port": listening.join_port,
        "mesh_port": listening.mesh_port,
        "socket": listening.socket,
        "root": root.pin.hex()[:16],
        "revision": mirror.revision,
        "networks": len(mirror.networks),
    }
