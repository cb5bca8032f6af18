"""The replica goes from one mesh root to the next by what the map says, and by nothing else."""

from collections.abc import Mapping
from itertools import pairwise

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding

from overmesh.agent.peermap import Replica
from overmesh.model import NETWORK_KEY, Record, Root, node_key
from overmesh.proto.roots import Roots, fingerprint
from overmesh.proto.signed import map_key, sign
from tests.unit.agent.world import (
    FORGER,
    ME,
    MINE,
    NETWORK,
    ROOT,
    ROOTS,
    SOON,
    delta,
    endpoints,
    members,
    node,
    replica,
    root_certificate,
    snapshot,
)

NEXT = generate_private_key(SECP256R1())
NEXT_CERTIFICATE = root_certificate(NEXT)
CERTIFICATES = {ROOT: ROOTS.certificates[0], NEXT: NEXT_CERTIFICATE, FORGER: root_certificate(FORGER)}
Items = dict[str, bytes]


def by(key: EllipticCurvePrivateKey, *records: Record) -> Items:
    return {map_key(record): sign(record, key) for record in records}


def root(key: EllipticCurvePrivateKey, *, retired: bool = False, serial: int = 1) -> Root:
    return Root(CERTIFICATES[key].public_bytes(Encoding.DER), retired=retired, serial=serial)


OLD_MAP = members(2)
STAGED = OLD_MAP | by(ROOT, root(NEXT))
ACTIVE = STAGED | by(NEXT, NETWORK, node(1, 11), node(2, 11), endpoints(1, 11), endpoints(2, 11))
RETIRED = ACTIVE | by(NEXT, root(NEXT, serial=2), root(ROOT, retired=True))


def after(*steps: Mapping[str, bytes]) -> Replica:
    held = replica()
    held.receive(*snapshot(1, OLD_MAP))
    for revision, (before, now) in enumerate(pairwise([OLD_MAP, *steps]), 1):
        held.receive(delta(revision, before, revision + 1, now))
    return held


def test_all_the_way() -> None:
    for held in (after(STAGED, ACTIVE, RETIRED), after(STAGED, RETIRED), after(ACTIVE, RETIRED)):
        assert held.roots.fingerprints == (fingerprint(NEXT_CERTIFICATE),)
        view = held.view(SOON)
        assert [peer.node.id for peer in view.map.peers] == ["n2"]
        assert view.problems == ()
        assert held.signing == fingerprint(NEXT_CERTIFICATE)
        assert not held.estranged


def test_who_missed_the_overlap_keeps_what_it_has_and_knows_that_something_is_wrong() -> None:
    held = after(RETIRED)
    assert held.roots == ROOTS
    assert [peer.node.id for peer in held.view(SOON).map.peers] == ["n2"]
    assert held.estranged
    held.follow_roots((*by(ROOT, root(NEXT)).items(), *RETIRED.items()))
    assert held.view(SOON).problems == ()
    assert not held.estranged


def test_who_comes_back_uses_the_old_map_until_the_new_one_is_there() -> None:
    held = after(OLD_MAP | by(ROOT, node(3), endpoints(3)))
    held.follow_roots((*by(ROOT, root(NEXT)).items(), *RETIRED.items()))
    assert held.roots.fingerprints == (fingerprint(NEXT_CERTIFICATE),)
    assert [peer.node.id for peer in held.view(SOON).map.peers] == ["n2", "n3"]
    held.receive(*snapshot(9, RETIRED | by(ROOT, node(3), endpoints(3))))
    assert [peer.node.id for peer in held.view(SOON).map.peers] == ["n2"]
    assert [problem.subject for problem in held.view(SOON).problems] == ["endpoints/n3", "node/n3"]


def test_both_are_good_in_between() -> None:
    held = after(STAGED)
    assert len(held.roots.keys) == 2
    assert held.signing == ROOTS.fingerprints[0]
    assert after(STAGED, ACTIVE).view(SOON).problems == ()


def test_what_came_too_early_is_used_once_its_root_is_trusted() -> None:
    early = OLD_MAP | by(NEXT, node(2, 11))
    held = after(early)
    assert [problem.subject for problem in held.view(SOON).problems] == [node_key("n2")]
    held.receive(delta(2, early, 3, early | by(ROOT, root(NEXT))))
    assert held.view(SOON).problems == ()
    assert held.view(SOON).map.peers[0].node.serial == 11


def test_what_only_the_old_root_signed_goes_with_it() -> None:
    """A thief has both, the old key and the store."""
    forged = by(ROOT, node(3, 99), root(FORGER)) | by(FORGER, node(4, 99), endpoints(4, 99))
    held = after(STAGED, ACTIVE | forged, RETIRED | forged)
    assert held.roots.fingerprints == (fingerprint(NEXT_CERTIFICATE),)
    assert [peer.node.id for peer in held.view(SOON).map.peers] == ["n2"]


def test_a_stranger_changes_nothing() -> None:
    said = by(FORGER, root(FORGER), root(ROOT, retired=True))
    assert after(OLD_MAP | said).roots == ROOTS


def test_what_is_kept_leads_there_again() -> None:
    held = after(STAGED, ACTIVE, RETIRED)
    network, mine = held.own
    again = Replica(held.roots, network, ME.id, mine, held.held())
    assert again.view(SOON) == held.view(SOON)
    # The roots were not kept any more when the map was: it leads there by itself.
    early = Replica(ROOTS, MINE[NETWORK_KEY], ME.id, MINE[node_key(ME.id)], after(STAGED, ACTIVE).held())
    assert early.roots == Roots((*ROOTS.certificates, NEXT_CERTIFICATE))
    assert early.view(SOON).problems == ()
