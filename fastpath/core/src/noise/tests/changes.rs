//! Peers come, go and change positions beside one that there is a session with.

use super::*;
use crate::peers::PeerIndex;

type Wanted = (PeerKeys, Option<SocketAddr>);

fn other(number: usize) -> Wanted {
    let keepalive = Some(SECOND);
    (PeerKeys { public_key: private_key(number).public(), keepalive, ..keys_of(A) }, Some(address(number)))
}

fn b() -> Wanted {
    (keys_of(B), Some(address(B)))
}

impl World {
    fn change(&mut self, count: usize, changed: impl IntoIterator<Item = (usize, Wanted)>) {
        let now = self.now();
        let changed = changed.into_iter().map(|(at, wanted)| (PeerIndex(at), wanted));
        self.hosts[A].peers.change(count, changed, MTU, now);
    }

    /// Whether B can send to A by the session that there was.
    fn goes_on(&mut self) -> bool {
        self.lose();
        self.take_sent();
        let reaches = self.reaches(B);
        reaches && self.take_sent().contains(&(B, DATA)) && self.take_drops(A).is_empty()
    }
}

#[test]
fn who_is_not_named_is_not_touched() {
    let mut world = World::connected();
    world.change(3, [(1, other(7)), (2, other(8))]);
    assert!(world.goes_on());
    // The last takes the place of the one that goes.
    world.change(2, [(1, other(8))]);
    assert!(world.goes_on());
    world.change(1, []);
    assert!(world.goes_on());
}

#[test]
fn a_session_follows_its_peer_to_another_position() {
    let mut world = World::connected();
    world.change(3, [(0, other(7)), (1, other(8)), (2, b())]);
    assert!(world.goes_on());
    let now = world.now();
    assert!(world.hosts[A].peers.sealer(PeerIndex(2), now).is_some());
    assert!(world.hosts[A].peers.sealer(PEER, now).is_none());
    world.change(1, [(0, b())]);
    assert!(world.goes_on() && world.hosts[A].peers.sealer(PEER, now).is_some());
}

#[test]
fn of_who_goes_nothing_stays() {
    let mut world = World::connected();
    world.change(1, [(0, other(7))]);
    assert!(!world.goes_on());
    assert_eq!(world.take_drops(A), [DropReason::IndexUnknown]);
    world.change(0, []);
    assert_eq!(world.hosts[A].peers.index_count(), 0);
    // What was to wake peers that are gone wakes nobody.
    world.pass(REJECT_AFTER_TIME);
    world.change(1, [(0, b())]);
    assert!(world.reaches(A));
}

#[test]
fn handshakes_are_tried_with_the_suites_in_use() {
    let mut world = World::with(|_, keys| keys.suite = Suite::AesGcm);
    world.change(2, [(1, other(7))]);
    world.change(1, []);
    assert!(world.reaches(B));
    let chacha = world.hosts[A].other.clone();
    world.change(1, [(0, (PeerKeys { suite: Suite::ChaChaPoly, ..chacha }, None))]);
    world.pass(REJECT_AFTER_TIME + SECOND);
    assert!(!world.reaches(B));
    assert!(world.take_drops(A).contains(&DropReason::HandshakeInvalid));
}
