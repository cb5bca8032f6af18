"""Group commit, with an etcd that answers when it is told to."""

import asyncio
import gc
from collections.abc import Sequence
from typing import Any

import pytest
from aetcd import rpc

from overmesh.controller.store.base import TXN_LIMIT, Compare, Op, Put, absent
from overmesh.controller.store.etcd.grouping import MAX_BYTES, PATIENCE, Grouping
from overmesh.controller.store.etcd.wire import Wire
from overmesh.errors import LeaseNotFoundError, StoreUnavailableError

WIRE = Wire(b"")


class Etcd:
    """Keeps what is sent to it until `answer`; `taken` are the keys that are there."""

    def __init__(self) -> None:
        self.grouping = Grouping(self._send)
        self.sent: list[Any] = []
        self.taken: set[bytes] = set()
        self._open: list[asyncio.Future[Any]] = []

    async def _send(self, request: Any) -> Any:
        self.sent.append(request)
        self._open.append(asyncio.get_running_loop().create_future())
        return await self._open[-1]

    async def begin(self, *ops: Op, compares: Sequence[Compare] = ()) -> "asyncio.Task[Any]":
        """Begin a transaction."""
        txn = self.grouping.txn(WIRE.txn(compares, ops), compares, ops)
        task = asyncio.ensure_future(txn)
        await settled()
        return task

    async def answer(self, error: Exception | None = None) -> None:
        """Answer all that was sent: by an error, or as the comparisons have it."""
        pending, self._open = self._open, []
        for request, future in zip(self.sent[-len(pending) :], pending, strict=True):
            if error:
                future.set_exception(error)
            else:
                free = all(compare.key not in self.taken for compare in request.compare)
                future.set_result(rpc.TxnResponse(succeeded=free))
        await settled()

    def end(self) -> None:
        """Have all that was sent cancelled, as a loop does when it ends."""
        for future in self._open:
            future.cancel()

    @property
    def written(self) -> list[list[bytes]]:
        """The keys that each request writes."""
        return [[op.request_put.key for op in request.success] for request in self.sent]


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_by_itself_goes_as_it_is_and_tells_why_it_failed() -> None:
    etcd = Etcd()
    etcd.taken.add(b"/a")
    task = await etcd.begin(Put("/a", b""), compares=[absent("/a")])
    assert [len(request.failure) for request in etcd.sent] == [1]
    await etcd.answer()
    assert not (await task).succeeded
    assert len(etcd.sent) == 1


async def test_those_that_come_meanwhile_leave_together() -> None:
    etcd = Etcd()
    tasks = [await etcd.begin(Put(key, b"")) for key in ("/a", "/b", "/c", "/d")]
    assert etcd.written == [[b"/a"]]
    await etcd.answer()
    assert etcd.written[1:] == [[b"/b", b"/c", b"/d"]]
    await etcd.answer()
    assert all([(await task).succeeded for task in tasks])


@pytest.mark.parametrize(
    ("looks", "writes"), [(["/b"], ["/x"]), ([], ["/b"])], ids=["looks at it", "writes it"]
)
async def test_one_that_touches_what_another_writes_waits(looks: list[str], writes: list[str]) -> None:
    etcd = Etcd()
    await etcd.begin(Put("/a", b""))
    await etcd.begin(Put("/b", b""))
    await etcd.begin(*(Put(key, b"") for key in writes), compares=[absent(key) for key in looks])
    await etcd.begin(Put("/c", b""))
    await etcd.answer()
    assert etcd.written[1:] == [[b"/b"]]
    await etcd.answer()
    assert etcd.written[2:] == [[writes[0].encode(), b"/c"]]


async def test_one_that_writes_what_another_looks_at_waits() -> None:
    etcd = Etcd()
    await etcd.begin(Put("/a", b""))
    await etcd.begin(Put("/b", b""), compares=[absent("/x")])
    await etcd.begin(Put("/x", b""))
    await etcd.answer()
    assert etcd.written[1:] == [[b"/b"]]


async def test_no_more_than_etcd_takes() -> None:
    etcd = Etcd()
    await etcd.begin(Put("/a", b""))
    half = TXN_LIMIT // 2
    for some in range(3):
        await etcd.begin(*(Put(f"/{some}/{number}", b"") for number in range(half)))
    await etcd.answer()
    assert [len(keys) for keys in etcd.written] == [1, TXN_LIMIT]
    await etcd.answer()
    assert [len(keys) for keys in etcd.written] == [1, TXN_LIMIT, half]


async def test_no_larger_than_etcd_takes() -> None:
    etcd = Etcd()
    await etcd.begin(Put("/a", b""))
    for key in ("/b", "/c", "/d"):
        await etcd.begin(Put(key, bytes(MAX_BYTES * 2 // 5)))
    await etcd.answer()
    assert etcd.written[1:] == [[b"/b", b"/c"]]


async def test_when_one_does_not_hold_each_goes_by_itself() -> None:
    etcd = Etcd()
    etcd.taken.add(b"/c")
    tasks = [await etcd.begin(Put(key, b""), compares=[absent(key)]) for key in ("/a", "/b", "/c")]
    await etcd.answer()
    await etcd.answer()
    assert etcd.written[2:] == [[b"/b"], [b"/c"]]
    await etcd.answer()
    assert [(await task).succeeded for task in tasks] == [True, True, False]


async def test_when_one_is_refused_each_goes_by_itself() -> None:
    etcd = Etcd()
    tasks = [await etcd.begin(Put(key, b"")) for key in ("/a", "/b", "/c")]
    await etcd.answer()
    await etcd.answer(LeaseNotFoundError("it is gone"))
    assert etcd.written[2:] == [[b"/b"], [b"/c"]]
    await etcd.answer(LeaseNotFoundError("it is gone"))
    for task in tasks[1:]:
        with pytest.raises(LeaseNotFoundError):
            await task


async def test_what_may_have_happened_is_not_sent_again() -> None:
    etcd = Etcd()
    tasks = [await etcd.begin(Put(key, b"")) for key in ("/a", "/b", "/c")]
    await etcd.answer()
    await etcd.answer(StoreUnavailableError("no answer"))
    for task in tasks[1:]:
        with pytest.raises(StoreUnavailableError):
            await task
    assert len(etcd.sent) == 2


async def test_who_has_given_up_is_left_behind() -> None:
    etcd = Etcd()
    await etcd.begin(Put("/a", b""))
    given_up, other = await etcd.begin(Put("/b", b"")), await etcd.begin(Put("/b", b"2"))
    given_up.cancel()
    await settled()
    await etcd.answer()
    assert [op.request_put.value for op in etcd.sent[1].success] == [b"2"]
    await etcd.answer()
    assert (await other).succeeded


async def test_an_error_that_nobody_waits_for_is_nobodys_surprise(caplog: pytest.LogCaptureFixture) -> None:
    etcd = Etcd()
    task = await etcd.begin(Put("/a", b""))
    task.cancel()
    await settled()
    await etcd.answer(StoreUnavailableError("no answer"))
    gc.collect()  # asyncio tells of what was never looked at when it is gone
    assert not caplog.records


async def test_what_ends_with_everything_else_is_nobodys_surprise(caplog: pytest.LogCaptureFixture) -> None:
    etcd = Etcd()
    task = await etcd.begin(Put("/a", b""))
    task.cancel()
    await settled()
    etcd.end()
    await settled()
    assert not caplog.records


async def test_one_that_is_not_answered_does_not_hold_up_the_rest() -> None:
    etcd = Etcd()
    await etcd.begin(Put("/a", b""))
    await etcd.begin(Put("/b", b""))
    await asyncio.sleep(PATIENCE * 2)
    assert etcd.written == [[b"/a"], [b"/b"]]
