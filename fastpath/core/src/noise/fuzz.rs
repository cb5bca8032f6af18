//! What must hold for sealed datagrams, whatever they are: targets of the crate's `fuzz`.
#![allow(clippy::missing_panics_doc, reason = "to panic is how a target says that a promise is broken")]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use super::PublicKey;
use super::cookie::Signer;
use super::handshake::{Ephemeral, Initiator};
use super::session::REJECT_AFTER_MESSAGES;
use super::tai64n;
use super::world::{A, B, Flight, PEER, SECOND, World, address, private_key};
use crate::wire::wireguard::{INITIATION_LEN, Message};

/// Sessions and handshakes that a host has with one peer at most: previous, current, next, begun.
const MAX_INDEXES: usize = 4;
/// From this number on, what a script says is to change a key.
const ROTATE: u8 = 240;
/// What is on the wire at most: more is lost.
const MAX_FLIGHTS: usize = 64;

/// Bytes from nobody are refused by a host with one sealed peer, and change nothing that it then sends;
/// and so they are if they are a handshake message from somebody who knows the host's public key.
pub fn sealed(bytes: &[u8]) {
    let mut world = World::new();
    let stranger = SocketAddr::from(([192, 0, 2, 9], 51820));
    let (now, peers) = (world.now(), &mut world.hosts[B].peers);
    assert!(peers.handle_datagram(&mut bytes.to_vec(), stranger, now).is_err());
    let mut signed = bytes.to_vec();
    sign(&private_key(B).public(), &mut signed, now.time);
    assert!(peers.handle_datagram(&mut signed, stranger, now).is_err());
    assert_eq!(peers.poll_output(), None);
}

/// A script of what happens to two hosts and on the wire between them: loss, disorder, changes, forgeries,
/// a restart, other keys, time. Nothing is received that was not sent, nothing twice, what is kept is bounded; and once
/// the wire is left alone, the two reach each other.
pub fn session(script: &[u8]) {
    let mut run = Run { world: World::new(), script, sent: 0, received: HashSet::new(), restarts: 0 };
    while !run.script.is_empty() {
        run.step();
        run.check();
    }
    run.world.wire.clear();
    // Who was restarted is found again after a silence.
    for host in [A, B] {
        run.world.reaches(host);
    }
    run.world.pass(20 * SECOND);
    assert!(run.world.reaches(A) && run.world.reaches(B));
}

struct Run<'a> {
    world: World,
    script: &'a [u8],
    /// How many packets were sent: each has its number in it.
    sent: u32,
    received: HashSet<u32>,
    restarts: u64,
}

impl Run<'_> {
    fn step(&mut self) {
        let (what, host) = (self.byte(), usize::from(self.byte() % 2));
        if what >= ROTATE {
            return self.world.rotate(host);
        }
        match what % 16 {
            0 | 1 => self.send(host),
            2 | 3 => self.deliver(),
            4 => self.world.settle(),
            5 => drop(self.caught()),
            6 => self.duplicate(),
            7 => self.change(),
            8 => self.resize(),
            9 => self.sign(),
            10 => self.forge(host),
            11 => self.initiate_in_the_name_of_a(),
            12 => self.roam(),
            13 => self.wear(host),
            14 => self.restart(host),
            _ => self.pass(),
        }
        self.world.wire.truncate(MAX_FLIGHTS);
    }

    fn check(&mut self) {
        for host in [A, B] {
            assert!(self.world.hosts[host].peers.index_count() <= MAX_INDEXES);
            for packet in self.world.take_packets(host) {
                let number = packet.first_chunk().map(|number| u32::from_le_bytes(*number));
                let number = number.filter(|number| *number < self.sent).expect("only what was sent");
                assert!(self.received.insert(number), "each at most once");
            }
        }
    }

    fn send(&mut self, from: usize) {
        // The end marks where the padding begins.
        let packet = [&self.sent.to_le_bytes()[..], &vec![0; self.byte().into()], &[1]].concat();
        self.sent += 1;
        self.world.send(from, &packet);
    }

    fn deliver(&mut self) {
        if let Some(flight) = self.caught() {
            self.world.deliver(flight);
        }
    }

    fn duplicate(&mut self) {
        if let Some(flight) = self.caught() {
            self.world.wire.extend([flight.clone(), flight]);
        }
    }

    fn change(&mut self) {
        let Some(mut flight) = self.caught() else { return };
        let (at, bits) = (self.byte(), self.byte());
        let at = usize::from(at) % flight.bytes.len();
        flight.bytes[at] ^= bits;
        self.world.wire.push_front(flight);
    }

    fn resize(&mut self) {
        let Some(mut flight) = self.caught() else { return };
        flight.bytes.resize(self.byte().max(1).into(), 0);
        self.world.wire.push_front(flight);
    }

    /// Gives a message the mac1 that its receiver wants.
    fn sign(&mut self) {
        let Some(mut flight) = self.caught() else { return };
        sign(&self.public_key(flight.to), &mut flight.bytes, self.world.time);
        self.world.wire.push_front(flight);
    }

    /// Keeps the header of a message, which names a session, and makes up the rest.
    fn forge(&mut self, to: usize) {
        let header = self.world.wire.front().map_or([1; 8], |flight| first_bytes(&flight.bytes));
        let (made_up, rest) = self.script.split_at(self.script.len().min(INITIATION_LEN));
        self.script = rest;
        let bytes = [&header, made_up].concat();
        self.world.wire.push_front(Flight { to, source: address(1 - to), bytes });
    }

    fn public_key(&self, host: usize) -> PublicKey {
        self.world.hosts[host].keys.own.public()
    }

    /// Whoever has A's private key speaks to B.
    fn initiate_in_the_name_of_a(&mut self) {
        let (index, ephemeral) = (self.byte().into(), Ephemeral::new([self.byte(); 32]));
        let stamp = tai64n::stamp(self.world.now().unix, 0);
        let a = &self.world.hosts[A];
        let begun = Initiator::initiate(&a.keys.own, &a.other, index, stamp, ephemeral);
        let (_, mut initiation) = begun.expect("the key is a good one");
        sign(&self.public_key(B), &mut initiation, self.world.time);
        self.world.wire.push_front(Flight { to: B, source: address(A), bytes: initiation.to_vec() });
    }

    fn roam(&mut self) {
        self.world.hosts[A].address = SocketAddr::from(([203, 0, 113, self.byte()], 51820));
    }

    fn wear(&mut self, host: usize) {
        let counter = u64::MAX >> (self.byte() % 64);
        self.world.hosts[host].peers.wear(PEER, counter.min(REJECT_AFTER_MESSAGES - 1));
    }

    fn restart(&mut self, host: usize) {
        self.restarts += 1;
        self.world.restart(host, 99 + self.restarts);
    }

    /// Up to 13 s; what comes due is done, and stays on the wire.
    fn pass(&mut self) {
        let span = Duration::from_millis(50) * self.byte().into();
        self.world.pass_with(span, |world| world.wire.truncate(MAX_FLIGHTS));
    }

    fn caught(&mut self) -> Option<Flight> {
        let at = usize::from(self.byte());
        let flying = self.world.wire.len();
        self.world.wire.remove(at.checked_rem(flying)?)
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.script.split_first() else { return 0 };
        self.script = rest;
        *first
    }
}

/// Signs a message as one to the host with this key, if it is a handshake message.
fn sign(to: &PublicKey, message: &mut [u8], now: Duration) {
    if matches!(Message::new_checked(message), Ok(Message::Initiation(_) | Message::Response(_))) {
        Signer::new(to).sign(message, now);
    }
}

fn first_bytes(bytes: &[u8]) -> [u8; 8] {
    std::array::from_fn(|at| bytes.get(at).copied().unwrap_or_default())
}
