"""A host changes its keys, with a real controller, crashes everywhere, and a clock to turn."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from overmesh.agent import state as states
from overmesh.agent.keychange import KeyChange, Stage
from overmesh.agent.rekeying import Rekeying
from overmesh.agent.state import StateDir
from overmesh.config import AgentConfig
from overmesh.errors import (
    CorruptStateError,
    FastpathError,
    InvalidError,
    RemovedError,
    StateError,
    UnreachableError,
)
from overmesh.files import replace_file
from overmesh.model import Node, node_key
from overmesh.proto.signed import read
from tests.unit.agent.conftest import Mesh, host, joined
from tests.unit.agent.test_sync import Member, following, in_step, until
from tests.unit.agent.world import node

GRACE = 60
START = 2_000_000_000.0


class Rig:
    """A member's agent as far as its keys go; made again from the same directory, it is the next process."""

    def __init__(self, mesh: Mesh, config: AgentConfig) -> None:
        self.mesh = mesh
        self.now = START
        self.member = Member(config)
        self.has_fastpath = True
        self.in_fastpath: list[tuple[bytes, bytes]] = []
        self.rekeying = Rekeying(
            self.member.sync,
            self.member.replica,
            self.member.state,
            self.apply,
            self.holds,
            lambda: self.now,
        )

    async def apply(self) -> Sequence[object]:
        keys = self.rekeying.private_keys
        if self.has_fastpath and self.in_fastpath[-1:] != [keys]:
            self.in_fastpath.append(keys)
        return ()

    async def holds(self, keys: tuple[bytes, bytes]) -> bool:
        return self.has_fastpath and self.in_fastpath[-1] == keys

    @property
    def record(self) -> Node:
        """This host as all others see it now."""
        mine = self.member.identity.membership
        signed = self.mesh.controller.mirror.held("nodes", "mesh")[mine.node_id].value
        record = read(node_key(mine.node_id), signed)
        assert isinstance(record, Node)
        return record

    def check(self) -> None:
        """See that whoever goes by the record, or by the one before, reaches this host, and it them."""
        first, other = (public(key) for key in self.rekeying.private_keys)
        named = {self.record.public_key, self.record.previous_public_key} - {b""}
        assert first in named, "others know whom this host begins as"
        assert named <= {first, other}, "it takes what others begin with"


def public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw() if private else b""


@pytest.fixture
async def rig(mesh: Mesh, tmp_path: Path) -> Rig:
    await joined(mesh, host(tmp_path, "a"))
    return Rig(mesh, host(tmp_path, "a"))


async def test_the_way_from_one_key_to_the_next(rig: Rig) -> None:
    old = rig.member.identity.keys
    await rig.rekeying.begin(GRACE)
    change = rig.rekeying.change
    assert change
    assert (change.stage, change.until) == (Stage.ANNOUNCED, START + GRACE)
    assert (rig.record.public_key, rig.record.previous_public_key) == (change.public, old.public)
    rig.check()
    assert rig.member.replica.view(START).map.me == rig.record
    identity = rig.member.state.identity()
    assert identity.keys.tls.private_numbers() == change.tls.private_numbers()
    assert identity.keys.public == old.public

    rig.now += GRACE - 1
    await rig.rekeying.advance()
    assert rig.rekeying.change
    rig.now += 1
    await rig.rekeying.advance()
    assert rig.rekeying.change is None
    assert (rig.record.public_key, rig.record.previous_public_key) == (change.public, b"")
    rig.check()
    identity = rig.member.state.identity()
    assert identity.keys.public == change.public
    assert identity.membership.keys_since == int(rig.now)
    before, after = old.noise.private_bytes_raw(), change.noise.private_bytes_raw()
    assert rig.in_fastpath == [(before, after), (after, before), (after, b"")]
    assert not (rig.member.state.path / "keychange.json").exists()


class _Crash(BaseException):
    """The process is gone."""


def crash_at(monkeypatch: pytest.MonkeyPatch, write: int) -> None:
    """Let the process end just before the directory is written to for the so-manieth time."""
    left = write

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _Crash

    def replaced(path: Path, data: bytes) -> None:
        count()
        replace_file(path, data)

    def forgotten(self: StateDir) -> None:
        count()
        (self.path / "keychange.json").unlink(missing_ok=True)

    monkeypatch.setattr(states, "replace_file", replaced)
    monkeypatch.setattr(StateDir, "forget_key_change", forgotten)


async def change_keys(rig: Rig) -> None:
    """Change the keys, or go on with it."""
    if rig.rekeying.change is None:
        await rig.rekeying.begin(GRACE)
    else:
        await rig.rekeying.advance()
    rig.now += GRACE
    await rig.rekeying.advance()


async def test_a_crash_at_any_write_leaves_a_host_that_works_and_goes_on(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = host(tmp_path, "a")
    await joined(mesh, config)
    writes = 0
    while True:
        with monkeypatch.context() as patch:
            crash_at(patch, writes)
            with suppress(_Crash):
                await change_keys(Rig(mesh, config))
                break
        rig = Rig(mesh, config)
        rig.check()
        if rig.rekeying.change:
            rig.now += GRACE
            await change_keys(rig)
            rig.check()
            assert rig.record.previous_public_key == b""
        assert rig.member.state.key_change() is None
        writes += 1
    assert writes > 10


async def test_a_controller_that_is_away_is_waited_for(rig: Rig) -> None:
    mine = rig.member.sync.identity
    away = replace(mine.membership, controllers=("127.0.0.1:9",))
    rig.member.sync.identity = replace(mine, membership=away)
    with pytest.raises(UnreachableError) as raised:
        await rig.rekeying.begin(GRACE)
    assert "goes on by itself" in raised.value.fix
    rig.check()
    assert rig.rekeying.failure
    rig.member.sync.identity = mine
    await rig.rekeying.advance()
    assert rig.rekeying.failure == ""
    assert rig.record.public_key == (rig.rekeying.change and rig.rekeying.change.public)


async def test_nobody_is_told_before_the_fastpath_has_the_key(rig: Rig) -> None:
    rig.has_fastpath = False
    with pytest.raises(FastpathError):
        await rig.rekeying.begin(GRACE)
    assert rig.record.previous_public_key == b""
    rig.check()


async def test_the_stream_goes_on_with_the_new_tls_key(mesh: Mesh, rig: Rig, tmp_path: Path) -> None:
    async with following(rig.member):
        await in_step(mesh, "a")
        await rig.rekeying.begin(GRACE)
        await in_step(mesh, "a")
        rig.now += GRACE
        await rig.rekeying.advance()
        await joined(mesh, host(tmp_path, "b"))
        await until(lambda: rig.member.peers == ["b"])
    assert not rig.member.sync.contact.copied


async def test_it_goes_by_itself(rig: Rig) -> None:
    task = asyncio.create_task(rig.rekeying.run())
    try:
        await asyncio.sleep(0)
        await rig.rekeying.begin(GRACE)
        rig.now += GRACE
        rig.rekeying._begun.set()
        await until(lambda: rig.rekeying.change is None)
    finally:
        task.cancel()
    assert rig.record.previous_public_key == b""


async def test_one_at_a_time_and_long_enough(rig: Rig) -> None:
    with pytest.raises(InvalidError, match="too short"):
        await rig.rekeying.begin(9)
    await rig.rekeying.begin(GRACE)
    with pytest.raises(StateError, match="already"):
        await rig.rekeying.begin(GRACE)


async def test_a_host_that_is_removed_meanwhile_stops(mesh: Mesh, rig: Rig) -> None:
    await rig.rekeying.begin(GRACE)
    await mesh.remove("a")
    rig.now += GRACE
    with pytest.raises(RemovedError):
        await rig.rekeying.advance()
    assert rig.member.sync.contact.removed


async def test_joining_again_in_the_middle_keeps_the_change(mesh: Mesh, rig: Rig, tmp_path: Path) -> None:
    await rig.rekeying.begin(GRACE)
    again = await joined(mesh, host(tmp_path, "a"))
    assert again.already_member
    later = Rig(mesh, host(tmp_path, "a"))
    later.now += GRACE
    await later.rekeying.advance()
    later.check()


async def test_a_change_that_no_controller_agrees_to_is_dropped(rig: Rig) -> None:
    mine = rig.member.sync.identity
    elsewhere = replace(mine.keys, noise=X25519PrivateKey.generate())
    rig.member.sync.identity = replace(mine, keys=elsewhere)
    with pytest.raises(InvalidError, match="not those that it changes from"):
        await rig.rekeying.begin(GRACE)
    assert rig.rekeying.change is None
    assert rig.member.state.key_change() is None
    assert rig.in_fastpath[-1] == (elsewhere.noise.private_bytes_raw(), b"")


async def test_a_record_that_names_other_keys_is_a_problem(rig: Rig) -> None:
    mine = public(rig.rekeying.private_keys[0])
    assert rig.rekeying.problems(node(1, public_key=mine)) == ()
    [problem] = rig.rekeying.problems(node(1, previous_public_key=mine))
    assert (problem.subject, "not here" in problem.reason) == ("keys", True)


def test_a_change_is_kept_as_it_is_and_damage_is_named(tmp_path: Path) -> None:
    state, change = StateDir(tmp_path), KeyChange.begin(GRACE)
    state.save_key_change(replace(change, stage=Stage.SWITCHED, until=5.0))
    held = state.key_change()
    assert held
    assert (held.stage, held.until, held.grace, held.public) == (Stage.SWITCHED, 5.0, GRACE, change.public)
    assert held.noise.private_bytes_raw().hex() not in repr(held)
    for damage in (b"", b"{}", b"[]", change.encode()[:-20], change.encode().replace(b"prepared", b"gone")):
        (tmp_path / "keychange.json").write_bytes(damage)
        with pytest.raises(CorruptStateError, match=r"keychange\.json is damaged"):
            state.key_change()
