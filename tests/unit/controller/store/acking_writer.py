"""A controller to be killed: writes as fast as it can, and prints what it was told is durable."""

import asyncio
import os
import sys

from overmesh.controller.store.base import Put
from overmesh.controller.store.sqlite import SqliteStore

CALLERS = 8


async def write_for_ever(store: SqliteStore, caller: int) -> None:
    number = 0
    while True:
        number += 1
        key, value = f"/{caller}", f"{os.getpid()}.{number}"
        result = await store.txn((), [Put(key, value.encode()), Put(f"{key}/last", value.encode())])
        os.write(1, f"{result.revision} {key} {value}\n".encode())  # one write: a line is whole or not there


async def main(path: str) -> None:
    store = SqliteStore.open(path)
    await asyncio.gather(*(write_for_ever(store, caller) for caller in range(CALLERS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
