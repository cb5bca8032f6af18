import asyncio

import pytest

from overmesh.controller.store.base import WatchBatch
from overmesh.controller.store.feed import Feed
from overmesh.errors import StoreUnavailableError


def batches(*revisions: int) -> list[WatchBatch]:
    return [WatchBatch(revision, ()) for revision in revisions]


async def test_what_has_arrived_comes_before_the_end() -> None:
    feed = Feed()
    feed.extend(batches(1, 2))
    feed.end(StoreUnavailableError("first"))
    feed.end(StoreUnavailableError("second"))
    feed.extend(batches(3))
    assert [await anext(feed), await anext(feed)] == batches(1, 2)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="first"):
            await anext(feed)


async def test_a_waiting_reader_wakes() -> None:
    feed = Feed()
    reading = asyncio.ensure_future(anext(feed))
    await asyncio.sleep(0)
    assert not reading.done()
    feed.extend(batches(1, 2))
    assert [await reading, await anext(feed)] == batches(1, 2)


async def test_closing_drops_the_rest_and_wakes_the_reader() -> None:
    feed = Feed()
    reading = asyncio.ensure_future(anext(feed))
    await asyncio.sleep(0)
    await feed.aclose()
    with pytest.raises(StopAsyncIteration):
        await reading
    assert feed.ended
    assert [batch async for batch in feed] == []
