"""The contract's values as etcd's messages, and back. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from aetcd import rpc

from overmesh.controller.store.base import Compare, Event, KeyValue, Op, Put, Target, WatchBatch

_TARGETS: dict[Target, tuple[Any, str]] = {
    Target.CREATE: (rpc.Compare.CREATE, "create_revision"),
    Target.MOD: (rpc.Compare.MOD, "mod_revision"),
    Target.VERSION: (rpc.Compare.VERSION, "version"),
    Target.VALUE: (rpc.Compare.VALUE, "value"),
}
# As a range's end: no end. As its start: before every key.
_ZERO = b"\0"


@dataclass(frozen=True, slots=True)
class Wire:
    """Translates for one prefix: the contract's keys come after it in etcd's."""

    prefix: bytes

    def key(self, key: str) -> bytes:
        """Return etcd's name of a key.

        Raises:
            ValueError: it is not ASCII.

        """
        if not key.isascii():
            raise ValueError(f"not a key: {key!r}")
        return self.prefix + key.encode()

    def span(self, prefix: str, after: str = "") -> tuple[bytes, bytes]:
        """Return etcd's start and end (exclusive) of the keys under a prefix, those after a key only."""
        start = self.key(prefix)
        end = start[:-1] + bytes([start[-1] + 1]) if start else _ZERO
        return max(start or _ZERO, self.key(after) + _ZERO if after else b""), end

    def page(self, prefix: str, after: str, limit: int, revision: int) -> list[Any]:
        """Return the operations of a read.

        What etcd calls compacted is still readable at that very revision, though deletes at it may be
        forgotten. To us it is gone: asking for the revision before makes etcd refuse.
        """
        start, end = self.span(prefix, after)
        ops = [rpc.RangeRequest(key=start, range_end=end, limit=limit, revision=revision)]
        if revision > 1:
            ops.append(rpc.RangeRequest(key=start, count_only=True, revision=revision - 1))
        return [rpc.RequestOp(request_range=op) for op in ops]

    def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> Any:
        """Return the transaction; when a comparison fails, it tells how the compared keys are."""
        compared = dict.fromkeys(compare.key for compare in compares)
        seen = [rpc.RangeRequest(key=self.key(key), keys_only=True) for key in compared]
        return rpc.TxnRequest(
            compare=[self._compare(compare) for compare in compares],
            success=[self._op(op) for op in ops],
            failure=[rpc.RequestOp(request_range=request) for request in seen],
        )

    def _compare(self, compare: Compare) -> Any:
        target, field = _TARGETS[compare.target]
        return rpc.Compare(
            result=rpc.Compare.EQUAL, target=target, key=self.key(compare.key), **{field: compare.operand}
        )

    def _op(self, op: Op) -> Any:
        if isinstance(op, Put):
            put = rpc.PutRequest(key=self.key(op.key), value=op.value, lease=op.lease)
            return rpc.RequestOp(request_put=put)
        return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=self.key(op.key)))

    def key_value(self, kv: Any) -> KeyValue:
        """Return a key as the contract has it."""
        key = kv.key[len(self.prefix) :].decode("ascii", "replace")
        return KeyValue(key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)

    def batches(self, events: Sequence[Any]) -> Iterator[WatchBatch]:
        """Return a watch response's events, by revision; etcd never splits one over two responses."""
        for revision, changes in groupby(events, key=attrgetter("kv.mod_revision")):
            yield WatchBatch(revision, tuple(self._event(change) for change in changes))

    def _event(self, change: Any) -> Event:
        kv = self.key_value(change.kv)
        return Event(kv.key, None if change.type == change.DELETE else kv)


def made_a_change(response: Any) -> bool:
    """Tell whether a transaction's answer stands for a new revision."""
    return any(
        answer.HasField("response_put") or answer.response_delete_range.deleted
        for answer in response.responses
    )


def newest_seen(response: Any) -> int:
    """Return the latest revision of the keys that a failed transaction tells of; 0: all are absent."""
    kvs = (kv for answer in response.responses for kv in answer.response_range.kvs)
    return max((int(kv.mod_revision) for kv in kvs), default=0)
