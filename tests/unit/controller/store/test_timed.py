import asyncio
from typing import Any

import pytest

from overmesh.controller.store.timed import TimedStore
from overmesh.errors import StoreUnavailableError


class Lagging:
    """A store that has one key, loses requests for another, and never answers for the rest."""

    async def get(self, key: str) -> str:
        if key == "/there":
            return "value"
        if key == "/lost":
            raise StoreUnavailableError("away")
        await asyncio.Event().wait()
        raise AssertionError


async def test_what_came_of_each_request_is_told() -> None:
    took: list[tuple[str, str]] = []
    inner: Any = Lagging()
    store = TimedStore(inner, lambda operation, result, _: took.append((operation, result)))
    await store.get("/there")
    with pytest.raises(StoreUnavailableError):
        await store.get("/lost")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await store.get("/slow")
    assert took == [("get", "ok"), ("get", "StoreUnavailableError"), ("get", "cancelled")]
