from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from overmesh.controller.daemon import running
from overmesh.controller.members.rekeying import NewKeys, Rotated
from overmesh.controller.membership import node_id
from overmesh.controller.store import keys
from overmesh.controller.store.base import Put
from overmesh.controller.trust import CertificateRequest, Identity
from overmesh.errors import CloneError, ExistsError, InvalidError, OvermeshError, RemovedError, RevokedError
from overmesh.model import Node, node_key
from overmesh.proto import mesh_pb2
from overmesh.proto.signed import verify
from tests.unit.controller.lab import ROOT, Host, Mesh, client, config, mesh, x25519_public_key


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with mesh(tmp_path) as running:
        yield running


@dataclass
class Change:
    """A member that changes its keys."""

    lab: Mesh
    host: Host
    new: Host = field(init=False)

    def __post_init__(self) -> None:
        self.new = replace(self.host, public_key=x25519_public_key(), tls=generate_private_key(SECP256R1()))

    @property
    def node(self) -> Node:
        node = self.lab.mirror.view("mesh").node(self.host.id)
        assert node
        return node

    async def ask(self, key: bytes, previous: bytes, by: Host | None = None) -> Rotated:
        wanted = NewKeys(key, previous, self.new.csr())
        tls = CertificateRequest.parse((by or self.host).csr()).fingerprint
        return await self.lab.rekeying.rotate(Identity("mesh", self.host.id), tls, wanted)

    async def announce(self) -> Rotated:
        return await self.ask(self.new.public_key, self.host.public_key)

    async def finish(self) -> Rotated:
        return await self.ask(self.new.public_key, b"", self.new)

    async def refused(self, error: type[OvermeshError], key: bytes, previous: bytes) -> str:
        with pytest.raises(error) as raised:
            await self.ask(key, previous)
        return raised.value.cause

    async def may_renew(self, host: Host) -> bool:
        try:
            await self.lab.renewals.renew(Identity("mesh", self.host.id), host.csr())
        except CloneError:
            return False
        return True


@pytest.fixture
async def change(lab: Mesh) -> Change:
    return Change(lab, await lab.joined("a"))


async def test_both_keys_are_good_until_the_rotation_is_finished(change: Change) -> None:
    before = change.node
    reply = await change.announce()
    node = verify(node_key(change.host.id), reply.node, ROOT.public_key)
    both = replace(
        before,
        public_key=change.new.public_key,
        previous_public_key=change.host.public_key,
        serial=change.node.serial,
    )
    assert node == change.node == both
    assert change.node.serial > before.serial
    certificate = x509.load_der_x509_certificate(reply.certificate)
    certificate.verify_directly_issued_by(ROOT.certificate)
    assert certificate.public_key() == change.new.tls.public_key()
    assert await change.may_renew(change.host)
    assert await change.may_renew(change.new)

    announced = change.node
    await change.finish()
    assert change.node == replace(announced, previous_public_key=b"", serial=change.node.serial)
    assert change.node.serial > announced.serial
    assert await change.may_renew(change.new)
    assert not await change.may_renew(change.host)


async def test_asking_again_changes_nothing(change: Change) -> None:
    for ask in (change.announce, change.finish):
        first = await ask()
        again = await ask()
        assert again.node == first.node
        assert again.revision == change.lab.mirror.revision
    held = change.lab.mirror.revision
    await change.finish()
    assert change.lab.mirror.revision == held


async def test_a_rotation_can_be_taken_back(change: Change) -> None:
    before = change.node
    await change.announce()
    await change.ask(change.host.public_key, b"")
    assert change.node == replace(before, serial=change.node.serial)
    assert not change.lab.mirror.held("aliases", "mesh")


async def test_a_host_that_lost_the_new_key_begins_again_from_the_one_that_it_has(change: Change) -> None:
    await change.announce()
    third = x25519_public_key()
    await change.ask(third, change.host.public_key)
    assert (change.node.public_key, change.node.previous_public_key) == (third, change.host.public_key)
    assert list(change.lab.mirror.held("aliases", "mesh")) == [node_id(third)]


async def test_keys_that_can_not_be(change: Change) -> None:
    own, new = change.host.public_key, change.new.public_key
    other = await change.lab.joined("b")
    assert "not those that it changes from" in await change.refused(InvalidError, new, b"")
    assert "not those that it changes from" in await change.refused(InvalidError, new, other.public_key)
    assert "not those that it changes from" in await change.refused(InvalidError, own, own)
    assert "another member" in await change.refused(InvalidError, other.public_key, own)
    assert "not an X25519 key" in await change.refused(InvalidError, bytes(32), own)
    assert change.node.public_key == own


async def test_nobody_else_comes_to_have_a_later_key(change: Change) -> None:
    await change.announce()
    thief = Host("thief", public_key=change.new.public_key)
    token = await change.lab.token()
    with pytest.raises(CloneError):
        await change.lab.joins.join(thief.application(token))
    other = Change(change.lab, await change.lab.joined("b"))
    assert "another member" in await other.refused(InvalidError, change.new.public_key, other.host.public_key)
    with pytest.raises(ExistsError):
        await change.lab.peers.add("mesh", "phone", change.new.public_key, ())


async def test_who_joins_again_with_its_later_keys_is_the_same_node(change: Change) -> None:
    await change.announce()
    await change.finish()
    admission = await change.lab.joins.join(change.new.application(await change.lab.token()))
    assert (admission.node_id, admission.already_member) == (change.host.id, True)


async def test_a_key_that_was_given_up_is_free_and_that_of_a_removed_node_too(change: Change) -> None:
    await change.announce()
    await change.finish()
    await change.lab.revocations.remove("mesh", change.host.id)
    assert not change.lab.mirror.held("aliases", "mesh")
    again = await change.lab.joins.join(change.new.application(await change.lab.token()))
    assert again.node_id == node_id(change.new.public_key)
    with pytest.raises(RemovedError):
        await change.finish()


async def test_a_ban_is_for_all_keys_of_a_node(change: Change) -> None:
    await change.announce()
    await change.lab.revocations.revoke("mesh", change.host.id)
    token = await change.lab.token()
    for keys_of in (change.host, change.new):
        with pytest.raises(RevokedError):
            await change.lab.joins.join(keys_of.application(token))


async def test_what_somebody_else_wrote_as_an_alias_lets_nobody_in(change: Change) -> None:
    thief = Host("thief")
    forged = Put(keys.alias("mesh", thief.id), change.host.id.encode())
    await change.lab.mirror.reached((await change.lab.store.txn([], [forged])).revision)
    with pytest.raises(CloneError):
        await change.lab.joins.join(thief.application(await change.lab.token()))


async def test_the_audit_names_both_steps(change: Change) -> None:
    await change.announce()
    await change.finish()
    entries = [entry.deed.what async for entry in change.lab.audit.entries(0)]
    assert sorted(what for what in entries if "keys" in what) == ["node keys changed", "node keys changing"]


async def test_an_old_certificate_opens_nothing_once_the_rotation_is_finished(tmp_path: Path) -> None:
    settings = config(tmp_path)
    async with running(settings) as controller, client(settings, controller) as talking:
        host = Host("a")
        old = await talking.joined(host)
        new = replace(host, public_key=x25519_public_key(), tls=generate_private_key(SECP256R1()))
        request = mesh_pb2.RotateRequest(
            public_key=new.public_key, previous_public_key=host.public_key, csr=new.csr()
        )
        reply = await old.Rotate(request)
        later = talking.mesh(new, reply.certificate)
        await later.Rotate(mesh_pb2.RotateRequest(public_key=new.public_key, csr=new.csr()))
        for call in (
            old.Leave(mesh_pb2.LeaveRequest()),
            old.Report(mesh_pb2.ReportRequest()),
            old.Rotate(request),
            old.Watch(iter([mesh_pb2.WatchRequest(hello=mesh_pb2.Hello())])).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match="has other keys by now"):
                await call
        await later.Leave(mesh_pb2.LeaveRequest())
