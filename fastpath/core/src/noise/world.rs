//! Two hosts in memory, with a wire that can be tampered with and a clock that is turned: what the tests
//! and the fuzzer run.
#![allow(clippy::unchecked_time_subtraction, clippy::cast_possible_truncation)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::aead::Suite;
use super::keys::{HostKeys, PeerKeys, PresharedKey, PrivateKey};
use super::peers::{Now, Output, Peers};
use crate::drops::DropReason;
use crate::peers::PeerIndex;
use crate::wire::wireguard::{HEADER_LEN, TAG_LEN};

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MTU: usize = 1420;
pub(super) const PEER: PeerIndex = PeerIndex(0);
/// In which a host changes its key, see [`World::rotate`].
pub(super) const STEPS: usize = 5;
pub(super) const A: usize = 0;
pub(super) const B: usize = 1;

pub(super) struct Host {
    pub(super) peers: Peers,
    pub(super) keys: HostKeys,
    /// What it knows of the other host.
    pub(super) other: PeerKeys,
    /// Steps that it has taken in changing its key, see [`World::rotate`].
    rotated: usize,
    pub(super) address: SocketAddr,
    /// Packets that arrived.
    pub(super) packets: Vec<Vec<u8>>,
    /// Why others did not.
    pub(super) drops: Vec<DropReason>,
    /// What became known of the other host.
    pub(super) news: Vec<Output>,
}

/// A datagram on the wire.
#[derive(Clone)]
pub(super) struct Flight {
    pub(super) to: usize,
    pub(super) source: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

pub(super) struct World {
    pub(super) hosts: [Host; 2],
    pub(super) wire: VecDeque<Flight>,
    /// Kinds of the messages sent since last asked.
    pub(super) sent: Vec<(usize, u8)>,
    pub(super) time: Duration,
    /// Of the wall clock, at time zero.
    pub(super) unix: Duration,
}

pub(super) fn private_key(host: usize) -> PrivateKey {
    later_key(host, 0)
}

/// What a host has after it has changed its key so many times.
pub(super) fn later_key(host: usize, changes: usize) -> PrivateKey {
    PrivateKey::from([(host + 1 + 2 * changes) as u8; 32])
}

pub(super) fn keys_of(host: usize) -> PeerKeys {
    PeerKeys {
        public_key: private_key(host).public(),
        previous: None,
        preshared_key: PresharedKey::default(),
        suite: Suite::ChaChaPoly,
        keepalive: None,
    }
}

pub(super) fn address(host: usize) -> SocketAddr {
    format!("192.0.2.{}:51820", host + 1).parse().unwrap()
}

/// `SplitMix64`.
pub(super) fn random(mut seed: u64) -> super::peers::Random {
    Box::new(move |bytes| {
        for byte in bytes {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            *byte = ((mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 56) as u8;
        }
    })
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(|_, _| {})
    }

    /// `change` is shown what each host (the first argument) knows of the other.
    pub(super) fn with(change: impl Fn(usize, &mut PeerKeys)) -> Self {
        let host = |host: usize| Host {
            peers: Peers::new(private_key(host), random(host as u64)),
            keys: private_key(host).into(),
            other: keys_of(1 - host),
            rotated: 0,
            address: address(host),
            packets: vec![],
            drops: vec![],
            news: vec![],
        };
        let unix = Duration::from_secs(1_800_000_000);
        let mut world = Self {
            hosts: [host(A), host(B)],
            wire: VecDeque::new(),
            sent: vec![],
            time: 1000 * SECOND,
            unix,
        };
        for host in [A, B] {
            change(host, &mut world.hosts[host].other);
            world.install(host);
            assert_eq!(
                world.hosts[host].peers.poll_output(),
                Some(Output::Moved(PEER, Some(address(1 - host))))
            );
        }
        world
    }

    pub(super) fn now(&self) -> Now {
        Now { time: self.time, unix: self.unix + self.time }
    }

    /// Gives a host what it knows of the other.
    pub(super) fn install(&mut self, host: usize) {
        let (now, known) = (self.now(), self.hosts[host].other.clone());
        let endpoint = self.hosts[1 - host].address;
        self.hosts[host].peers.install([(known, Some(endpoint))], MTU, now);
    }

    /// Lets a host forget all but its keys and what it is told of the other host.
    pub(super) fn restart(&mut self, host: usize, seed: u64) {
        self.replace(host, Peers::new(self.hosts[host].keys.clone(), random(seed)));
    }

    pub(super) fn replace(&mut self, host: usize, peers: Peers) {
        self.hosts[host].peers = peers;
        self.install(host);
        let news = self.hosts[host].peers.poll_output();
        assert!(matches!(news, Some(Output::Moved(..))));
    }

    /// The next of the steps in which a host changes its key: it takes the new one too; the other gets to
    /// know; it goes by the new one; the other forgets the old one; and so does it.
    pub(super) fn rotate(&mut self, host: usize) {
        let (changes, step) = (self.hosts[host].rotated / STEPS, self.hosts[host].rotated % STEPS);
        self.hosts[host].rotated += 1;
        let [old, new] = [changes, changes + 1].map(|changes| later_key(host, changes));
        match step {
            0 => self.rekey(host, HostKeys { own: old, other: Some(new) }),
            1 => self.rename(host, &new, Some(&old)),
            2 => self.rekey(host, HostKeys { own: new, other: Some(old) }),
            3 => self.rename(host, &new, None),
            _ => self.rekey(host, new.into()),
        }
    }

    fn rekey(&mut self, host: usize, keys: HostKeys) {
        assert!(self.hosts[host].peers.rekey(&keys));
        self.hosts[host].keys = keys;
    }

    /// Lets the other host know this one by other keys.
    fn rename(&mut self, host: usize, key: &PrivateKey, previous: Option<&PrivateKey>) {
        let known = &mut self.hosts[1 - host].other;
        known.public_key = key.public();
        known.previous = previous.map(PrivateKey::public);
        self.install(1 - host);
    }

    pub(super) fn send(&mut self, from: usize, packet: &[u8]) {
        let now = self.now();
        let peers = &mut self.hosts[from].peers;
        if let Some(mut sealer) = peers.sealer(PEER, now) {
            let mut message = [&[0; HEADER_LEN], packet, &[0; TAG_LEN]].concat();
            sealer.seal(&mut message);
            let endpoint = sealer.endpoint;
            self.launch(from, endpoint, message);
        } else if let Err(reason) = peers.wait(PEER, packet, now) {
            self.hosts[from].drops.push(reason);
        }
        self.collect(from);
    }

    pub(super) fn launch(&mut self, from: usize, endpoint: SocketAddr, bytes: Vec<u8>) {
        self.sent.push((from, bytes[0]));
        let to = self.hosts.iter().position(|host| host.address == endpoint);
        if let Some(to) = to {
            self.wire.push_back(Flight { to, source: self.hosts[from].address, bytes });
        }
    }

    pub(super) fn collect(&mut self, from: usize) {
        while let Some(output) = self.hosts[from].peers.poll_output() {
            match output {
                Output::Transmit { endpoint, message, .. } => self.launch(from, endpoint, message),
                Output::Dropped(dropped) => self.hosts[from].drops.push(dropped.reason),
                Output::Connected(_) | Output::Moved(..) => self.hosts[from].news.push(output),
            }
        }
    }

    pub(super) fn deliver(&mut self, mut flight: Flight) {
        let now = self.now();
        let host = &mut self.hosts[flight.to];
        match host.peers.handle_datagram(&mut flight.bytes, flight.source, now) {
            Ok(received) if received.packet.is_empty() => {}
            Ok(received) => {
                let padded = &flight.bytes[received.packet];
                let len = padded.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                host.packets.push(padded[..len].to_vec());
            }
            Err(dropped) => host.drops.push(dropped.reason),
        }
        self.collect(flight.to);
    }

    /// Delivers until nothing is on the wire.
    pub(super) fn settle(&mut self) {
        while let Some(flight) = self.wire.pop_front() {
            self.deliver(flight);
        }
    }

    /// Lets time pass, with all that comes due in it.
    pub(super) fn pass(&mut self, span: Duration) {
        self.pass_with(span, Self::settle);
    }

    pub(super) fn pass_with(&mut self, span: Duration, mut then: impl FnMut(&mut Self)) {
        let end = self.time + span;
        loop {
            let due = self.hosts.iter().filter_map(|host| host.peers.poll_timeout()).min();
            let Some(due) = due.filter(|due| *due <= end) else { break };
            self.time = self.time.max(due);
            let now = self.now();
            for host in [A, B] {
                self.hosts[host].peers.handle_timeout(now);
                self.collect(host);
            }
            then(self);
        }
        self.time = end;
    }

    pub(super) fn take_packets(&mut self, host: usize) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.hosts[host].packets)
    }

    /// Sends a packet and tells whether it arrives.
    pub(super) fn reaches(&mut self, from: usize) -> bool {
        self.send(from, b"are you there?");
        self.settle();
        !self.take_packets(1 - from).is_empty()
    }
}
