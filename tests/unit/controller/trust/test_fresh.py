from pathlib import Path

import pytest

from overmesh.controller.store import keys
from overmesh.controller.store.base import Put
from overmesh.controller.trust import MeshRoot
from overmesh.controller.trust.fresh import FreshSignatures
from overmesh.model import Record
from overmesh.proto.roots import Roots
from overmesh.proto.signed import Verifier, verify
from tests.unit.controller import lab

OURS = Roots((lab.ROOT.certificate,))


def test_only_the_very_bytes_are_known_and_only_once() -> None:
    fresh = FreshSignatures()
    fresh.add(b"signed", lab.ROOT.fingerprint)
    assert not fresh.take(b"Signed", OURS)
    assert fresh.take(b"signed", OURS)
    assert not fresh.take(b"signed", OURS)


def test_a_root_that_is_no_longer_trusted_counts_for_nothing() -> None:
    fresh = FreshSignatures()
    fresh.add(b"signed", lab.ROOT.fingerprint)
    assert not fresh.take(b"signed", Roots((MeshRoot.new().certificate,)))


def test_what_never_comes_back_is_forgotten() -> None:
    fresh = FreshSignatures()
    for number in range(2000):
        fresh.add(b"%d" % number, lab.ROOT.fingerprint)
    assert not fresh.take(b"999", OURS)
    assert fresh.take(b"1000", OURS)


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of records whose signature was looked at."""
    seen: list[str] = []

    def watched(key: str, signed: bytes, roots: Verifier) -> Record:
        seen.append(key)
        return verify(key, signed, roots)

    monkeypatch.setattr("overmesh.controller.mirror.verify", watched)
    return seen


async def test_what_comes_back_is_verified_unless_it_was_signed_here(
    tmp_path: Path, verified: list[str]
) -> None:
    async with lab.mesh(tmp_path) as mesh:
        verified.clear()
        host = lab.Host("a")
        await mesh.joins.join(host.application(await mesh.token()))
        view = mesh.mirror.view("mesh")
        assert not verified
        assert view.node(host.id)

        node = keys.node("mesh", host.id)
        kv = mesh.mirror.key(node)
        assert kv
        before = kv.value
        result = await mesh.store.txn([], [Put(node, before[:-1] + bytes([before[-1] ^ 1]))])
        await mesh.mirror.reached(result.revision)
        assert verified == [f"node/{host.id}"]
        assert view.refused == {f"node/{host.id}": "not signed by this mesh's root"}
        assert view.map.items[f"node/{host.id}"] == before
