//! Handshakes, tampering, time: two hosts in memory.
#![allow(clippy::unchecked_time_subtraction, clippy::cast_possible_truncation)]

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::aead::Suite;
use super::cookie::COOKIE_LIFETIME;
use super::keys::{PeerKeys, PresharedKey, PrivateKey, PublicKey};
use super::peer::{KEEPALIVE_TIMEOUT, QUEUE_BYTES, REKEY_ATTEMPT_TIME, REKEY_JITTER, REKEY_TIMEOUT};
use super::peers::{Output, Peers};
use super::session::{REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME};
use super::world::{A, B, Flight, MTU, PEER, SECOND, World, address, keys_of, private_key, random};
use super::{admission, replay};
use crate::drops::DropReason;
use crate::wire::wireguard::{self, HEADER_LEN, TAG_LEN};

mod changes;
mod played_again;
mod rotation;

const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const COOKIE_REPLY: u8 = 3;
const DATA: u8 = 4;

impl Flight {
    fn kind(&self) -> u8 {
        self.bytes[0]
    }
}

impl World {
    /// A world in which a session was made from A to B and confirmed.
    fn connected() -> Self {
        let mut world = Self::new();
        world.send(A, b"first");
        world.settle();
        assert_eq!(world.take_packets(B), [b"first"]);
        world.sent.clear();
        world
    }

    /// Loses what is on the wire.
    fn lose(&mut self) -> Vec<Flight> {
        self.wire.drain(..).collect()
    }

    fn take_drops(&mut self, host: usize) -> Vec<DropReason> {
        std::mem::take(&mut self.hosts[host].drops)
    }

    fn take_sent(&mut self) -> Vec<(usize, u8)> {
        std::mem::take(&mut self.sent)
    }

    /// A sealed packet from A, caught on the wire.
    fn caught(&mut self) -> Flight {
        self.send(A, b"caught on the wire");
        self.wire.pop_back().expect("it was sent")
    }
}

// --- handshakes ---

#[test]
fn what_waits_for_the_handshake_arrives_in_order() {
    let mut world = World::new();
    for packet in [b"one", b"two"] {
        world.send(A, packet);
    }
    world.settle();
    assert_eq!(world.take_packets(B), [b"one", b"two"]);
    assert_eq!(world.take_sent(), [(A, INITIATION), (B, RESPONSE), (A, DATA), (A, DATA)]);
    assert!(world.reaches(B));
    assert_eq!(world.take_sent(), [(B, DATA)]);
    assert!(world.take_drops(A).is_empty() && world.take_drops(B).is_empty());
    assert!(world.hosts.iter().all(|host| host.news == [Output::Connected(PEER)]));
}

#[test]
fn a_responder_sends_only_after_the_initiator_did() {
    let mut world = World::new();
    world.send(A, b"x");
    let initiation = world.wire.pop_front().unwrap();
    world.deliver(initiation);
    let response = world.wire.pop_front().unwrap();
    world.send(B, b"too early");
    assert_eq!(world.lose()[0].kind(), INITIATION);
    world.deliver(response);
    world.settle();
    assert_eq!(world.take_packets(A), [b"too early"]);
}

#[test]
fn both_may_begin_at_once() {
    let mut world = World::new();
    world.send(A, b"from a");
    world.send(B, b"from b");
    world.settle();
    assert_eq!(
        (world.take_packets(B), world.take_packets(A)),
        (vec![b"from a".to_vec()], vec![b"from b".to_vec()])
    );
    for _ in 0..3 {
        assert!(world.reaches(A) && world.reaches(B));
        world.pass(100 * SECOND);
    }
    assert!(world.take_drops(A).is_empty() && world.take_drops(B).is_empty());
}

#[test]
fn a_lost_initiation_is_sent_again_after_5_seconds_and_some() {
    let mut world = World::new();
    world.send(A, b"x");
    world.lose();
    world.pass(REKEY_TIMEOUT - Duration::from_millis(1));
    assert_eq!(world.take_sent(), [(A, INITIATION)]);
    world.pass(REKEY_JITTER + Duration::from_millis(1));
    assert_eq!(world.take_packets(B), [b"x"]);
}

#[test]
fn a_lost_response_is_made_up_for() {
    let mut world = World::new();
    world.send(A, b"x");
    let initiation = world.wire.pop_front().unwrap();
    world.deliver(initiation);
    assert_eq!(world.lose()[0].kind(), RESPONSE);
    world.pass(REKEY_TIMEOUT + REKEY_JITTER);
    assert_eq!(world.take_packets(B), [b"x"]);
}

#[test]
fn a_repeated_or_older_initiation_is_refused() {
    let mut world = World::new();
    world.send(A, b"x");
    let older = world.lose().remove(0);
    world.pass(REKEY_TIMEOUT + REKEY_JITTER);
    assert_eq!(world.take_packets(B), [b"x"]);
    world.deliver(older);
    assert_eq!(world.take_drops(B), [DropReason::HandshakeReplayed]);
    assert!(world.reaches(A) && world.reaches(B));
}

#[test]
fn a_repeated_response_is_refused() {
    let mut world = World::new();
    world.send(A, b"x");
    let initiation = world.wire.pop_front().unwrap();
    world.deliver(initiation);
    let response = world.wire[0].clone();
    world.settle();
    world.deliver(response);
    assert_eq!(world.take_drops(A), [DropReason::IndexUnknown]);
    assert!(world.reaches(A) && world.reaches(B));
}

#[test]
fn initiations_of_a_peer_are_answered_50_times_a_second() {
    let mut world = World::connected();
    let mut wall = World::new();
    wall.unix += SECOND;
    world.time += SECOND;
    wall.send(A, b"x");
    let first = wall.lose().remove(0);
    wall.pass_with(REKEY_TIMEOUT + REKEY_JITTER, |_| {});
    let second = wall.lose().remove(0);
    world.deliver(first);
    world.deliver(second.clone());
    assert_eq!(world.take_drops(B), [DropReason::HandshakeRate]);
    world.time += Duration::from_millis(20);
    world.deliver(second);
    assert!(world.take_drops(B).is_empty());
}

#[test]
fn a_wall_clock_set_back_stops_nobody() {
    let mut world = World::connected();
    world.unix -= 3600 * SECOND;
    world.pass(REJECT_AFTER_TIME);
    assert!(world.reaches(A));
}

#[test]
fn nobody_answers_for_90_seconds() {
    let mut world = World::new();
    world.send(A, b"x");
    world.pass_with(2 * REKEY_ATTEMPT_TIME, |world| drop(world.lose()));
    let initiations = world.take_sent().len();
    assert!((18..=19).contains(&initiations), "{initiations} initiations");
    assert_eq!(world.take_drops(A), [DropReason::HandshakeFailed]);
    assert!(world.reaches(A), "a later packet tries again");
}

#[test]
fn a_session_is_expected_until_an_initiation_is_left_unanswered() {
    let mut world = World::new();
    let expected = |world: &World| world.hosts[A].peers.is_expected(PEER);
    world.send(A, b"x");
    world.lose();
    assert!(expected(&world));
    world.pass_with(REKEY_TIMEOUT + REKEY_JITTER, |world| drop(world.lose()));
    assert!(!expected(&world));
    world.pass_with(2 * REKEY_ATTEMPT_TIME, |world| drop(world.lose()));
    assert!(expected(&world), "it has given up: a later packet tries again");
    assert!(world.reaches(A) && expected(&world));
}

#[test]
fn packets_that_wait_are_bounded_and_the_oldest_go() {
    let mut world = World::new();
    let packets = 2 * QUEUE_BYTES / 1024;
    for number in 0..packets {
        let mut packet = [0xff; 1024];
        packet[..8].copy_from_slice(&number.to_le_bytes());
        world.send(A, &packet);
    }
    assert_eq!(world.take_drops(A), vec![DropReason::HandshakeBacklog; packets / 2]);
    world.settle();
    let arrived = world.take_packets(B);
    assert_eq!(arrived.len(), packets / 2);
    assert_eq!(arrived[0][..8], (packets / 2).to_le_bytes());
}

#[test]
fn a_peer_without_endpoint_is_answered_but_not_called() {
    let mut world = World::new();
    let now = world.now();
    world.hosts[B].peers.install([(keys_of(A), None)], MTU, now);
    world.send(B, b"x");
    assert_eq!(world.take_drops(B), [DropReason::NoEndpoint]);
    assert!(world.take_sent().is_empty());
    assert!(world.reaches(A) && world.reaches(B));
}

// --- keys that do not fit ---

#[test]
fn a_preshared_key_must_be_the_same() {
    let psk = |same: bool| {
        World::with(move |host, keys| {
            keys.preshared_key = PresharedKey::from([if same { 9 } else { host as u8 }; 32]);
        })
    };
    assert!(psk(true).reaches(A));
    let mut world = psk(false);
    assert!(!world.reaches(A));
    assert_eq!(world.take_drops(A), [DropReason::HandshakeInvalid], "the response does not open");
}

#[test]
fn both_suites_work_and_a_mismatch_fails() {
    for suite in Suite::ALL {
        let mut world = World::with(move |_, keys| keys.suite = suite);
        assert!(world.reaches(A) && world.reaches(B));
    }
    let mut world = World::with(|host, keys| keys.suite = Suite::ALL[host]);
    for host in [A, B] {
        assert!(!world.reaches(host));
        assert_eq!(world.take_drops(1 - host), [DropReason::HandshakeInvalid]);
        assert_eq!(world.take_sent(), [(host, INITIATION)]);
    }
}

#[test]
fn a_suite_that_only_others_use_is_a_mismatch() {
    let mut world = World::with(|host, keys| keys.suite = Suite::ALL[host]);
    let other = PeerKeys { suite: Suite::ChaChaPoly, public_key: private_key(7).public(), ..keys_of(A) };
    let now = world.now();
    let mine = PeerKeys { suite: Suite::AesGcm, ..keys_of(A) };
    world.hosts[B].peers.install([(mine, Some(address(A))), (other, None)], MTU, now);
    assert!(!world.reaches(A));
    assert_eq!(world.take_drops(B), [DropReason::SuiteMismatch]);
}

#[test]
fn a_stranger_is_refused() {
    let mut world = World::new();
    let stranger = PeerKeys { public_key: private_key(7).public(), ..keys_of(A) };
    let now = world.now();
    world.hosts[B].peers.install([(stranger, None)], MTU, now);
    assert!(!world.reaches(A));
    assert_eq!(world.take_drops(B), [DropReason::KeyUnknown]);
}

#[test]
fn a_public_key_of_low_order_is_refused_before_anything_is_sent() {
    let mut world = World::with(|_, keys| keys.public_key = PublicKey::from([0; 32]));
    world.send(A, b"x");
    assert_eq!(world.take_drops(A), [DropReason::HandshakeInvalid]);
    assert!(world.take_sent().is_empty());
}

// --- tampering ---

#[test]
fn every_changed_bit_of_a_handshake_is_noticed() {
    let mut world = World::new();
    world.send(A, b"x");
    let initiation = world.wire.pop_front().unwrap();
    for bit in 0..8 * (wireguard::INITIATION_LEN - wireguard::MAC_LEN) {
        let mut changed = initiation.clone();
        changed.bytes[bit / 8] ^= 1 << (bit % 8);
        world.deliver(changed);
        let expected = if bit / 8 < 4 { DropReason::SealedMalformed } else { DropReason::Mac1Invalid };
        assert_eq!(world.take_drops(B), [expected], "bit {bit}");
    }
    world.deliver(initiation);
    world.settle();
    assert_eq!(world.take_packets(B), [b"x"]);
}

#[test]
fn a_handshake_that_was_changed_and_signed_again_is_noticed() {
    let mut world = World::new();
    world.send(A, b"x");
    let initiation = world.wire.pop_front().unwrap();
    for byte in 8..wireguard::INITIATION_LEN - 2 * wireguard::MAC_LEN {
        let mut changed = initiation.clone();
        changed.bytes[byte] ^= 1;
        super::cookie::Signer::new(&private_key(B).public()).sign(&mut changed.bytes, world.time);
        world.deliver(changed);
        assert_eq!(world.take_drops(B), [DropReason::HandshakeInvalid], "byte {byte}");
    }
}

#[test]
fn every_changed_bit_of_a_packet_is_noticed() {
    let mut world = World::connected();
    let flight = world.caught();
    for bit in 0..8 * flight.bytes.len() {
        let mut changed = flight.clone();
        changed.bytes[bit / 8] ^= 1 << (bit % 8);
        world.deliver(changed);
        let drops = world.take_drops(B);
        match bit / 8 {
            0..4 => assert_eq!(drops, [DropReason::SealedMalformed]),
            4..8 => assert_eq!(drops, [DropReason::IndexUnknown]),
            // The highest counters are refused before they are tried.
            8..16 => assert!(matches!(drops[..], [DropReason::Forged | DropReason::Replayed])),
            _ => assert_eq!(drops, [DropReason::Forged]),
        }
    }
    world.deliver(flight);
    assert_eq!(world.take_packets(B).len(), 1);
}

#[test]
fn a_cut_packet_is_noticed() {
    let mut world = World::connected();
    let flight = world.caught();
    for len in 0..flight.bytes.len() {
        let bytes = flight.bytes[..len].to_vec();
        world.deliver(Flight { bytes, ..flight.clone() });
        let expected =
            if len < HEADER_LEN + TAG_LEN { DropReason::SealedMalformed } else { DropReason::Forged };
        assert_eq!(world.take_drops(B), [expected]);
    }
    assert!(world.reaches(A));
}

#[test]
fn a_forged_response_does_not_stop_the_true_one() {
    let mut world = World::new();
    world.send(A, b"x");
    let initiation = world.wire.pop_front().unwrap();
    world.deliver(initiation);
    let mut forged = world.wire[0].clone();
    forged.bytes[50] ^= 1;
    super::cookie::Signer::new(&private_key(A).public()).sign(&mut forged.bytes, world.time);
    world.deliver(forged);
    assert_eq!(world.take_drops(A), [DropReason::HandshakeInvalid]);
    world.settle();
    assert_eq!(world.take_packets(B), [b"x"]);
}

#[test]
fn a_packet_counts_once() {
    let mut world = World::connected();
    let flight = world.caught();
    world.deliver(flight.clone());
    world.deliver(flight.clone());
    assert_eq!(world.take_packets(B).len(), 1);
    assert_eq!(world.take_drops(B), [DropReason::Replayed]);
}

#[test]
fn disorder_within_the_window_is_harmless_and_beyond_it_noticed() {
    let mut world = World::connected();
    let early = [world.caught(), world.caught()];
    for _ in 0..replay::WINDOW - 1 {
        world.send(A, b"x");
    }
    world.settle();
    let [beyond, within] = early;
    world.take_packets(B);
    world.deliver(within);
    assert_eq!(world.take_packets(B).len(), 1);
    world.deliver(beyond);
    assert_eq!(world.take_drops(B), [DropReason::Replayed]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_the_wire_does_each_packet_arrives_at_most_once(
        fates in prop::collection::vec((0..4_u8, any::<prop::sample::Index>()), 1..120),
    ) {
        let mut world = World::new();
        for (number, (fate, at)) in fates.iter().enumerate() {
            world.send(number % 2, &number.to_le_bytes());
            let flying = world.wire.len();
            if flying == 0 { continue }
            let at = at.index(flying);
            match fate {
                0 => drop(world.wire.remove(at)),
                1 => { let copy = world.wire[at].clone(); world.wire.push_back(copy) }
                2 => { let first = world.wire.remove(at).unwrap(); world.deliver(first) }
                _ => world.pass_with(SECOND, |_| {}),
            }
        }
        world.settle();
        for host in [A, B] {
            let mut packets = world.take_packets(host);
            let count = packets.len();
            packets.sort();
            packets.dedup();
            prop_assert_eq!(packets.len(), count);
        }
        world.pass(20 * SECOND);
        prop_assert!(world.reaches(A) && world.reaches(B));
    }
}

// --- time ---

#[test]
fn who_began_renews_after_2_minutes_when_there_is_something_to_send() {
    let mut world = World::connected();
    world.pass(REKEY_AFTER_TIME);
    world.take_sent();
    assert!(world.reaches(B));
    assert_eq!(world.take_sent(), [(B, DATA)], "who answered does not");
    assert!(world.reaches(A));
    assert_eq!(world.take_sent(), [(A, DATA), (A, INITIATION), (B, RESPONSE), (A, DATA)]);
    assert!(world.reaches(A) && world.reaches(B));
}

#[test]
fn who_began_renews_when_it_only_receives() {
    let mut world = World::connected();
    world.pass(REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT - Duration::from_millis(1));
    world.take_sent();
    assert!(world.reaches(B));
    assert_eq!(world.take_sent(), [(B, DATA)]);
    world.pass(Duration::from_millis(1));
    assert!(world.reaches(B));
    assert!(world.take_sent().contains(&(A, INITIATION)));
}

#[test]
fn a_stream_does_not_notice_a_renewal() {
    let mut world = World::connected();
    for second in 0..600 {
        assert!(world.reaches(A) && world.reaches(B), "second {second}");
        world.pass(SECOND);
    }
    let initiations = world.take_sent().iter().filter(|(_, kind)| *kind == INITIATION).count();
    assert_eq!(initiations, 4);
    assert!(world.take_drops(A).is_empty() && world.take_drops(B).is_empty());
    assert!(world.hosts[A].peers.index_count() <= 3);
}

#[test]
fn keys_of_3_minutes_are_refused() {
    let mut world = World::connected();
    let flight = world.caught();
    world.time += REJECT_AFTER_TIME;
    world.deliver(flight);
    assert_eq!(world.take_drops(B), [DropReason::SessionExpired]);
    world.send(B, b"x");
    assert_eq!(world.wire[0].kind(), INITIATION);
}

#[test]
fn keys_are_wiped_after_9_minutes() {
    let mut world = World::connected();
    world.pass(3 * REJECT_AFTER_TIME - SECOND);
    assert!(world.hosts[A].peers.index_count() > 0);
    world.pass(SECOND);
    for host in [A, B] {
        assert_eq!(world.hosts[host].peers.index_count(), 0);
        assert_eq!(world.hosts[host].peers.index_count(), 0);
        assert_eq!(world.hosts[host].peers.poll_timeout(), None, "nothing left to do");
    }
}

#[test]
fn used_up_counters_are_renewed_and_then_refused() {
    let mut world = World::connected();
    world.hosts[A].peers.wear(PEER, REKEY_AFTER_MESSAGES);
    world.time += REKEY_TIMEOUT;
    world.send(A, b"x");
    assert_eq!(world.take_sent(), [(A, DATA), (A, INITIATION)]);
    world.settle();

    world.hosts[A].peers.wear(PEER, REJECT_AFTER_MESSAGES - 1);
    world.time += REKEY_TIMEOUT;
    world.take_sent();
    world.send(A, b"the last one");
    world.send(A, b"one too many");
    assert_eq!(world.take_sent(), [(A, DATA), (A, INITIATION)]);
    world.settle();
    assert_eq!(world.take_packets(B).len(), 3);
}

#[test]
fn what_a_day_of_traffic_counted_is_no_obstacle() {
    let mut world = World::connected();
    world.hosts[A].peers.wear(PEER, 1_000_000 * 86_400);
    assert!(world.reaches(A));
    assert!(world.reaches(A));
}

#[test]
fn a_silent_receiver_says_that_it_is_there() {
    let mut world = World::connected();
    world.pass(KEEPALIVE_TIMEOUT);
    assert_eq!(world.take_sent(), [(B, DATA)]);
    world.pass(60 * SECOND);
    assert!(world.take_sent().is_empty(), "keepalives are not answered");
}

#[test]
fn silence_after_sending_makes_a_new_session() {
    let mut world = World::connected();
    world.pass(KEEPALIVE_TIMEOUT);
    world.take_sent();
    world.send(A, b"lost");
    world.lose();
    world.pass_with(KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + REKEY_JITTER, |_| {});
    assert_eq!(world.take_sent(), [(A, DATA), (A, INITIATION)]);
}

#[test]
fn a_restarted_peer_is_found_again() {
    let mut world = World::connected();
    world.restart(B, 99);
    assert!(!world.reaches(A));
    assert_eq!(world.take_drops(B), [DropReason::IndexUnknown]);
    world.pass(KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + REKEY_JITTER);
    assert!(world.reaches(A) && world.reaches(B));
}

#[test]
fn a_persistent_keepalive_begins_at_once_and_goes_on() {
    let mut world = World::with(|host, keys| keys.keepalive = Some(25 * SECOND).filter(|_| host == A));
    world.pass(Duration::ZERO);
    assert_eq!(world.take_sent(), [(A, INITIATION), (B, RESPONSE), (A, DATA)]);
    world.pass(75 * SECOND);
    assert_eq!(world.take_sent(), [(A, DATA); 3]);
}

// --- roaming, load, maps ---

#[test]
fn only_what_is_authentic_moves_a_peer() {
    let mut world = World::connected();
    world.hosts[B].news.clear();
    let elsewhere: SocketAddr = "203.0.113.9:1024".parse().unwrap();
    let flight = world.caught();
    let mut forged = flight.clone();
    forged.bytes[20] ^= 1;
    world.deliver(Flight { source: elsewhere, ..forged });
    assert_eq!(world.hosts[B].peers.endpoint(PEER), Some(address(A)));
    world.deliver(Flight { source: elsewhere, ..flight.clone() });
    assert_eq!(world.hosts[B].peers.endpoint(PEER), Some(elsewhere));
    world.deliver(flight);
    assert_eq!(world.hosts[B].peers.endpoint(PEER), Some(elsewhere), "a replay moves nobody");
    assert_eq!(world.hosts[B].news, [Output::Moved(PEER, Some(elsewhere))]);
    world.hosts[A].address = elsewhere;
    assert!(world.reaches(B));
}

/// What only looks like an initiation for B, signed.
fn junk(now: Duration) -> Vec<u8> {
    let mut junk = wireguard::emit_initiation(1, &[0; wireguard::NOISE_INITIATION_LEN]);
    super::cookie::Signer::new(&private_key(B).public()).sign(&mut junk, now);
    junk.to_vec()
}

/// Handshake messages for B that cost it nothing but the load they are.
fn flood(world: &mut World) {
    let bytes = junk(world.time);
    for _ in 0..=admission::LOAD {
        world.deliver(Flight { to: B, source: "203.0.113.1:1".parse().unwrap(), bytes: bytes.clone() });
    }
    world.take_sent();
    world.take_drops(B);
    world.lose();
}

#[test]
fn under_load_a_cookie_is_asked_for_and_then_enough() {
    let mut world = World::new();
    flood(&mut world);
    assert!(!world.reaches(A));
    assert_eq!(world.take_drops(B), [DropReason::CookieRequired]);
    assert_eq!(world.take_sent(), [(A, INITIATION), (B, COOKIE_REPLY)]);
    world.pass_with(REKEY_TIMEOUT + REKEY_JITTER, flood_and_settle);
    assert_eq!(world.take_packets(B).len(), 1);
    assert!(world.take_drops(B).is_empty());
}

fn flood_and_settle(world: &mut World) {
    let waiting = world.lose();
    flood(world);
    world.wire.extend(waiting);
    world.settle();
}

#[test]
fn cookies_are_not_sent_without_end() {
    let mut world = World::new();
    flood(&mut world);
    let junk = Flight { to: B, source: address(A), bytes: junk(world.time) };
    for _ in 0..2 * admission::COOKIES {
        world.deliver(junk.clone());
    }
    let sent = world.take_sent().len();
    assert!((1..=admission::COOKIES as usize).contains(&sent), "{sent} cookies");
    assert_eq!(world.take_drops(B).last(), Some(&DropReason::HandshakeRate));
}

#[test]
fn a_cookie_is_used_for_two_minutes() {
    let mut world = World::new();
    flood(&mut world);
    world.reaches(A);
    world.pass_with(COOKIE_LIFETIME + REKEY_TIMEOUT, |world| drop(world.lose()));
    world.take_drops(B);
    world.take_sent();
    flood(&mut world);
    assert!(!world.reaches(A));
    assert_eq!(world.take_drops(B), [DropReason::CookieRequired]);
}

#[test]
fn under_load_an_address_has_its_rate() {
    let mut world = World::new();
    flood(&mut world);
    world.reaches(A);
    world.pass_with(REKEY_TIMEOUT + REKEY_JITTER, |_| {});
    let proved = world.lose().pop().unwrap();
    flood(&mut world);
    for _ in 0..2 * admission::BURST {
        world.deliver(proved.clone());
    }
    let drops = world.take_drops(B);
    assert_eq!(
        drops.iter().filter(|reason| **reason == DropReason::HandshakeRate).count(),
        admission::BURST as usize
    );
}

#[test]
fn a_foreign_cookie_is_refused() {
    let mut world = World::new();
    flood(&mut world);
    world.send(A, b"x");
    let initiation = world.wire.pop_front().unwrap();
    world.deliver(initiation);
    let mut reply = world.wire.pop_front().unwrap();
    reply.bytes[40] ^= 1;
    world.deliver(reply.clone());
    reply.bytes[4] ^= 1;
    world.deliver(reply);
    assert_eq!(world.take_drops(A), [DropReason::CookieInvalid, DropReason::IndexUnknown]);
}

#[test]
fn load_does_not_touch_sessions() {
    let mut world = World::connected();
    flood(&mut world);
    assert!(world.reaches(A) && world.reaches(B));
}

#[test]
fn a_new_map_keeps_the_sessions_of_who_stays() {
    let mut world = World::connected();
    let newcomer = PeerKeys { public_key: private_key(7).public(), ..keys_of(A) };
    let now = world.now();
    world.hosts[A].peers.install([(keys_of(B), Some(address(B))), (newcomer.clone(), None)], MTU, now);
    assert!(world.reaches(A) && world.reaches(B));
    assert!(!world.take_sent().iter().any(|(_, kind)| *kind == INITIATION));

    let now = world.now();
    world.hosts[A].peers.install([(newcomer, None)], MTU, now);
    assert!(!world.reaches(B));
    assert_eq!(world.take_drops(A), [DropReason::IndexUnknown]);
}

#[test]
fn a_new_preshared_key_ends_the_session() {
    let mut world = World::connected();
    let now = world.now();
    let keys = PeerKeys { preshared_key: PresharedKey::from([5; 32]), ..keys_of(B) };
    world.hosts[A].peers.install([(keys, Some(address(B)))], MTU, now);
    assert!(!world.reaches(B));
}

#[test]
fn a_new_endpoint_in_the_map_is_gone_to() {
    let mut world = World::connected();
    let elsewhere: SocketAddr = "203.0.113.9:1024".parse().unwrap();
    let now = world.now();
    world.hosts[A].peers.install([(keys_of(B), Some(elsewhere))], MTU, now);
    assert_eq!(world.hosts[A].peers.endpoint(PEER), Some(elsewhere));
}
