from copy import copy
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overmesh.agent.peermap import Outcome, Replica
from overmesh.agent.records import ALARM
from overmesh.errors import RecordError
from overmesh.model import NETWORK_KEY, Endpoint, Network, endpoints_key, node_key
from overmesh.proto import mesh_pb2
from overmesh.proto.roots import Roots
from overmesh.proto.signed import sign
from tests.unit.agent.world import (
    FORGER,
    LATER,
    ME,
    MINE,
    NETWORK,
    ROOT,
    SOON,
    Items,
    delta,
    digest,
    endpoints,
    heartbeat,
    members,
    names,
    node,
    reasons,
    replica,
    revocation,
    root_certificate,
    signed,
    snapshot,
    without,
)


def holding(revision: int, items: Items) -> Replica:
    here = replica()
    assert [here.receive(message) for message in snapshot(revision, items)] == [Outcome.CHANGED]
    return here


# The stream.


def test_a_new_replica_knows_itself_and_asks_for_everything() -> None:
    here = replica()
    view = here.view(SOON)
    assert (view.map.me, view.map.network, view.map.peers, view.problems) == (ME, NETWORK, (), ())
    assert here.begin() == (0, digest({}))


def test_a_snapshot_counts_once_all_of_it_is_there() -> None:
    here = replica()
    messages = snapshot(5, members(2, 3), chunks=3)
    assert [here.receive(message) for message in messages] == [
        Outcome.NOTHING,
        Outcome.NOTHING,
        Outcome.CHANGED,
    ]
    assert (here.revision, names(here)) == (5, ["n2", "n3"])
    assert here.view(SOON).map.peers[0].endpoints == (Endpoint(ip_address("192.0.2.2"), 6081),)


def test_a_peer_has_the_lanes_that_its_endpoints_say() -> None:
    here = replica()
    items = members(2) | signed(replace(endpoints(2), serial=11, lanes=4))
    here.receive(snapshot(5, items)[0])
    assert [peer.lanes for peer in here.view(SOON).map.peers] == [4]


def test_chunks_left_over_from_a_broken_stream_are_forgotten() -> None:
    here = replica()
    first, second = snapshot(5, members(2, 3), chunks=2)
    here.receive(first)
    here.begin()
    assert here.receive(second) is Outcome.NOTHING
    assert here.receive(first) is Outcome.CHANGED


def test_deltas_lead_on() -> None:
    here = holding(5, members(2))
    assert here.receive(delta(5, members(2), 6, members(2, 3))) is Outcome.CHANGED
    assert here.receive(delta(6, members(2, 3), 9, members(3))) is Outcome.CHANGED
    assert (here.revision, here.digest.to_bytes(), names(here)) == (9, digest(members(3)), ["n3"])


def test_what_is_already_held_is_acked_again_and_changes_nothing() -> None:
    here = holding(5, members(2))
    step = delta(5, members(2), 6, members(2, 3))
    assert [here.receive(step), here.receive(step)] == [Outcome.CHANGED, Outcome.CHANGED]
    assert here.receive(delta(4, members(), 5, members(2))) is Outcome.NOTHING
    assert (here.revision, names(here)) == (6, ["n2", "n3"])


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(delta(7, members(2), 8, members(2, 3)), id="starts elsewhere"),
        pytest.param(delta(5, members(3), 8, members(2, 3)), id="does not lead to its digest"),
        pytest.param(delta(4, members(3), 5, members(3)), id="same revision, other map"),
        pytest.param(heartbeat(5, members(3)), id="heartbeat: same revision, other map"),
    ],
)
def test_a_map_that_went_astray_is_asked_for_whole(message: mesh_pb2.WatchReply) -> None:
    here = holding(5, members(2))
    assert here.receive(message) is Outcome.RESYNC
    assert names(here) == ["n2"], "until then the last one stays in use"
    assert here.begin() == (0, b"")
    here.receive(snapshot(8, members(2, 3))[0])
    assert here.begin() == (8, digest(members(2, 3)))


def test_a_snapshot_with_a_wrong_digest_is_not_used() -> None:
    here = replica()
    message = snapshot(5, members(2))[0]
    del message.snapshot.items[0]
    assert (here.receive(message), here.revision, names(here)) == (Outcome.RESYNC, 0, [])


def test_heartbeats_tell_where_the_controller_stands() -> None:
    here = holding(5, members(2))
    assert here.receive(heartbeat(5, members(2))) is Outcome.CURRENT
    assert here.receive(heartbeat(4, members())) is Outcome.NOTHING
    assert here.receive(heartbeat(4, members(2))) is Outcome.CURRENT, "the same map: nothing is amiss"
    assert here.receive(heartbeat(6, members(2, 3))) is Outcome.BEHIND
    assert here.receive(heartbeat(7, members(2))) is Outcome.CHANGED, "the same map, under a newer revision"
    assert here.revision == 7


# What is refused.


def with_item(key: str, value: bytes) -> Items:
    return members(2, 3) | {key: value}


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (sign(node(3, 11), FORGER), "not signed by this mesh's root"),
        (b"\xff\xff", "not a signed record"),
        (sign(node(4), ROOT), "is the record of node/n4, not of node/n3"),
        (sign(endpoints(3), ROOT), "not signed by this mesh's root"),
        (sign(node(3, 11, network="other"), ROOT), "is of network other, not of mesh"),
        (sign(node(3, 9), ROOT), "serial 9 is older than 10, which is in use"),
    ],
)
def test_a_bad_record_is_named_and_the_last_good_one_stays(item: bytes, reason: str) -> None:
    here = holding(5, members(2, 3))
    bad = with_item(node_key("n3"), item)
    assert here.receive(delta(5, members(2, 3), 6, bad)) is Outcome.CHANGED
    assert (names(here), reasons(here)) == (["n2", "n3"], {"node/n3": reason})
    assert here.digest.to_bytes() == digest(bad), "what is held is provable, used or not"


def test_a_made_up_peer_gets_nowhere() -> None:
    here = holding(5, members(2))
    forged = members(2) | {
        node_key("n9"): sign(node(9), FORGER),
        endpoints_key("n9"): sign(endpoints(9), FORGER),
    }
    here.receive(delta(5, members(2), 6, forged))
    assert (names(here), sorted(reasons(here))) == (["n2"], ["endpoints/n9", "node/n9"])


def test_what_is_put_right_is_no_problem_any_more() -> None:
    here = holding(5, members(2) | {node_key("n3"): sign(node(3), FORGER)})
    assert reasons(here)
    here.receive(snapshot(6, members(2, 3))[0])
    assert (names(here), reasons(here)) == (["n2", "n3"], {})


def test_a_bad_record_that_goes_away_takes_its_problem_along() -> None:
    here = holding(5, members(2) | {node_key("n3"): sign(node(3), FORGER)})
    here.receive(snapshot(6, members(2))[0])
    assert reasons(here) == {}


def test_an_expired_record_is_refused_from_that_moment_on() -> None:
    here = holding(5, members(2) | signed(node(3, not_after=SOON), endpoints(3)))
    assert (names(here, SOON), reasons(here, SOON)) == (["n2", "n3"], {})
    assert (names(here, SOON + 1), reasons(here, SOON + 1)) == (["n2"], {"node/n3": "expired"})


VANISHED = "went from the map, and nothing says that it was taken out"


def test_what_went_away_comes_back_but_nothing_older() -> None:
    here = holding(5, members(2, 3))
    here.receive(delta(5, members(2, 3), 6, members(2)))
    assert (names(here), reasons(here)) == (["n2"], {"node/n3": VANISHED})
    older = members(2) | signed(node(3, 9), endpoints(3, 9))
    here.receive(delta(6, members(2), 7, older))
    why = "serial 9 is older than 10, which was in use"
    assert (names(here), reasons(here)) == (["n2"], {"node/n3": why, "endpoints/n3": why})
    here.receive(delta(7, older, 8, members(2, 3)))
    assert (names(here), reasons(here)) == (["n2", "n3"], {})


def test_what_went_away_is_remembered_across_restarts_until_it_would_have_expired() -> None:
    here = holding(5, members(2, 3))
    here.receive(delta(5, members(2, 3), 6, members(2)))
    here.prune(LATER)
    again = replica(here.held())
    again.receive(delta(6, members(2), 7, members(2) | signed(node(3, 9))))
    assert names(again) == ["n2"]
    again.prune(LATER + 1)
    assert not again.held().floors


def test_who_went_unexplained_is_told_of_for_a_day_or_until_it_is_explained() -> None:
    here = holding(5, members(2, 3, 4))
    here.receive(delta(5, members(2, 3, 4), 6, members(2)))
    here.prune(SOON)
    here.prune(SOON + ALARM - 1)
    assert reasons(here) == {"node/n3": VANISHED, "node/n4": VANISHED}
    here.receive(delta(6, members(2), 7, members(2) | signed(revocation(4))))
    assert reasons(here) == {"node/n3": VANISHED}
    here.prune(SOON + ALARM)
    assert reasons(here) == {}


# What is revoked.

EXPIRED = "this host's own membership expired; others refuse it"
REVOKED = "serial 10 was revoked; only 11 or later comes back"
LEFT_OUT = "the map leaves out this revocation before its time; it is kept to all the same"


def test_a_revoked_node_comes_back_only_with_a_higher_serial() -> None:
    gone = members(2) | signed(revocation(3))
    here = holding(5, members(2, 3))
    here.receive(delta(5, members(2, 3), 6, gone))
    assert (names(here), reasons(here)) == (["n2"], {})
    replayed = gone | members(3)
    here.receive(delta(6, gone, 7, replayed))
    assert (names(here), reasons(here)) == (["n2"], {"node/n3": REVOKED, "endpoints/n3": REVOKED})
    again = gone | signed(node(3, 11), endpoints(3, 12))
    here.receive(delta(7, replayed, 8, again))
    assert (names(here), reasons(here)) == (["n2", "n3"], {})


def test_who_joined_later_refuses_a_revoked_node_too() -> None:
    here = holding(5, members(2, 3) | signed(revocation(3)))
    assert (names(here), reasons(here)) == (["n2"], {"node/n3": REVOKED, "endpoints/n3": REVOKED})


def test_a_revocation_cuts_a_node_off_whose_record_stays() -> None:
    here = holding(5, members(2, 3))
    here.receive(delta(5, members(2, 3), 6, members(2, 3) | signed(revocation(3))))
    assert (names(here), reasons(here)) == (["n2"], {"node/n3": REVOKED, "endpoints/n3": REVOKED})


def test_a_ban_takes_no_newer_record() -> None:
    ban = signed(revocation(3, banned=True, not_after=0))
    here = holding(5, members(2) | ban | signed(node(3, 99)))
    assert (names(here), reasons(here)) == (
        ["n2"],
        {"node/n3": "the key of this node was revoked for good"},
    )
    lifted = members(2) | signed(node(3, 99), revocation(3, serial=100))
    here.receive(snapshot(6, lifted)[0])
    assert names(here) == ["n2"]
    assert reasons(here)["revoked/n3"] == "this key was revoked for good, and that is final"


def test_a_revocation_that_the_map_leaves_out_stays_in_force_across_restarts_and_is_shown() -> None:
    gone = members(2) | signed(revocation(3))
    here = holding(5, gone)
    assert here.withheld(SOON) == {}
    here.receive(delta(5, gone, 6, members(2, 3)))
    for one in (here, replica(here.held())):
        assert names(one) == ["n2"]
        assert reasons(one) == {"node/n3": REVOKED, "endpoints/n3": REVOKED, "revoked/n3": LEFT_OUT}
        assert one.withheld(SOON) == signed(revocation(3))
    here.receive(delta(6, members(2, 3), 7, gone))
    assert (reasons(here), here.withheld(SOON)) == ({}, {})


def test_a_revocation_is_forgotten_once_what_it_voids_has_expired() -> None:
    here = holding(5, members(2) | signed(revocation(3)))
    here.receive(delta(5, members(2) | signed(revocation(3)), 6, members(2)))
    here.prune(LATER)
    assert here.withheld(LATER)
    assert reasons(here, LATER + 1) == {"node/n2": "expired", "node/n1": EXPIRED}
    here.prune(LATER + 1)
    assert not here.held().good.keys() & {"revoked/n3"}


def test_a_host_that_was_taken_out_says_so() -> None:
    here = holding(5, members(2) | signed(revocation(1)))
    assert reasons(here)["node/n1"] == "this host was taken out of the network; others refuse it"


def test_a_store_that_went_back_is_named_until_it_is_where_it_was() -> None:
    here = holding(5, members(2, 3))
    here.begin()
    here.receive(snapshot(3, members(2))[0])
    assert reasons(here) == {
        "node/n3": VANISHED,
        "store": "the controllers' store went back from revision 5 to 3: "
        "restored from a backup, or tampered with",
    }
    assert reasons(replica(here.held())).keys() == {"store"}
    here.receive(delta(3, members(2), 6, members(2, 3)))
    assert reasons(here) == {}


def test_after_a_day_a_store_that_counts_anew_is_taken_for_what_it_is() -> None:
    here = holding(5, members(2))
    here.receive(snapshot(3, members(2))[0])
    for now in (SOON, SOON + ALARM - 1):
        here.prune(now)
        assert reasons(here).keys() == {"store"}
    here.prune(SOON + ALARM)
    assert reasons(here) == {}
    here.receive(snapshot(2, members(2))[0])
    assert "from revision 3 to 2" in reasons(here)["store"]


def test_two_nodes_with_one_address_the_later_record_has_it() -> None:
    here = holding(5, members(2) | signed(node(3, 11, addresses=node(2).addresses)))
    assert (names(here), reasons(here)) == (
        ["n3"],
        {"node/n2": "claims 10.77.0.2/32, which belongs to host3"},
    )


def test_nobody_can_claim_an_address_or_route_of_this_host() -> None:
    here = holding(5, MINE | signed(node(3, 99, addresses=(ip_address("10.77.0.1"),))))
    assert (names(here), reasons(here)) == ([], {"node/n3": "claims 10.77.0.1/32, which belongs to host1"})


def test_one_route_belongs_to_one_node() -> None:
    route = (ip_network("192.168.7.0/24"),)
    here = holding(5, MINE | signed(node(2, 10, routes=route), node(3, 9, routes=route)))
    assert (names(here), reasons(here)) == (
        ["n2"],
        {"node/n3": "claims 192.168.7.0/24, which belongs to host2"},
    )


def test_an_address_outside_the_network_is_refused() -> None:
    here = holding(5, MINE | signed(node(2, addresses=(ip_address("10.78.0.2"),))))
    assert (names(here), reasons(here)) == (
        [],
        {"node/n2": "address 10.78.0.2 is outside the ranges of network mesh"},
    )


def test_a_peer_without_endpoints_is_kept() -> None:
    here = holding(5, MINE | signed(node(2)))
    assert [(peer.node.id, peer.endpoints) for peer in here.view(SOON).map.peers] == [("n2", ())]


def test_no_map_can_take_from_this_host_who_it_is() -> None:
    here = holding(5, members(2))
    here.receive(snapshot(6, signed(node(2)))[0])
    assert (here.view(SOON).map.me, here.view(SOON).map.network, names(here)) == (ME, NETWORK, ["n2"])
    assert sorted(reasons(here)) == [NETWORK_KEY, "node/n1"]


def test_the_own_record_expires_aloud_but_stays() -> None:
    here = holding(5, members(2) | signed(node(2, not_after=9 * LATER)))
    assert names(here, LATER + 1) == ["n2"]
    assert reasons(here, LATER + 1) == {"node/n1": EXPIRED}


def test_a_newer_network_and_own_record_are_taken_over() -> None:
    wider = Network("mesh", 7, (ip_network("10.76.0.0/15"),), serial=2)
    moved = node(1, 11, addresses=(ip_address("10.76.0.1"),))
    view = holding(5, signed(wider, moved)).view(SOON)
    assert (view.map.network, view.map.me, view.problems) == (wider, moved, ())


def test_a_replica_without_a_verified_self_is_not_made() -> None:
    with pytest.raises(RecordError, match="not signed by this mesh's root"):
        Replica(Roots((root_certificate(FORGER),)), MINE[NETWORK_KEY], ME.id, MINE[node_key(ME.id)])


# On disk.


def test_what_was_held_is_held_again() -> None:
    here = holding(5, members(2, 3))
    here.receive(delta(5, members(2, 3), 6, with_item(node_key("n3"), sign(node(3, 9), ROOT))))
    again = replica(here.held())
    assert again.view(SOON) == here.view(SOON)
    assert (again.revision, again.digest, again.held()) == (here.revision, here.digest, here.held())


def test_a_cleared_replica_is_as_new_but_remembers_revocations() -> None:
    here = holding(5, members(2, 3))
    here.receive(delta(5, members(2, 3), 6, members(2) | signed(revocation(3))))
    here.clear()
    assert here.view(SOON).problems == ()
    assert (here.begin(), names(here), here.view(SOON).map.me) == ((0, digest({})), [], ME)
    here.receive(snapshot(7, members(2, 3))[0])
    assert names(here) == ["n2"]


# Whatever happens on the way, the truth in the end.

HISTORY: list[Items] = [
    members(),
    members(2),
    members(2, 3),
    without(members(2, 3), 2),
    members(2, 3) | signed(node(2, 20), endpoints(2, 20)),
    members(2, 3) | signed(node(2, 21), endpoints(2, 22, port=7000)),
    without(members(2, 3), 3) | signed(node(2, 21), endpoints(2, 22, port=7000), revocation(3)),
    without(members(2, 3, 4), 3) | signed(node(2, 21), endpoints(2, 22, port=7000), revocation(3)),
    members(2, 4) | signed(node(2, 23), endpoints(2, 22, port=7000), revocation(3), node(3, 11)),
]
LAST = len(HISTORY)


def messages() -> st.SearchStrategy[mesh_pb2.WatchReply]:
    """Return anything that a controller could have said at any time."""
    every = [
        message
        for chunks in (1, 2)
        for at, items in enumerate(HISTORY, 1)
        for message in snapshot(at, items, chunks)
    ]
    every += [
        delta(start, HISTORY[start - 1], end, HISTORY[end - 1])
        for start in range(1, LAST)
        for end in range(start + 1, LAST + 1)
    ]
    every += [heartbeat(at, items) for at, items in enumerate(HISTORY, 1)]
    return st.sampled_from(every)


@settings(max_examples=200)
@given(st.lists(messages(), max_size=12), st.booleans())
def test_any_order_loss_and_repetition_then_a_snapshot_gives_the_truth(
    received: list[mesh_pb2.WatchReply], restarted: bool
) -> None:
    here = replica()
    for message in received:
        here.receive(message)
    if restarted:
        here = replica(here.held())
    here.begin()
    for message in snapshot(LAST, HISTORY[-1], chunks=2):
        here.receive(message)
    truth = holding(LAST, HISTORY[-1])
    assert (here.revision, here.digest, here.view(SOON)) == (truth.revision, truth.digest, truth.view(SOON))


@settings(max_examples=100)
@given(st.lists(messages(), max_size=12))
def test_the_digest_is_always_that_of_the_held_items(received: list[mesh_pb2.WatchReply]) -> None:
    here = replica()
    for message in received:
        here.receive(message)
        assert here.digest.to_bytes() == digest(here.held().items)


# What is kept from one look to the next.

MOMENTS = st.sampled_from([SOON - 1, SOON, SOON + 1, LATER, LATER + 1])


@settings(max_examples=200)
@given(st.lists(st.tuples(messages(), MOMENTS), max_size=12))
def test_a_view_is_what_it_would_be_if_nothing_had_been_kept(
    received: list[tuple[mesh_pb2.WatchReply, float]],
) -> None:
    here = replica()
    for message, now in received:
        here.receive(message)
        anew = copy(here)
        anew._known, anew._peers = None, {}
        assert here.view(now) == anew.view(now)


def test_peers_that_stay_as_they_are_stay_the_same_objects() -> None:
    before = members(2, 3, 4)
    here = holding(5, before)
    first = here.view(SOON).map.peers
    after = before | signed(endpoints(3, 11, port=7000)) | signed(node(4, 11))
    here.receive(delta(5, before, 6, after))
    second = here.view(SOON + 1).map.peers
    assert [one is other for one, other in zip(first, second, strict=True)] == [True, False, False]
    assert second[1].endpoints[0].port == 7000
    assert second[2].node.serial == 11
