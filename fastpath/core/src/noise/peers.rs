//! All sealed peers of a host: whom a message is for, and what there is to send.

mod incoming;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::mem;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use foldhash::fast::RandomState;

use incoming::Local;

use super::admission::{Limiter, Load};
use super::aead::Suite;
use super::keys::{HostKeys, PeerKeys, PublicKey};
use super::peer::{Peer, Sealer};
use super::shared::Shared;
use crate::drops::{DropReason, Dropped};
use crate::peers::PeerIndex;

/// Two readings of the caller's clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since a moment of the caller's choice; never goes back.
    pub time: Duration,
    /// Since 1970, by the wall clock.
    pub unix: Duration,
}

/// Fills a buffer with random bytes that nobody can guess.
pub type Random = Box<dyn FnMut(&mut [u8]) + Send>;

/// A message that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Who sent it: proved.
    pub peer: PeerIndex,
    /// Whether it is there now. An initiation does not tell: it may be an old one, played again.
    pub live: bool,
    /// The packet that it held, where it is in the datagram now; empty if it held none.
    pub packet: Range<usize>,
}

/// What is to be done besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a message.
    Transmit {
        /// Whom it is for; `None`: for whoever is at that address.
        peer: Option<PeerIndex>,
        /// Where to.
        endpoint: SocketAddr,
        /// The datagram.
        message: Vec<u8>,
        /// Bytes of the packet in it that waited for a session; 0 if none did.
        packet_len: usize,
    },
    /// Count a packet that waited in vain.
    Dropped(Dropped),
    /// A handshake with the peer is complete.
    Connected(PeerIndex),
    /// The peer is somewhere else now.
    Moved(PeerIndex, Option<SocketAddr>),
}

/// All sealed peers of a host.
#[derive(Debug)]
pub struct Peers {
    shared: Shared,
    /// What handshake messages may be for. More than one only while this host changes its key.
    locals: Vec<Local>,
    states: Vec<Peer>,
    /// By either key, where a peer changes its own.
    by_key: HashMap<PublicKey, PeerIndex, RandomState>,
    /// How many peers use which suite; initiations are tried with those in use.
    users: [usize; Suite::ALL.len()],
    load: Load,
    limiter: Limiter,
    /// When peers want to be woken. An entry that is not its peer's `wake` is void.
    wakes: BinaryHeap<Reverse<(Duration, usize)>>,
}

impl Peers {
    /// No peers yet, for the host with these keys.
    #[must_use]
    pub fn new(keys: impl Into<HostKeys>, random: Random) -> Self {
        let keys = keys.into();
        Self {
            locals: Local::all(&keys),
            shared: Shared::new(keys, random),
            states: Vec::new(),
            by_key: HashMap::default(),
            users: Default::default(),
            load: Load::default(),
            limiter: Limiter::default(),
            wakes: BinaryHeap::new(),
        }
    }

    /// The same, for one of several lanes of the host, which share its keys; it is lane 0 if not said.
    #[must_use]
    pub fn on_lane(mut self, lane: u8) -> Self {
        self.shared.lane = lane;
        self
    }

    /// Goes on under other keys of this host. Sessions stay, whichever key they were made with: none lives
    /// for longer than 3 minutes, and the next is made with a key that is left.
    ///
    /// False, and nothing has changed: none of the keys is one of those before.
    pub fn rekey(&mut self, keys: &HostKeys) -> bool {
        let goes_on = keys.iter().any(|key| self.locals.iter().any(|local| local.private_key == *key));
        if goes_on {
            self.locals = Local::all(keys);
            self.shared.keys = keys.clone();
        }
        goes_on
    }

    /// Replaces the peers; their positions are those of the table; an endpoint is where to
    /// send before the peer was heard. Who keeps a public key (either, while it changes), preshared
    /// key and suite keeps sessions too.
    pub fn install(
        &mut self,
        peers: impl IntoIterator<Item = (PeerKeys, Option<SocketAddr>)>,
        mtu: usize,
        now: Now,
    ) {
        let peers: Vec<_> = peers.into_iter().collect();
        let places = (0..peers.len()).map(PeerIndex);
        self.change(peers.len(), places.zip(peers), mtu, now);
    }

    /// The same where most peers stay: there are `count` now, and those in `changed`, in the order of their
    /// positions, are not what was there before. Nothing happens to the others.
    pub fn change(
        &mut self,
        count: usize,
        changed: impl IntoIterator<Item = (PeerIndex, (PeerKeys, Option<SocketAddr>))>,
        mtu: usize,
        now: Now,
    ) {
        self.shared.mtu = mtu;
        let mut replaced: Vec<_> = self.states.drain(count.min(self.states.len())..).collect();
        let mut places = Vec::new();
        for (at, (keys, endpoint)) in changed {
            let peer = Peer::new(at, keys, endpoint);
            match self.states.get_mut(at.0) {
                Some(before) => replaced.push(mem::replace(before, peer)),
                None => self.states.push(peer),
            }
            places.push(at);
        }
        for peer in &replaced {
            self.unlink(peer);
        }
        let mut old = replaced.into_iter().map(|peer| (peer.keys.public_key, peer)).collect();
        for at in places {
            self.take_up(at, &mut old);
            self.link(at, now);
        }
    }

    /// Has the new peer at a position go on with what there was of it, wherever that was.
    fn take_up(&mut self, at: PeerIndex, old: &mut HashMap<PublicKey, Peer, RandomState>) {
        let peer = &mut self.states[at.0];
        let known = peer.keys.names().find_map(|name| old.remove(&name));
        match known.filter(|known| is_same(&known.keys, &peer.keys)) {
            Some(known) => {
                let new = mem::replace(peer, known);
                peer.adopt(new, &mut self.shared);
            }
            None => self.shared.report(Output::Moved(at, peer.configured)),
        }
    }

    /// Has the peer at a position be found and woken.
    fn link(&mut self, at: PeerIndex, now: Now) {
        let peer = &mut self.states[at.0];
        self.by_key.extend(peer.keys.names().map(|name| (name, at)));
        self.shared.indexes.extend(peer.indexes().map(|index| (index, at)));
        self.users[peer.keys.suite as usize] += 1;
        peer.start(now);
        schedule(&mut self.wakes, at.0, peer);
    }

    /// Undoes what [`Self::link`] did.
    fn unlink(&mut self, peer: &Peer) {
        for name in peer.keys.names() {
            self.by_key.remove(&name);
        }
        for index in peer.indexes() {
            self.shared.release(index);
        }
        self.users[peer.keys.suite as usize] -= 1;
    }

    /// A session to seal packets to a peer with; `None`: [`Self::wait`].
    pub fn sealer(&mut self, peer: PeerIndex, now: Now) -> Option<Sealer<'_>> {
        let ready = self.with(peer, |peer, shared| peer.prepare(true, now, shared));
        self.states[peer.0].sealer().filter(|_| ready)
    }

    /// Whether there is hope for a session with a peer: it is known where the peer is, and it has not
    /// left an initiation unanswered.
    #[must_use]
    pub fn is_expected(&self, peer: PeerIndex) -> bool {
        self.states[peer.0].is_expected()
    }

    /// Keeps a copy of a packet until there is a session with its peer.
    ///
    /// # Errors
    /// `no_endpoint`.
    pub fn wait(&mut self, peer: PeerIndex, packet: &[u8], now: Now) -> Result<(), DropReason> {
        self.with(peer, |peer, shared| peer.wait(packet, now, shared))
    }

    /// When [`Self::handle_timeout`] is to be called; `None`: not before something else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.wakes.peek().map(|Reverse((at, _))| *at)
    }

    /// Does what is due. May be called too early or too often.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(Reverse((at, peer))) = self.wakes.peek().copied().filter(|due| due.0.0 <= now.time) {
            self.wakes.pop();
            if let Some(state) = self.states.get_mut(peer).filter(|state| state.wake == Some(at)) {
                state.wake = None;
                self.with(PeerIndex(peer), |peer, shared| peer.handle_timeout(now, shared));
            }
        }
    }

    /// What is to be done besides; ask until there is nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.shared.outputs.pop_front()
    }

    /// Lets a peer act, then sees to its timers.
    fn with<T>(&mut self, at: PeerIndex, act: impl FnOnce(&mut Peer, &mut Shared) -> T) -> T {
        let peer = &mut self.states[at.0];
        let done = act(peer, &mut self.shared);
        schedule(&mut self.wakes, at.0, peer);
        done
    }

    #[cfg(test)]
    pub(super) fn endpoint(&self, peer: PeerIndex) -> Option<SocketAddr> {
        self.states[peer.0].endpoint()
    }

    /// Lets the session with a peer go on as if so many packets had been sealed, so that a test need not
    /// wait for what happens late in its life. Counters never go back.
    #[cfg(feature = "testing")]
    pub fn wear(&mut self, peer: PeerIndex, counter: u64) {
        self.states[peer.0].wear(counter);
    }

    /// How many sessions and handshakes there are.
    #[cfg(feature = "testing")]
    pub(super) fn index_count(&self) -> usize {
        self.shared.indexes.len()
    }
}

/// Wakes a peer early enough. Timers move with every packet, mostly to later: then it is woken too
/// early and asks again, which costs less than to move its place in the heap each time.
fn schedule(wakes: &mut BinaryHeap<Reverse<(Duration, usize)>>, at: usize, peer: &mut Peer) {
    let Some(next) = peer.timers.next() else { return };
    if peer.wake.is_none_or(|wake| next < wake) {
        peer.wake = Some(next);
        wakes.push(Reverse((next, at)));
    }
}

/// Whether a peer that is known by the same key may go on with its sessions.
fn is_same(old: &PeerKeys, new: &PeerKeys) -> bool {
    old.preshared_key == new.preshared_key && old.suite == new.suite
}
