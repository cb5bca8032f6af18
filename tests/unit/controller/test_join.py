import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from overmesh.controller.join import Admission
from overmesh.controller.members.tokens import KEPT_AFTER_EXPIRY, Token
from overmesh.controller.store import keys
from overmesh.controller.store.base import Delete, Op, Put, TxnResult
from overmesh.controller.trust import Identity, MeshRoot
from overmesh.errors import (
    CloneError,
    InvalidError,
    NameTakenError,
    NotFoundError,
    OvermeshError,
    PoolExhaustedError,
    PortInUseError,
    StoreCorruptError,
    StoreUnavailableError,
    TokenError,
)
from overmesh.model import Endpoint, Mode, Node, Suite, endpoints_key, node_key
from overmesh.proto import mesh_pb2
from overmesh.proto.signed import verify
from overmesh.token import JoinToken
from tests.unit.controller.lab import ROOT, Host, Mesh, mesh


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with mesh(tmp_path) as here:
        yield here


def record(admission: Admission) -> Node:
    node = verify(node_key(admission.node_id), admission.node, ROOT.public_key)
    assert isinstance(node, Node)
    return node


async def everything(lab: Mesh) -> dict[str, bytes]:
    return {kv.key: kv.value for kv in (await lab.store.range("")).kvs}


# A host joins.


async def test_a_host_joins_with_everything_that_belongs_to_it(lab: Mesh) -> None:
    host = Host("Web-1")
    _, token = await lab.tokens.create("mesh", 60, 0, ["rack:7", "Linux"])
    admission = await lab.joins.join(host.application(token))
    node = record(admission)
    assert (admission.already_member, node.id, node.name, node.network) == (False, host.id, "web-1", "mesh")
    assert node.tags == ("rack:7", "linux")
    assert node.not_after == int(lab.clock.now) + 825 * 86400
    assert [address.version for address in node.addresses] == [4, 6]
    content = await everything(lab)
    held = {key for key in content if key.endswith((host.id, "/web-1", *map(str, node.addresses)))}
    kinds = {"nodes", "endpoints", "credentials", "hosts", "names", "addresses"}
    assert {key.split("/")[3] for key in held} == kinds
    view = lab.mirror.view("mesh")
    assert view.map.items[node_key(host.id)] == admission.node
    assert view.map.items["network"] == admission.network
    assert admission.revision == view.map.head.revision
    places = view.endpoints(host.id)
    assert places is not None
    assert places.endpoints == host.endpoints


async def test_the_certificate_is_the_nodes(lab: Mesh) -> None:
    host = Host("a")
    admission = await lab.joins.join(host.application(await lab.token()))
    leaf = x509.load_der_x509_certificate(admission.certificate)
    leaf.verify_directly_issued_by(ROOT.certificate)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [Identity("mesh", host.id).uri]
    assert leaf.public_key() == host.tls.public_key()


async def test_the_secret_is_nowhere_in_the_store(lab: Mesh) -> None:
    token = await lab.token()
    content = b"".join((await everything(lab)).values())
    assert token.secret_text.encode() not in content
    assert token.secret not in content


# It joins again.


async def test_joining_again_changes_nothing_and_uses_nothing_up(lab: Mesh) -> None:
    host, token = Host("a"), await lab.token(uses=1)
    first = await lab.joins.join(host.application(token))
    before = await everything(lab)
    again = await lab.joins.join(host.application(token))
    assert again.already_member
    assert (again.node_id, again.node, again.revision) == (first.node_id, first.node, first.revision)
    assert again.certificate != first.certificate
    assert await everything(lab) == before


async def test_a_member_is_let_in_again_with_an_expired_token_but_not_with_a_revoked_one(
    lab: Mesh,
) -> None:
    host, token = Host("a"), await lab.token(ttl=60)
    await lab.joins.join(host.application(token))
    lab.clock.now += 61
    assert (await lab.joins.join(host.application(token))).already_member
    await lab.tokens.revoke(token.id)
    with pytest.raises(TokenError, match="was revoked"):
        await lab.joins.join(host.application(token))


async def test_a_member_that_moved_joins_again_with_its_new_endpoints(lab: Mesh) -> None:
    host, token = Host("a"), await lab.token()
    first = await lab.joins.join(host.application(token))
    moved = (Endpoint(ip_address("198.51.100.9"), 6081),)
    again = await lab.joins.join(host.application(token, endpoints=moved))
    assert again.already_member
    assert again.node == first.node
    assert again.revision > first.revision
    places = lab.mirror.view("mesh").endpoints(host.id)
    assert places is not None
    assert places.endpoints == moved


@pytest.mark.parametrize(("mode", "port"), [(Mode.SEALED, 51820), (Mode.PLAIN, 6081)])
async def test_an_endpoint_without_a_port_gets_the_usual_one_of_the_network(
    lab: Mesh, mode: Mode, port: int
) -> None:
    await lab.membership.create_network("blue", mode=mode)
    host, token = Host("a"), await lab.token(network="blue")
    named, open_ended = Endpoint(ip_address("192.0.2.7"), 7000), Endpoint(ip_address("192.0.2.7"), 0)
    await lab.joins.join(host.application(token, endpoints=(named, open_ended)))
    places = lab.mirror.view("blue").endpoints(host.id)
    assert places is not None
    assert places.endpoints == (named, replace(open_ended, port=port))


async def test_what_a_host_seals_with_is_in_its_signed_record(lab: Mesh) -> None:
    host, token = Host("a"), await lab.token()
    with_aes = await lab.joins.join(host.application(token))
    same = await lab.joins.join(host.application(token))
    without = await lab.joins.join(host.application(token, suites=(Suite.CHACHA,)))
    assert record(with_aes).suites == (Suite.CHACHA, Suite.AES)
    assert same.node == with_aes.node
    assert record(without).suites == (Suite.CHACHA,)
    assert record(without).serial > record(with_aes).serial


async def test_a_host_whose_port_is_taken_uses_no_token_up(lab: Mesh) -> None:
    token = await lab.token(uses=1)
    error = await refused(lab, Host("a"), token, PortInUseError, modes=(Mode.PLAIN,))
    assert error.cause == (
        "network mesh is sealed, and UDP port 51820 is in use by another program on this host"
    )
    await lab.joins.join(Host("a").application(token, modes=(Mode.SEALED,)))


async def test_joining_again_late_in_its_life_renews_the_record(lab: Mesh) -> None:
    host, token = Host("a"), await lab.token(ttl=9 * 365 * 86400)
    first = record(await lab.joins.join(host.application(token)))
    lab.clock.now += 500 * 86400
    again = record(await lab.joins.join(host.application(token)))
    assert again.not_after == first.not_after + 500 * 86400
    assert again.serial > first.serial
    assert replace(again, serial=0, not_after=0) == replace(first, serial=0, not_after=0)


async def test_a_removed_node_gets_its_addresses_back_and_a_higher_serial(lab: Mesh) -> None:
    host, token = Host("a"), await lab.token()
    first = record(await lab.joins.join(host.application(token)))
    await lab.revocations.remove("mesh", host.id)
    lab.clock.now -= 3600  # even when the clock was set back
    again = record(await lab.joins.join(host.application(token)))
    assert again.addresses == first.addresses
    assert again.serial > first.serial


# It is refused.


async def refused(
    lab: Mesh, host: Host, token: JoinToken, error: type[OvermeshError], **other: Any
) -> OvermeshError:
    before = await everything(lab)
    with pytest.raises(error) as raised:
        await lab.joins.join(host.application(token, **other))
    assert await everything(lab) == before
    return raised.value


async def test_an_unknown_token(lab: Mesh) -> None:
    error = await refused(lab, Host("a"), JoinToken.new(ROOT.public_key), TokenError)
    assert "no token" in error.cause
    assert "token create" in error.fix


async def test_a_wrong_secret(lab: Mesh) -> None:
    token = await lab.token()
    error = await refused(lab, Host("a"), replace(token, secret=bytes(24)), TokenError)
    assert "the secret" in error.cause


async def test_an_expired_token_says_since_when(lab: Mesh) -> None:
    token = await lab.token(ttl=60)
    lab.clock.now += 60
    error = await refused(lab, Host("a"), token, TokenError)
    assert "expired at 2027-01-15 08:01:00 UTC" in error.cause


async def test_a_used_up_token(lab: Mesh) -> None:
    token = await lab.token(uses=1)
    await lab.joined("a", token)
    assert "used up: it was good once" in (await refused(lab, Host("b"), token, TokenError)).cause


async def test_a_revoked_token(lab: Mesh) -> None:
    token = await lab.token()
    await lab.tokens.revoke(token.id)
    assert "was revoked" in (await refused(lab, Host("a"), token, TokenError)).cause


async def test_a_name_that_is_taken(lab: Mesh) -> None:
    first = await lab.joined("a")
    error = await refused(lab, Host("A"), await lab.token(), NameTakenError)
    assert first.id in error.cause
    assert "node remove a" in error.fix


@pytest.mark.parametrize("name", ["", "-a", "a.b", "ä", "a" * 64, "a b", "a/b", "a\n"])
async def test_a_name_that_is_no_dns_label(lab: Mesh, name: str) -> None:
    error = await refused(lab, Host("a"), await lab.token(), InvalidError, name=name)
    assert "can't be a node name" in error.cause


@pytest.mark.parametrize("key", [b"", bytes(32), b"k" * 31, b"k" * 33])
async def test_a_public_key_that_is_none(lab: Mesh, key: bytes) -> None:
    assert "X25519" in (await refused(lab, Host("a"), await lab.token(), InvalidError, public_key=key)).cause


async def test_a_request_for_a_certificate_that_is_none(lab: Mesh) -> None:
    assert (
        "certificate request"
        in (await refused(lab, Host("a"), await lab.token(), InvalidError, csr=b"x")).cause
    )


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("224.0.0.1", "multicast"),
        ("0.0.0.0", "unspecified"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("255.255.255.255", "broadcast"),
        ("::ffff:192.0.2.1", "IPv4-mapped"),
        ("10.9.1.1", "inside the overlay network mesh"),
    ],
)
async def test_an_endpoint_that_no_one_could_reach(lab: Mesh, address: str, why: str) -> None:
    places = (Endpoint(ip_address("192.0.2.1"), 6081), Endpoint(ip_address(address), 6081))
    error = await refused(lab, Host("a"), await lab.token(), InvalidError, endpoints=places)
    assert why in error.cause
    assert str(places[1]) in error.cause


async def test_too_many_endpoints(lab: Mesh) -> None:
    places = tuple(Endpoint(ip_address("192.0.2.1"), port) for port in range(1, 18))
    await refused(lab, Host("a"), await lab.token(), InvalidError, endpoints=places)


async def test_a_full_pool_names_the_range(tmp_path: Path) -> None:
    async with mesh(tmp_path, ("10.9.0.0/30",)) as lab:
        token = await lab.token()
        for name in ("a", "b"):
            await lab.joined(name, token)
        error = await refused(lab, Host("c"), token, PoolExhaustedError)
        assert "10.9.0.0/30" in error.cause
        await lab.revocations.remove("mesh", await lab.membership.find("mesh", "a"))
        await lab.joined("c", token)


# Two hosts with one key.


async def test_a_known_key_under_another_name(lab: Mesh) -> None:
    host = await lab.joined("a")
    error = await refused(lab, host, await lab.token(), InvalidError, name="b")
    assert "already joined network mesh as a" in error.cause


async def test_a_key_that_is_connected_from_another_host(lab: Mesh) -> None:
    host, token = Host("a", host_id="one"), await lab.token()
    await lab.joins.join(host.application(token))
    lab.agents.open(Identity("mesh", host.id), mesh_pb2.Hello(host_id="one"), 0)
    assert "in use" in (await refused(lab, host, token, CloneError, host_id="two")).cause
    assert (await lab.joins.join(host.application(token))).already_member


async def test_knowing_the_public_key_of_a_member_is_not_enough_to_become_it(lab: Mesh) -> None:
    """Every member knows every public key; only the host that joined has the TLS key."""
    member = await lab.joined("a")
    thief = Host("a", tls=generate_private_key(SECP256R1()), public_key=member.public_key)
    error = await refused(lab, thief, await lab.token(), CloneError)
    assert "another TLS key" in error.cause
    assert "node remove a" in error.fix


# Races and breaks.


async def test_fifty_hosts_race_for_fourteen_addresses(tmp_path: Path) -> None:
    async with mesh(tmp_path, ("10.9.0.0/28",)) as lab:
        token = await lab.token()
        joins = (lab.joins.join(Host(f"n{number}").application(token)) for number in range(50))
        results = await asyncio.gather(*joins, return_exceptions=True)
        admitted = [result for result in results if isinstance(result, Admission)]
        addresses = [str(address) for one in admitted for address in record(one).addresses]
        assert len(set(addresses)) == len(addresses) == 14
        assert set(addresses) == set(lab.addresses())
        others = [result for result in results if not isinstance(result, Admission)]
        assert {type(error) for error in others} == {PoolExhaustedError}
        assert len(lab.mirror.held("nodes", "mesh")) == len(lab.mirror.held("names", "mesh")) == 14


async def test_hosts_race_for_the_last_uses_of_a_token(lab: Mesh) -> None:
    token = await lab.token(uses=3)
    joins = (lab.joins.join(Host(f"n{number}").application(token)) for number in range(20))
    results = await asyncio.gather(*joins, return_exceptions=True)
    assert sum(isinstance(result, Admission) for result in results) == 3
    assert {type(result) for result in results} == {Admission, TokenError}
    assert lab.tokens.known()[0].uses_left == 0


async def test_one_host_races_itself(lab: Mesh) -> None:
    host, token = Host("a"), await lab.token(uses=1)
    results = await asyncio.gather(*(lab.joins.join(host.application(token)) for _ in range(10)))
    assert sum(not result.already_member for result in results) == 1
    assert len({result.node for result in results}) == 1
    assert len(lab.addresses()) == 2


async def test_another_controller_takes_the_address_first(lab: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mirror lags: the address it takes for free is gone when the transaction comes."""
    host = Host("a")
    first = record(await lab.joins.join(host.application(await lab.token())))
    await lab.revocations.remove("mesh", host.id)
    wanted = keys.address("mesh", first.addresses[0])
    txn = lab.store.txn

    async def late(compares: Any, ops: Any) -> TxnResult:
        monkeypatch.setattr(lab.store, "txn", txn)
        await txn([], [Put(wanted, b"someone")])
        return await txn(compares, ops)

    token = await lab.token()
    monkeypatch.setattr(lab.store, "txn", late)
    again = record(await lab.joins.join(host.application(token)))
    assert again.addresses[0] != first.addresses[0]
    assert again.addresses[1:] == first.addresses[1:]


async def test_others_keep_getting_in_between(lab: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    token = await lab.token()
    txn = lab.store.txn

    async def never(compares: Any, ops: Any) -> TxnResult:
        return replace(await txn([], [Put(keys.PREFIX + "between", b"")]), succeeded=False)

    monkeypatch.setattr(lab.store, "txn", never)
    with pytest.raises(StoreUnavailableError, match="kept changing"):
        await lab.joins.join(Host("a").application(token))


async def test_an_answer_that_was_lost_is_had_by_asking_again(
    lab: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, token, txn = Host("a"), await lab.token(uses=1), lab.store.txn

    async def lost(compares: Any, ops: list[Op]) -> TxnResult:
        await txn(compares, ops)
        raise StoreUnavailableError("timed out")

    monkeypatch.setattr(lab.store, "txn", lost)
    with pytest.raises(StoreUnavailableError):
        await lab.joins.join(host.application(token))
    monkeypatch.setattr(lab.store, "txn", txn)
    again = await lab.joins.join(host.application(token))
    assert again.already_member
    assert len(lab.addresses()) == 2


async def test_a_join_that_is_carried_out_late_does_not_bring_back_who_was_removed(
    lab: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, token, txn = Host("a"), await lab.token(), lab.store.txn
    sent = []

    async def unanswered(compares: Any, ops: list[Op]) -> TxnResult:
        sent.append((compares, ops))
        raise StoreUnavailableError("it may or may not have happened")

    monkeypatch.setattr(lab.store, "txn", unanswered)
    with pytest.raises(StoreUnavailableError):
        await lab.joins.join(host.application(token))
    monkeypatch.setattr(lab.store, "txn", txn)
    await lab.joins.join(host.application(token))
    await lab.revocations.remove("mesh", host.id)
    assert not (await txn(*sent[0])).succeeded


# Someone edits the store.


async def test_a_record_that_was_made_up_can_be_removed_and_its_host_join(lab: Mesh) -> None:
    host, token = Host("a"), await lab.token()
    await put(lab, keys.node("mesh", host.id), b"garbage")
    error = await refused(lab, host, token, StoreCorruptError)
    assert f"node remove {host.id}" in error.fix
    await lab.revocations.remove("mesh", host.id)
    assert not (await lab.joins.join(host.application(token))).already_member


async def test_a_member_whose_record_was_written_over_is_given_the_genuine_one(lab: Mesh) -> None:
    host, token = Host("a"), await lab.token()
    before = await lab.joins.join(host.application(token))
    await put(lab, keys.node("mesh", host.id), b"garbage")
    await put(lab, keys.network("mesh"), b"garbage")
    again = await lab.joins.join(host.application(token))
    assert (again.node, again.network, again.already_member) == (before.node, before.network, True)


async def test_a_token_that_is_garbage(lab: Mesh) -> None:
    token = await lab.token()
    await lab.store.txn([], [Put(keys.token(token.id), b'{"id": 1}')])
    await lab.mirror.reached((await lab.store.range("", limit=1)).revision)
    await refused(lab, Host("a"), token, StoreCorruptError)
    assert lab.tokens.known() == []


async def put(lab: Mesh, key: str, value: bytes) -> None:
    result = await lab.store.txn([], [Put(key, value)])
    await lab.mirror.reached(result.revision)


async def test_a_token_that_another_mesh_made(lab: Mesh) -> None:
    token = JoinToken.new(ROOT.public_key)
    forged = Token(token.id, "mesh", sha256(token.secret_text.encode()).hexdigest(), 0, 2**40)
    await put(lab, keys.token(token.id), forged.put(MeshRoot.new()).value)
    await refused(lab, Host("a"), token, StoreCorruptError)
    assert lab.addresses() == []


async def test_a_token_that_was_given_more_time(lab: Mesh) -> None:
    token = await lab.token()
    value = (await everything(lab))[keys.token(token.id)]
    fields, _, mac = value.partition(b"\n")
    longer = json.dumps({**json.loads(fields), "expires": 2**40}).encode()
    await put(lab, keys.token(token.id), longer + b"\n" + mac)
    await refused(lab, Host("a"), token, StoreCorruptError)


async def test_the_token_of_one_id_does_not_pass_for_another(lab: Mesh) -> None:
    token, other = await lab.token(), await lab.token()
    await put(lab, keys.token(other.id), (await everything(lab))[keys.token(token.id)])
    await refused(lab, Host("a"), replace(token, id=other.id), StoreCorruptError)


async def test_the_credential_of_another_host_does_not_open_a_node(lab: Mesh) -> None:
    owner, thief, token = await lab.joined("a"), await lab.joined("b"), await lab.token()
    stolen = (await everything(lab))[keys.credential("mesh", thief.id)]
    await put(lab, keys.credential("mesh", owner.id), stolen)
    imposter = replace(thief.application(token), name="a", public_key=owner.public_key)
    with pytest.raises(CloneError):
        await lab.joins.join(imposter)


async def test_a_network_that_is_gone(lab: Mesh) -> None:
    token = await lab.token()
    await lab.store.txn([], [Delete(keys.network("mesh"))])
    await refused(lab, Host("a"), token, NotFoundError)


# Tokens.


async def test_tokens_are_listed_oldest_first_and_forgotten_a_while_after_they_expired(lab: Mesh) -> None:
    old = await lab.token(ttl=60)
    lab.clock.now += 30
    new = await lab.token(ttl=60 + KEPT_AFTER_EXPIRY, uses=2)
    assert [token.id for token in lab.tokens.known("mesh")] == [old.id, new.id]
    assert lab.tokens.known("other") == []
    lab.clock.now += 31 + KEPT_AFTER_EXPIRY
    await lab.tokens.sweep()
    assert [(token.id, token.uses_left) for token in lab.tokens.known()] == [(new.id, 2)]


@pytest.mark.parametrize(
    ("network", "ttl", "tags", "error"),
    [
        ("mesh", 0, (), InvalidError),
        ("mesh", 11 * 365 * 86400, (), InvalidError),
        ("mesh", 60, ("no good",), InvalidError),
        ("mesh", 60, tuple(f"t{n}" for n in range(17)), InvalidError),
        ("nowhere", 60, (), NotFoundError),
    ],
)
async def test_tokens_that_can_not_be(
    lab: Mesh, network: str, ttl: int, tags: tuple[str, ...], error: type[OvermeshError]
) -> None:
    with pytest.raises(error):
        await lab.tokens.create(network, ttl, 0, tags)


async def test_revoking(lab: Mesh) -> None:
    token = await lab.token()
    revision = await lab.tokens.revoke(token.id)
    assert lab.tokens.known()[0].revoked
    assert await lab.tokens.revoke(token.id) == revision
    with pytest.raises(NotFoundError):
        await lab.tokens.revoke("0123456789")


async def test_joining_leaves_one_record_of_endpoints_even_without_any(lab: Mesh) -> None:
    host = Host("a", endpoints=())
    await lab.joins.join(host.application(await lab.token()))
    assert endpoints_key(host.id) in lab.mirror.view("mesh").map.items
