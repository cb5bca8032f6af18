"""The stores that the suite runs against: a new one joins with a class here and a line in BACKENDS."""

import asyncio
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import grpc.aio
from aetcd import rpc

from overmesh.controller.store import open_store
from overmesh.controller.store.base import Store
from overmesh.controller.store.sqlite import SqliteStore
from tests.etcd import needs_etcd, shared


class Backend(Protocol):
    """One place to store things in, empty at first."""

    # A time that a lease lives, in seconds, such that a test can see the end of it.
    ttl: float
    # Whether any time passes at once.
    turns_the_clock: bool
    # Whether a compaction can take from a watch what it has not told yet.
    may_be_overtaken: bool

    def open(self) -> Store:
        """Return the store there, with what it held before. Not while another is open."""

    async def pass_time(self, store: Store, seconds: float) -> None:
        """Return when so much of the leases' time is over."""

    async def expire(self, store: Store, seconds: float) -> None:
        """Return when so much of the leases' time is over, and what that ends has ended."""


class SqliteBackend:
    """A file, and a clock that only `pass_time` turns."""

    ttl = 10.0
    turns_the_clock = True
    may_be_overtaken = False

    def __init__(self, directory: Path) -> None:
        self.path = directory / "store.db"
        self.now = 1000.0

    def open(self) -> SqliteStore:
        return SqliteStore.open(self.path, clock=lambda: self.now)

    async def pass_time(self, store: Store, seconds: float) -> None:
        self.now += seconds
        await store.txn((), ())  # the writer waits in real time: wake it

    expire = pass_time


class EtcdBackend:
    """A prefix of its own in an etcd that all tests share, with its real time."""

    ttl = 2.0
    turns_the_clock = False
    may_be_overtaken = True
    _prefixes = count()

    def __init__(self, _: Path) -> None:
        needs_etcd()
        self.target = f"etcd://{shared()}/test{next(self._prefixes):06}/"

    def open(self) -> Store:
        return open_store(self.target)

    async def pass_time(self, store: Store, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def expire(self, store: Store, seconds: float) -> None:
        await asyncio.sleep(seconds)
        async with grpc.aio.insecure_channel(shared()) as channel:
            while await self._overdue(rpc.LeaseStub(channel)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def _overdue(self, leases: Any) -> bool:
        """Tell whether a lease has less than a second left; etcd looks twice a second."""
        for lease in (await leases.LeaseLeases(rpc.LeaseLeasesRequest())).leases:
            status = await leases.LeaseTimeToLive(rpc.LeaseTimeToLiveRequest(ID=lease.ID))
            if status.grantedTTL == self.ttl and status.TTL <= 0:
                return True
        return False


BACKENDS: dict[str, Callable[[Path], Backend]] = {"sqlite": SqliteBackend, "etcd": EtcdBackend}
