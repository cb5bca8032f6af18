//! Initiations that somebody has kept and plays again where their stamp is not known to be old: to a host
//! that was restarted, or to another lane.

use super::*;

impl World {
    /// A world in which an initiation of A's was kept, and B has since been restarted and begun a
    /// session by itself: it has never seen a stamp of A's.
    fn with_a_kept_initiation() -> (Self, Flight) {
        let mut world = Self::new();
        world.send(A, b"x");
        let kept = world.wire[0].clone();
        world.settle();
        world.take_packets(B);
        world.pass(SECOND);
        world.restart(B, 99);
        assert!(world.reaches(B));
        world.sent.clear();
        world.hosts[B].news.clear();
        (world, kept)
    }

    fn put_on_lane(&mut self, host: usize, lane: u8) {
        let keys = self.hosts[host].keys.clone();
        self.replace(host, Peers::new(keys, random(host as u64)).on_lane(lane));
    }
}

fn elsewhere() -> SocketAddr {
    "203.0.113.9:1024".parse().unwrap()
}

#[test]
fn costs_no_more_than_an_answer() {
    let (mut world, kept) = World::with_a_kept_initiation();
    let early = world.caught();
    world.deliver(Flight { source: elsewhere(), ..kept });
    assert_eq!(world.take_sent(), [(A, DATA), (B, RESPONSE)]);
    assert!(world.wire.is_empty(), "the answer goes where it was asked for");
    assert_eq!((world.hosts[B].peers.endpoint(PEER), &world.hosts[B].news), (Some(address(A)), &vec![]));
    world.deliver(early);
    assert_eq!(world.take_packets(B).len(), 1);
    assert!(world.reaches(A) && world.reaches(B));
    assert_eq!(world.take_sent(), [(A, DATA), (B, DATA)], "no handshake was needed");
}

#[test]
fn does_not_end_the_session_before() {
    let (mut world, kept) = World::with_a_kept_initiation();
    let before = world.caught();
    world.pass(REKEY_AFTER_TIME);
    assert!(world.reaches(A) && world.reaches(B));
    assert!(world.take_sent().contains(&(B, INITIATION)), "the session was renewed");
    world.deliver(Flight { source: elsewhere(), ..kept });
    world.deliver(before);
    assert_eq!(world.take_packets(B).len(), 1);
}

#[test]
fn does_not_pass_for_a_sign_of_life() {
    let (mut world, kept) = World::with_a_kept_initiation();
    world.send(B, b"lost");
    world.lose();
    world.deliver(Flight { source: elsewhere(), ..kept });
    world.take_sent();
    world.pass_with(KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + REKEY_JITTER, |_| {});
    assert!(world.take_sent().contains(&(B, INITIATION)));
}

#[test]
fn who_is_somewhere_else_is_followed_once_it_sends() {
    let mut world = World::connected();
    world.pass(REKEY_AFTER_TIME);
    world.hosts[A].address = elsewhere();
    world.send(A, b"x");
    // Its packet by the old session is lost, its initiation arrives.
    world.wire.pop_front();
    let initiation = world.wire.pop_front().unwrap();
    world.deliver(initiation);
    assert_eq!(world.hosts[B].peers.endpoint(PEER), Some(address(A)));
    world.settle();
    assert_eq!(world.hosts[B].peers.endpoint(PEER), Some(elsewhere()));
    assert!(world.reaches(A) && world.reaches(B));
}

#[test]
fn another_lane_knows_that_it_is_not_meant() {
    for (from, to) in [(0, 1), (1, 0), (1, 2)] {
        let mut world = World::new();
        world.put_on_lane(A, from);
        world.put_on_lane(B, to);
        world.send(A, b"x");
        world.settle();
        assert_eq!(world.take_drops(B), [DropReason::HandshakeReplayed]);
        assert_eq!(world.take_sent(), [(A, INITIATION)], "not answered");
    }
    let mut world = World::new();
    world.put_on_lane(A, 1);
    world.put_on_lane(B, 1);
    assert!(world.reaches(A) && world.reaches(B));
}
