"""The contract once more, as naively as it can be said: a copy of everything for every revision."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from overmesh.controller.store.base import Compare, Delete, Event, KeyValue, Op, Put, Target, WatchBatch


@dataclass
class Model:
    """`states[r]` is what was true at revision r, `log` what changed since `first`."""

    first: int
    compacted: int = 0
    now: float = 0
    states: dict[int, dict[str, KeyValue]] = field(default_factory=dict)
    log: list[WatchBatch] = field(default_factory=list)
    ttls: dict[int, float] = field(default_factory=dict)
    deadlines: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.states[self.first] = {}

    @property
    def revision(self) -> int:
        return max(self.states)

    @property
    def current(self) -> dict[str, KeyValue]:
        return self.states[self.revision]

    def holds(self, compare: Compare) -> bool:
        kv = self.current.get(compare.key)
        if compare.target is Target.VALUE:
            return kv is not None and kv.value == compare.operand
        if kv is None:
            return compare.operand == 0
        truth = {Target.CREATE: kv.create_revision, Target.MOD: kv.mod_revision, Target.VERSION: kv.version}
        return truth[compare.target] == compare.operand

    def apply(self, ops: Sequence[Op]) -> None:
        state, revision, events = dict(self.current), self.revision + 1, []
        for op in ops:
            old = state.pop(op.key, None)
            if isinstance(op, Put):
                created, version = (old.create_revision, old.version + 1) if old else (revision, 1)
                state[op.key] = KeyValue(op.key, op.value, created, revision, version, op.lease)
            if old or isinstance(op, Put):
                events.append(Event(op.key, state.get(op.key)))
        if events:
            self.states[revision] = state
            self.log.append(WatchBatch(revision, tuple(events)))

    def range(self, prefix: str, after: str, revision: int) -> list[KeyValue]:
        state = self.states[revision or self.revision]
        return [state[key] for key in sorted(state) if key.startswith(prefix) and key > after]

    def watched(self, prefix: str, start: int) -> list[WatchBatch]:
        relevant = [
            WatchBatch(batch.revision, tuple(event for event in batch.events if event.key.startswith(prefix)))
            for batch in self.log
            if batch.revision >= start
        ]
        return [batch for batch in relevant if batch.events]

    def revoke(self, lease: int) -> None:
        del self.ttls[lease], self.deadlines[lease]
        self.apply([Delete(key) for key, kv in sorted(self.current.items()) if kv.lease == lease])

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for lease, deadline in sorted(self.deadlines.items(), key=lambda item: item[1]):
            if deadline <= self.now:
                self.revoke(lease)

    def restart(self) -> None:
        self.deadlines = {lease: self.now + ttl for lease, ttl in self.ttls.items()}
