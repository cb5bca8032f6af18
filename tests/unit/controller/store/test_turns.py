import asyncio

from overmesh.controller.store.turns import Crowd


async def test_who_comes_alone_goes_on_at_once_and_the_others_together() -> None:
    crowd, order = Crowd(0.05), []

    async def come(name: str) -> None:
        await crowd.go_on()
        order.append(name)

    first = asyncio.create_task(come("first"))
    await first
    others = [asyncio.create_task(come("other")) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert order == ["first"]
    others.append(asyncio.create_task(come("other")))
    await others[0]
    assert order == ["first", *["other"] * 3]
