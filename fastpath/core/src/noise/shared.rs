//! What the peers of a host share: its keys, randomness, the indexes given out, what is to be done.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::handshake::Ephemeral;
use super::keys::{HostKeys, PrivateKey};
use super::peers::{Output, Random};
use super::session::Session;
use crate::drops::Dropped;
use crate::peers::PeerIndex;

/// What the peers of a lane have in common.
pub(super) struct Shared {
    pub(super) keys: HostKeys,
    pub(super) random: Random,
    /// Which lane of the host this is; handshakes are with that lane of a peer.
    pub(super) lane: u8,
    /// Padding does not go beyond.
    pub(super) mtu: usize,
    /// Whom the index in a message means.
    pub(super) indexes: HashMap<u32, PeerIndex, RandomState>,
    pub(super) outputs: VecDeque<Output>,
}

impl Shared {
    pub(super) fn new(keys: HostKeys, random: Random) -> Self {
        Self { keys, random, lane: 0, mtu: 0, indexes: HashMap::default(), outputs: VecDeque::new() }
    }

    /// What to begin a handshake with: this host's own key, or the other one, if there is one.
    pub(super) fn private_key(&self, other: bool) -> &PrivateKey {
        self.keys.other.as_ref().filter(|_| other).unwrap_or(&self.keys.own)
    }

    pub(super) fn ephemeral(&mut self) -> Ephemeral {
        let mut ephemeral = Ephemeral::default();
        (self.random)(&mut *ephemeral);
        ephemeral
    }

    /// A random part of `most`.
    pub(super) fn jitter(&mut self, most: Duration) -> Duration {
        most.mul_f64(f64::from(self.random_u32()) / f64::from(u32::MAX))
    }

    /// An index that no other session or handshake has: random, so that it tells nothing.
    pub(super) fn new_index(&mut self, peer: PeerIndex) -> u32 {
        loop {
            let index = self.random_u32();
            if let Entry::Vacant(entry) = self.indexes.entry(index) {
                entry.insert(peer);
                return index;
            }
        }
    }

    pub(super) fn release(&mut self, index: u32) {
        self.indexes.remove(&index);
    }

    /// Ends a session: nothing can name it any more, and its keys are wiped.
    pub(super) fn retire(&mut self, session: Option<Box<Session>>) {
        if let Some(session) = session {
            self.release(session.local);
        }
    }

    pub(super) fn transmit(&mut self, peer: PeerIndex, endpoint: SocketAddr, message: Vec<u8>) {
        self.report(Output::Transmit { peer: Some(peer), endpoint, message, packet_len: 0 });
    }

    pub(super) fn report(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(super) fn drop(&mut self, dropped: Dropped) {
        self.report(Output::Dropped(dropped));
    }

    fn random_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        (self.random)(&mut bytes);
        u32::from_le_bytes(bytes)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("indexes", &self.indexes).finish_non_exhaustive()
    }
}
