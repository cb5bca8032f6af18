"""The stores that the suite runs against: a new one joins with a class here and a line in BACKENDS."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from overmesh.controller.store.base import Store
from overmesh.controller.store.sqlite import SqliteStore


class Backend(Protocol):
    """One place to store things in, empty at first."""

    def open(self) -> Store:
        """Return the store there, with what it held before. Not while another is open."""

    async def pass_time(self, store: Store, seconds: float) -> None:
        """Return when so much of the leases' time is over, and what that ends has ended."""


class SqliteBackend:
    """A file, and a clock that only `pass_time` turns."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "store.db"
        self.now = 1000.0

    def open(self) -> SqliteStore:
        return SqliteStore.open(self.path, clock=lambda: self.now)

    async def pass_time(self, store: Store, seconds: float) -> None:
        self.now += seconds
        await store.txn((), ())  # the writer waits in real time: wake it


BACKENDS: dict[str, Callable[[Path], Backend]] = {"sqlite": SqliteBackend}
