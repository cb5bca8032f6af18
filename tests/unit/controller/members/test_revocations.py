import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from overmesh.controller.members.rekeying import NewKeys
from overmesh.controller.members.remembered import FILE, Remembered
from overmesh.controller.members.revocations import MAX_REASON
from overmesh.controller.membership import Signer
from overmesh.controller.notices import KEPT, Notices
from overmesh.controller.store import backup, keys, open_store
from overmesh.controller.store.base import Delete, KeyValue, Put
from overmesh.controller.trust import MEMBERSHIP_DAYS, CertificateRequest, Identity
from overmesh.errors import ApprovalPendingError, InvalidError, NotFoundError, RemovedError, RevokedError
from overmesh.model import Node, Revocation, endpoints_key, node_key, revoked_key
from overmesh.proto import mesh_pb2
from overmesh.proto.codec import MAX_WITHHELD
from tests.unit.controller.lab import ROOT, START, Host, Mesh, mesh, x25519_public_key

DAY = 86400
NEVER_SEEN = "a234567abcdefghi"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with mesh(tmp_path) as parts:
        yield parts


def revocation(lab: Mesh, node_id: str) -> Revocation:
    found = lab.mirror.view("mesh").revocation(node_id)
    assert found
    return found


async def put(lab: Mesh, *ops: Put | Delete) -> None:
    result = await lab.store.txn([], ops)
    await lab.mirror.reached(result.revision)


# Taking out.


@pytest.mark.parametrize("own_wish", [False, True])
async def test_removal_is_signed_in_its_own_transaction(lab: Mesh, own_wish: bool) -> None:
    host = await lab.joined("a")
    node = lab.mirror.view("mesh").node(host.id)
    assert node
    lab.clock.now += 10
    take_out = lab.revocations.leave if own_wish else lab.revocations.remove
    revision = await take_out("mesh", host.id)
    known = revocation(lab, host.id)
    assert known == Revocation(
        host.id, "mesh", "a", int(lab.clock.now * 1000), False, node.not_after, known.serial
    )
    assert lab.mirror.view("mesh").map.head.revision == revision
    kv = await lab.store.get(keys.revoked("mesh", host.id))
    assert kv
    assert kv.mod_revision == revision
    assert not (await lab.store.range(keys.node("mesh", ""))).kvs


async def test_the_log_has_the_name_and_the_id_of_who_is_taken_out(
    lab: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "overmesh.controller")
    a, b = await lab.joined("a"), await lab.joined("b")
    lab.agents.open(Identity("mesh", a.id), mesh_pb2.Hello(), START)
    agent = lab.agents.live("mesh", a.id)
    assert agent
    caplog.clear()
    await lab.revocations.remove("mesh", a.id)
    lab.agents.close(agent)
    await lab.revocations.revoke("mesh", "b")
    await lab.revocations.revoke("mesh", NEVER_SEEN, unknown=True)
    said = [(record.message, vars(record).get("node"), vars(record)["id"]) for record in caplog.records]
    assert said == [
        ("node removed", "a", a.id),
        ("agent disconnected", "a", a.id),
        ("node revoked", "b", b.id),
        ("node revoked", None, NEVER_SEEN),
    ]


async def test_removal_looks_at_nobody_else_s_names_and_addresses(
    lab: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, other = await lab.joined("a"), await lab.joined("b")
    later = NewKeys(x25519_public_key(), host.public_key, host.csr())
    tls = CertificateRequest.parse(host.csr()).fingerprint
    await lab.rekeying.rotate(Identity("mesh", host.id), tls, later)
    walked, held = [], lab.mirror.held

    def watched(kind: str, network: str = "") -> Mapping[str, KeyValue]:
        walked.append(kind)
        return held(kind, network)

    monkeypatch.setattr(lab.mirror, "held", watched)
    await lab.revocations.remove("mesh", host.id)
    assert not {"names", "addresses", "aliases"} & set(walked)
    for kind in ("names", "addresses"):
        assert {kv.value for kv in held(kind, "mesh").values()} == {other.id.encode()}
    assert not held("aliases", "mesh")


async def test_who_joins_again_has_records_above_the_revocation_whatever_the_clock_says(lab: Mesh) -> None:
    host = await lab.joined("a")
    await lab.revocations.remove("mesh", host.id)
    known = revocation(lab, host.id)
    lab.clock.now -= DAY
    # As on another controller, which has signed nothing yet.
    lab.membership._signer = lab.joins._newcomers._signer = Signer(ROOT, lab.clock)
    await lab.joins.join(host.application(await lab.token()))
    view = lab.mirror.view("mesh")
    assert not view.refused
    for key in (node_key(host.id), endpoints_key(host.id)):
        assert view.records[key].serial > known.revoked_serial
    assert revocation(lab, host.id) == known


async def test_endpoints_that_were_lost_are_made_anew_above_the_revocation(lab: Mesh) -> None:
    host = await lab.joined("a")
    await lab.revocations.remove("mesh", host.id)
    await lab.joins.join(host.application(await lab.token()))
    await put(lab, Delete(keys.endpoints("mesh", host.id)))
    lab.mirror.view("mesh")._floors.clear()
    lab.clock.now -= DAY
    lab.membership._signer = Signer(ROOT, lab.clock)
    await lab.membership.report("mesh", host.id, host.endpoints)
    assert lab.mirror.view("mesh").endpoints(host.id)


async def test_what_another_controller_signed_unseen_is_void_too(lab: Mesh) -> None:
    host = await lab.joined("a")
    node = lab.mirror.view("mesh").node(host.id)
    assert node
    lab.clock.now += 60
    unseen = replace(node, serial=int(lab.clock.now * 1000) - 1)
    lab.clock.now += 1
    await lab.revocations.remove("mesh", host.id)
    assert revocation(lab, host.id).voids(unseen)


async def test_a_removal_after_a_ban_lifts_nothing(lab: Mesh) -> None:
    host = await lab.joined("a")
    await lab.revocations.revoke("mesh", "a", "lost")
    node = Node(host.id, "mesh", "a", host.public_key, (), serial=1 << 60)
    await put(lab, Put(keys.node("mesh", host.id), ROOT.sign(node)))
    await lab.revocations.remove("mesh", host.id)
    assert (revocation(lab, host.id).banned, revocation(lab, host.id).not_after) == (True, 0)
    assert not lab.mirror.view("mesh").refused


async def test_revoking_by_name_by_id_and_again(lab: Mesh) -> None:
    host = await lab.joined("a")
    first = await lab.revocations.revoke("mesh", "A", "stolen")
    assert (first.was_member, first.revocation.name, first.revocation.reason) == (True, "a", "stolen")
    for named in ("a", host.id):
        again = await lab.revocations.revoke("mesh", named)
        assert (again.was_member, again.revocation) == (False, first.revocation)
    assert lab.addresses() == []
    assert [entry.deed.what async for entry in lab.audit.entries()][-1] == "node revoked"


async def test_revoking_who_was_removed_or_never_seen(lab: Mesh) -> None:
    host = await lab.joined("a")
    await lab.revocations.remove("mesh", host.id)
    later = await lab.revocations.revoke("mesh", "a")
    assert (later.was_member, later.revocation.node_id, later.revocation.banned) == (False, host.id, True)
    unknown = await lab.revocations.revoke("mesh", NEVER_SEEN, unknown=True)
    assert (unknown.was_member, unknown.revocation.name) == (False, "")
    assert [known.node_id for known in lab.revocations.known("mesh")] == [NEVER_SEEN, host.id]


async def test_a_name_that_two_had_is_not_enough(lab: Mesh) -> None:
    for _ in range(2):
        host = await lab.joined("a")
        await lab.revocations.remove("mesh", host.id)
    with pytest.raises(InvalidError, match="2 nodes that were taken out had the name a") as raised:
        await lab.revocations.revoke("mesh", "a")
    assert "node list --revoked" in raised.value.fix


@pytest.mark.parametrize("node", ["nobody", "", "A234567ABCDEFGHI", "a234567abcdefgh1", f"{NEVER_SEEN}a"])
async def test_what_is_neither_a_node_nor_an_id(lab: Mesh, node: str) -> None:
    for unknown in (False, True):
        with pytest.raises(NotFoundError, match=r"has no node '.*', and knows of none that it had") as raised:
            await lab.revocations.revoke("mesh", node, unknown=unknown)
        assert raised.value.fix == "see `meshctl node list`, or name an id"


async def test_a_name_that_passes_for_an_id_is_not_banned_by_mistake(lab: Mesh) -> None:
    await lab.joined("database-primary")
    before = lab.mirror.revision
    for mistyped in ("databaseprimaryy", NEVER_SEEN):
        with pytest.raises(NotFoundError, match="has no node") as raised:
            await lab.revocations.revoke("mesh", mistyped)
        assert "to ban an id that never joined, add --unknown" in raised.value.fix
    assert lab.mirror.revision == before


async def test_ids_that_are_known_need_no_more_words(lab: Mesh) -> None:
    removed, waiting = await lab.joined("a"), Host("b")
    await lab.revocations.remove("mesh", removed.id)
    _, asking = await lab.tokens.create("mesh", 3600, 1, (), approval=True)
    with pytest.raises(ApprovalPendingError):
        await lab.joins.join(waiting.application(asking))
    for host in (removed, waiting):
        assert not (await lab.revocations.revoke("mesh", host.id)).was_member
        with pytest.raises(RevokedError):
            await lab.joins.join(host.application(await lab.token()))


@pytest.mark.parametrize("reason", ["x" * (MAX_REASON + 1), "two\nlines"])
async def test_reasons_that_can_not_be_kept(lab: Mesh, reason: str) -> None:
    with pytest.raises(InvalidError, match="reason"):
        await lab.revocations.revoke("mesh", NEVER_SEEN, reason, unknown=True)


async def test_a_banned_key_comes_in_by_no_door(lab: Mesh) -> None:
    host = Host("a")
    await lab.revocations.revoke("mesh", host.id, unknown=True)
    with pytest.raises(RevokedError, match="revoked for good"):
        await lab.joins.join(host.application(await lab.token()))
    with pytest.raises(RevokedError):
        await lab.peers.add("mesh", "phone", host.public_key, ())
    assert lab.addresses() == []


async def test_a_node_that_changed_its_key_can_not_come_back_with_either(lab: Mesh) -> None:
    host, later = await lab.joined("a"), Host("a")
    node = lab.mirror.view("mesh").node(host.id)
    assert node
    changed = replace(
        node, public_key=later.public_key, previous_public_key=host.public_key, serial=node.serial + 1
    )
    await put(lab, Put(keys.node("mesh", host.id), ROOT.sign(changed)))
    await lab.revocations.revoke("mesh", "a")
    for key_of in (host, later):
        with pytest.raises(RevokedError):
            await lab.joins.join(key_of.application(await lab.token()))
    assert revocation(lab, later.id).reason == f"a later key of a ({host.id})"
    assert (await lab.revocations.revoke("mesh", "a")).revocation.node_id == host.id


async def test_a_peer_is_revoked_like_a_node(lab: Mesh) -> None:
    host = Host("a")
    await lab.peers.add("mesh", "phone", host.public_key, ())
    assert (await lab.revocations.revoke("mesh", "phone")).was_member
    with pytest.raises(RevokedError):
        await lab.peers.add("mesh", "phone", host.public_key, ())


async def test_a_ban_and_a_join_at_once(lab: Mesh) -> None:
    token = await lab.token()
    for number in range(10):
        host = Host(f"n{number}")
        joining = lab.joins.join(host.application(token))
        banning = lab.revocations.revoke("mesh", host.id, unknown=True)
        await asyncio.gather(joining, banning, return_exceptions=True)
        assert await lab.store.get(keys.node("mesh", host.id)) is None
    assert lab.addresses() == []


@pytest.mark.parametrize("banned", [True, False])
async def test_an_admission_planned_before_a_revocation_does_not_hold(lab: Mesh, banned: bool) -> None:
    """As when another controller revokes in between: the transaction itself has to find out."""
    host = await lab.joined("a")
    await lab.revocations.remove("mesh", host.id)
    node = Node(host.id, "mesh", "a", host.public_key, addresses=())
    planned = lab.newcomers.admit(lab.mirror.view("mesh"), node, ())
    if banned:
        await lab.revocations.revoke("mesh", host.id)
    result = await lab.store.txn(planned.compares, planned.ops)
    assert result.succeeded is not banned


async def test_a_revoked_nodes_stream_ends_with_the_reason(lab: Mesh) -> None:
    host = await lab.joined("a")
    agent = lab.agents.open(Identity("mesh", host.id), mesh_pb2.Hello(host_id="one"), 0)
    await lab.revocations.revoke("mesh", "a")
    assert isinstance(agent.end, RevokedError)


@pytest.mark.parametrize("banned", [False, True])
async def test_whose_record_was_put_back_gets_no_stream_and_reports_nothing(lab: Mesh, banned: bool) -> None:
    host = await lab.joined("a")
    kept = [keys.node("mesh", host.id), keys.credential("mesh", host.id), keys.endpoints("mesh", host.id)]
    puts = [Put(key, kv.value) for key in kept if (kv := lab.mirror.key(key))]
    if banned:
        await lab.revocations.revoke("mesh", host.id)
    else:
        await lab.revocations.remove("mesh", host.id)
    await put(lab, *puts)
    identity = Identity("mesh", host.id)
    with pytest.raises(RevokedError if banned else RemovedError):
        lab.agents.open(identity, mesh_pb2.Hello(host_id="one"), 0)
    with pytest.raises(RemovedError):
        lab.agents.check_connected(identity, "one")
    assert list(lab.mirror.view("mesh").void) == [host.id]
    await lab.revocations.clear_void()
    assert not any(lab.mirror.key(key) for key in kept)


# Sweeping.


async def test_expired_revocations_are_swept_a_day_later_and_bans_never(lab: Mesh) -> None:
    host = await lab.joined("a")
    await lab.revocations.remove("mesh", host.id)
    await lab.revocations.revoke("mesh", NEVER_SEEN, unknown=True)
    lab.clock.now = START + MEMBERSHIP_DAYS * DAY + DAY
    await lab.revocations.sweep()
    assert len(lab.revocations.known("mesh")) == 2
    lab.clock.now += 1
    # As two controllers do.
    await asyncio.gather(lab.revocations.sweep(), lab.revocations.sweep())
    assert [known.node_id for known in lab.revocations.known("mesh")] == [NEVER_SEEN]
    assert lab.mirror.view("mesh").map.items.keys() == {"network", revoked_key(NEVER_SEEN)}


# What the store loses.


def remembered(lab: Mesh, path: Path) -> Remembered:
    return Remembered(lab.mirror, lab.revocations, path, lab.clock)


async def test_an_older_record_is_put_right_and_a_newer_one_is_taken(lab: Mesh, tmp_path: Path) -> None:
    host = await lab.joined("a")
    key, view = keys.endpoints("mesh", host.id), lab.mirror.view("mesh")
    old = view.map.items[endpoints_key(host.id)]
    await lab.membership.report("mesh", host.id, host.endpoints, 4)
    new = view.map.items[endpoints_key(host.id)]
    await put(lab, Put(key, old))
    assert view.map.items[endpoints_key(host.id)] == new
    assert "is older than" in view.refused[endpoints_key(host.id)]
    await remembered(lab, tmp_path).restore()
    kv = await lab.store.get(key)
    assert kv
    assert kv.value == new
    assert not view.refused
    await lab.membership.report("mesh", host.id, host.endpoints, 2)
    assert view.map.items[endpoints_key(host.id)] != new


async def test_a_store_that_can_not_be_put_right_keeps_the_agents_right(lab: Mesh) -> None:
    host = await lab.joined("a")
    await lab.revocations.remove("mesh", host.id)
    before = lab.mirror.view("mesh").map.head.digest
    await put(lab, Delete(keys.revoked("mesh", host.id)))
    view = lab.mirror.view("mesh")
    assert (view.map.head.digest, view.revocation(host.id) is None) == (before, False)
    assert view.refused == {revoked_key(host.id): "was removed before its time"}


async def test_many_lost_revocations_are_all_put_back(lab: Mesh, tmp_path: Path) -> None:
    known = [NEVER_SEEN[:-2] + a + b for a in "abcdefgh" for b in "abcdefghijklmnop"]
    for node_id in known:
        await lab.revocations.revoke("mesh", node_id, unknown=True)
    here = remembered(lab, tmp_path)
    for start in range(0, len(known), 64):
        await put(lab, *(Delete(keys.revoked("mesh", node_id)) for node_id in known[start : start + 64]))
    await here.restore()
    found = await lab.store.range(keys.revoked("mesh", ""))
    assert len(found.kvs) == len(known)
    (problem,) = lab.mirror.notices.of("mesh")
    assert problem.reason.endswith(f"and {len(known) - 5} more; put back")


@pytest.mark.parametrize(
    "content", ["", "[]", '{"mesh": 1}', '{"mesh": {"revoked/x": "="}}', '{"mesh": {"x": "AA=="}}']
)
async def test_a_damaged_file_costs_nothing_but_its_content(lab: Mesh, tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    here = remembered(lab, tmp_path)
    here.load()
    await here.restore()
    assert lab.revocations.known("mesh") == []


async def test_what_is_kept_of_a_network_that_is_away_is_kept(lab: Mesh, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"away": {"revoked/x": "AA=="}}')
    here = remembered(lab, tmp_path)
    here.load()
    await lab.revocations.revoke("mesh", NEVER_SEEN, unknown=True)
    await here.save()
    kept = json.loads((tmp_path / FILE).read_text())
    assert kept["away"] == {"revoked/x": "AA=="}
    assert kept["mesh"].keys() == {revoked_key(NEVER_SEEN)}


async def test_what_a_node_claims_to_have_seen_has_to_be_genuine(lab: Mesh, tmp_path: Path) -> None:
    host = await lab.joined("a")
    here, view = remembered(lab, tmp_path), lab.mirror.view("mesh")
    made_up = type(ROOT).new().sign(Revocation(host.id, "mesh", "a", 1 << 50))
    expired = ROOT.sign(Revocation(host.id, "mesh", "a", 1 << 50, not_after=1))
    elsewhere = ROOT.sign(Revocation(host.id, "other", "a", 1 << 50))
    no_revocation = view.map.items[node_key(host.id)]
    items = [
        mesh_pb2.Item(key=key, signed=signed)
        for key, signed in (
            *((revoked_key(host.id), signed) for signed in (made_up, expired, elsewhere, b"\xff")),
            (node_key(host.id), no_revocation),
            ("nonsense/x/y", b""),
        )
    ]
    here.witnessed(Identity("mesh", host.id), items)
    await here.restore()
    assert view.node(host.id)
    assert lab.revocations.known("mesh") == []
    with pytest.raises(InvalidError):
        here.witnessed(Identity("mesh", host.id), items[:1] * (MAX_WITHHELD + 1))


async def test_a_backup_carries_revocations(lab: Mesh, tmp_path: Path) -> None:
    await lab.revocations.revoke("mesh", NEVER_SEEN, unknown=True)
    await put(lab, Put(keys.ROOT_PIN, ROOT.pin))
    content = backup.decode(backup.encode(await backup.read(lab.store)), "backup")
    other = open_store(f"sqlite:{tmp_path / 'other.db'}")
    await backup.fill(other, content)
    kv = await other.get(keys.revoked("mesh", NEVER_SEEN))
    await other.close()
    assert kv
    assert kv.value == lab.mirror.view("mesh").map.items[revoked_key(NEVER_SEEN)]


def test_notices_are_kept_for_a_day_the_last_of_each_subject() -> None:
    now = [0.0]
    notices = Notices(lambda: now[0])
    notices.note("mesh", "store", "first")
    now[0] = 5
    notices.note("mesh", "store", "second")
    notices.note("other", "store", "elsewhere")
    assert [problem.reason for problem in notices.of("mesh")] == ["second"]
    now[0] = 5 + KEPT
    assert not list(notices.of("mesh"))
