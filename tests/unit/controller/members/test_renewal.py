from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509

from overmesh.controller.store import keys
from overmesh.controller.store.base import Put
from overmesh.controller.trust import MEMBERSHIP_DAYS, Identity
from overmesh.errors import CloneError, InvalidError, OvermeshError, RemovedError
from overmesh.model import Node, node_key
from overmesh.proto.signed import verify
from tests.unit.controller.lab import ROOT, START, Host, Mesh, mesh


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with mesh(tmp_path) as running:
        yield running


async def refused(lab: Mesh, host: Host, error: type[OvermeshError], node: str = "", csr: bytes = b"") -> str:
    with pytest.raises(error) as raised:
        await lab.renewals.renew(Identity("mesh", node or host.id), csr or host.csr())
    return raised.value.cause


async def test_a_member_gets_another_certificate_and_nothing_changes(lab: Mesh) -> None:
    host = await lab.joined("a")
    before = lab.mirror.revision
    renewed = await lab.renewals.renew(Identity("mesh", host.id), host.csr())
    certificate = x509.load_der_x509_certificate(renewed.certificate)
    certificate.verify_directly_issued_by(ROOT.certificate)
    assert certificate.public_key() == host.tls.public_key()
    assert renewed.time == START
    assert lab.mirror.revision == before


async def test_the_membership_is_renewed_in_its_second_half(lab: Mesh) -> None:
    host = await lab.joined("a")
    lab.clock.now += MEMBERSHIP_DAYS * 86400 * 0.6
    renewed = await lab.renewals.renew(Identity("mesh", host.id), host.csr())
    node = verify(node_key(host.id), renewed.node, ROOT.public_key)
    assert isinstance(node, Node)
    assert node.not_after == int(lab.clock.now) + MEMBERSHIP_DAYS * 86400


async def test_long_after_everything_has_run_out(lab: Mesh) -> None:
    host = await lab.joined("a")
    lab.clock.now += 10 * 365 * 86400
    renewed = await lab.renewals.renew(Identity("mesh", host.id), host.csr())
    node = verify(node_key(host.id), renewed.node, ROOT.public_key)
    assert isinstance(node, Node)
    assert node.not_after > lab.clock.now


async def test_who_gets_nothing(lab: Mesh) -> None:
    host, other = await lab.joined("a"), await lab.joined("b")
    assert "another TLS key" in await refused(lab, other, CloneError, node=host.id)
    assert "no longer a member" in await refused(lab, Host("c"), RemovedError)
    assert "can't be read" in await refused(lab, host, InvalidError, csr=b"\xff")
    await refused(lab, host, RemovedError, node="../../tokens/x")


async def test_a_credential_that_somebody_else_wrote(lab: Mesh) -> None:
    host, thief = await lab.joined("a"), await lab.joined("b")
    theirs = lab.mirror.held("credentials", "mesh")[thief.id].value
    result = await lab.store.txn([], [Put(keys.credential("mesh", host.id), theirs)])
    await lab.mirror.reached(result.revision)
    assert "another TLS key" in await refused(lab, thief, CloneError, node=host.id)
