//! A host changes its key while packets flow.

use super::*;
use crate::noise::HostKeys;
use crate::noise::cookie::Signer;
use crate::noise::handshake::{Ephemeral, Initiator};
use crate::noise::tai64n;
use crate::noise::world::{STEPS, later_key};

impl World {
    /// Sends both ways, once a second; every packet has to arrive.
    fn talk(&mut self, seconds: u32) {
        for _ in 0..seconds {
            assert!(self.reaches(A) && self.reaches(B));
            self.pass(SECOND);
        }
        assert!(self.take_drops(A).is_empty() && self.take_drops(B).is_empty());
    }

    /// An initiation made by hand: by whoever has key `from`, for a host's key `to`.
    fn forge(&mut self, from: &PrivateKey, to: &PrivateKey, host: usize) -> Flight {
        let stamp = tai64n::stamp(self.now().unix + SECOND, 0);
        let peer = PeerKeys::new(to.public());
        let begun = Initiator::initiate(from, &peer, 9, stamp, Ephemeral::new([7; 32]));
        let (_, mut bytes) = begun.unwrap();
        Signer::new(&to.public()).sign(&mut bytes, self.time);
        Flight { to: host, source: address(1 - host), bytes: bytes.to_vec() }
    }

    /// What becomes of an initiation made by hand.
    fn outcome(&mut self, from: &PrivateKey, to: &PrivateKey, host: usize) -> Vec<DropReason> {
        let flight = self.forge(from, to, host);
        self.deliver(flight);
        self.lose();
        self.take_drops(host)
    }
}

/// Longer than any session lives, so that every step sees handshakes.
const LONG: u32 = 200;

#[test]
fn no_step_costs_a_packet() {
    let mut world = World::connected();
    for _ in 0..2 * STEPS {
        world.rotate(A);
        world.talk(LONG);
    }
}

#[test]
fn both_may_change_their_keys_at_once() {
    let mut world = World::connected();
    for _ in 0..STEPS {
        world.rotate(A);
        world.talk(1);
        world.rotate(B);
        world.talk(LONG);
    }
}

#[test]
fn steps_that_follow_at_once_cost_no_packet() {
    let mut world = World::connected();
    for _ in 0..STEPS {
        world.rotate(A);
        world.rotate(B);
        world.talk(1);
    }
    world.talk(LONG);
}

#[test]
fn sessions_outlive_the_key_that_they_were_made_with_until_the_next_handshake() {
    let mut world = World::connected();
    for _ in 0..STEPS {
        world.rotate(A);
    }
    world.take_sent();
    assert!(world.reaches(A) && world.reaches(B));
    assert_eq!(world.take_sent(), [(A, DATA), (B, DATA)]);
    world.pass(REJECT_AFTER_TIME + SECOND);
    assert!(world.reaches(A) && world.reaches(B));
    assert!(world.take_sent().contains(&(A, INITIATION)));
}

#[test]
fn the_old_key_is_good_until_it_is_dropped_and_then_refused_by_name() {
    let [old, new, b] = [later_key(A, 0), later_key(A, 1), later_key(B, 0)];
    let mut world = World::new();
    world.rotate(A);
    for to in [&old, &new] {
        world.pass(SECOND);
        assert!(world.outcome(&b, to, A).is_empty());
    }
    world.rotate(A);
    for from in [&old, &new] {
        world.pass(SECOND);
        assert!(world.outcome(from, &b, B).is_empty());
    }
    for _ in 2..STEPS {
        world.rotate(A);
    }
    world.pass(SECOND);
    assert_eq!(world.outcome(&b, &old, A), [DropReason::Mac1Invalid]);
    assert_eq!(world.outcome(&old, &b, B), [DropReason::KeyUnknown]);
    assert!(world.outcome(&b, &new, A).is_empty() && world.outcome(&new, &b, B).is_empty());
}

#[test]
fn a_peer_that_learns_of_it_last_is_talked_to_all_the_same() {
    let mut world = World::connected();
    world.rotate(A);
    // The host goes by its new key before the other knows it.
    let keys = HostKeys { own: later_key(A, 1), other: Some(later_key(A, 0)) };
    assert!(world.hosts[A].peers.rekey(&keys));
    assert!(world.reaches(A) && world.reaches(B));
    world.pass(REJECT_AFTER_TIME + SECOND);
    assert!(!world.reaches(A));
    assert_eq!(world.take_drops(B), [DropReason::KeyUnknown]);
    assert!(world.reaches(B), "what b begins is for the old key");
    assert!(world.reaches(A));
    world.rotate(A);
    world.talk(LONG);
}

#[test]
fn who_does_not_answer_one_key_is_asked_by_the_other() {
    // A WireGuard that knows no previous keys: the old one, or by hand already the new one.
    for (changes, own) in [(0, 1), (1, 0)] {
        let mut world = World::new();
        let keys = HostKeys { own: later_key(A, own), other: Some(later_key(A, 1 - own)) };
        world.rotate(A);
        assert!(world.hosts[A].peers.rekey(&keys));
        world.hosts[B].other = PeerKeys::new(later_key(A, changes).public());
        world.install(B);
        assert!(!world.reaches(A));
        assert_eq!(world.take_drops(B), [DropReason::KeyUnknown]);
        world.pass(REKEY_TIMEOUT + REKEY_JITTER);
        assert_eq!(world.take_packets(B), [b"are you there?"]);
        assert!(world.reaches(B));
    }
}

#[test]
fn a_handshake_under_way_is_finished() {
    for host in [A, B] {
        let mut world = World::new();
        world.send(host, b"on its way");
        for _ in 0..3 {
            world.rotate(A);
        }
        world.settle();
        assert_eq!(world.take_packets(1 - host), [b"on its way"]);
        world.talk(1);
    }
}

#[test]
fn a_host_under_load_takes_cookies_for_either_key() {
    for host in [A, B] {
        for steps in 1..STEPS {
            let mut world = World::new();
            (0..steps).for_each(|_| world.rotate(A));
            for _ in 0..=admission::LOAD {
                let key = world.hosts[1 - host].keys.own.clone();
                world.outcome(&later_key(host, 9), &key, 1 - host);
            }
            world.send(host, b"through the flood");
            world.settle();
            assert!(world.take_drops(1 - host).contains(&DropReason::CookieRequired));
            world.pass(REKEY_TIMEOUT + REKEY_JITTER);
            assert_eq!(world.take_packets(1 - host), [b"through the flood"]);
        }
    }
}

#[test]
fn keys_that_share_none_with_those_before_are_another_host() {
    let mut peers = Peers::new(private_key(A), random(0));
    assert!(!peers.rekey(&private_key(B).into()));
    assert!(peers.rekey(&HostKeys { own: private_key(B), other: Some(private_key(A)) }));
    assert!(peers.rekey(&private_key(B).into()));
    assert!(!peers.rekey(&private_key(A).into()));
}

#[test]
fn a_peer_that_shares_no_key_with_the_one_before_is_another_one() {
    let mut world = World::connected();
    assert_eq!(world.hosts[B].peers.index_count(), 1);
    world.hosts[B].other = PeerKeys::new(later_key(A, 1).public());
    world.install(B);
    assert_eq!(world.hosts[B].peers.index_count(), 0);
}

proptest! {
    /// Steps of both hosts in any order, at any time, with any traffic.
    #[test]
    fn packets_arrive_whatever_comes_between_the_steps(
        script in prop::collection::vec((0_u8..4, 0_u64..150), 0..30)
    ) {
        let mut world = World::connected();
        for (what, seconds) in script {
            match what {
                0 => world.rotate(A),
                1 => world.rotate(B),
                2 => prop_assert!(world.reaches(A)),
                _ => prop_assert!(world.reaches(B)),
            }
            world.pass(SECOND * u32::try_from(seconds).unwrap());
        }
        prop_assert!(world.take_drops(A).is_empty() && world.take_drops(B).is_empty());
    }
}
