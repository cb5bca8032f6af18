//! All sealed peers of a host: whom a message is for, and what there is to send.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fmt;
use std::mem;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::admission::{Limiter, Load};
use super::aead::Suite;
use super::cookie::Checker;
use super::handshake::{Ephemeral, Responder};
use super::keys::{HostKeys, PeerKeys, PrivateKey, PublicKey};
use super::peer::{Peer, Sealer};
use super::session::Session;
use crate::drops::{DropReason, Dropped};
use crate::peers::PeerIndex;
use crate::wire::wireguard::{CookieReply, Data, Initiation, Message, Response};

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
            shared: Shared {
                keys,
                random,
                lane: 0,
                mtu: 0,
                indexes: HashMap::default(),
                outputs: VecDeque::new(),
            },
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

    /// Takes a datagram; a packet in it is opened in place.
    ///
    /// # Errors
    /// A named drop, blamed on a peer only where the peer is proved to have sent it or to be meant
    /// by its index.
    pub fn handle_datagram(
        &mut self,
        datagram: &mut [u8],
        source: SocketAddr,
        now: Now,
    ) -> Result<Received, Dropped> {
        let message = Message::new_checked(datagram).map_err(|reason| reason.by(None))?;
        let (peer, live) = match message {
            Message::Data(data) => return self.open(data, datagram, source, now),
            Message::Initiation(initiation) => (self.respond(initiation, source, now)?, false),
            Message::Response(response) => (self.finish(response, source, now)?, true),
            Message::CookieReply(reply) => (self.take_cookie(reply, now)?, true),
        };
        Ok(Received { peer, live, packet: 0..0 })
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

    fn open(
        &mut self,
        data: Data,
        datagram: &mut [u8],
        source: SocketAddr,
        now: Now,
    ) -> Result<Received, Dropped> {
        let peer = self.peer_by(data.receiver)?;
        let opened = self.with(peer, |peer, shared| peer.open(data, datagram, source, now, shared));
        let packet = opened.map_err(|reason| reason.by(peer))?;
        Ok(Received { peer, live: true, packet })
    }

    fn respond(
        &mut self,
        initiation: Initiation,
        source: SocketAddr,
        now: Now,
    ) -> Result<PeerIndex, Dropped> {
        let local = self.admit(initiation.bytes(), source, now).map_err(|reason| reason.by(None))?;
        let responder = self.identify(initiation, local).map_err(|reason| reason.by(None))?;
        let (suite, responder) = responder;
        let known = self.by_key.get(&responder.remote).copied();
        let peer = known.ok_or_else(|| DropReason::KeyUnknown.by(None))?;
        if self.states[peer.0].keys.suite != suite {
            return Err(DropReason::SuiteMismatch.by(peer));
        }
        let answered = self.with(peer, |peer, shared| peer.respond(responder, source, now, shared));
        answered.map(|()| peer).map_err(|reason| reason.by(peer))
    }

    /// Who began a handshake, and with which suite: that which opens it.
    fn identify(&mut self, initiation: Initiation, local: usize) -> Result<(Suite, Responder), DropReason> {
        let Self { shared, users, locals, .. } = self;
        let mut open = |suite: Suite| {
            let ephemeral = shared.ephemeral();
            Responder::open(&locals[local].private_key, suite, initiation, ephemeral)
                .map(|opened| (suite, opened))
        };
        let used = |suite: &Suite| users[*suite as usize] > 0;
        let opened = Suite::ALL.into_iter().filter(used).find_map(|suite| open(suite).ok());
        opened.ok_or(DropReason::HandshakeInvalid)
    }

    fn finish(&mut self, response: Response, source: SocketAddr, now: Now) -> Result<PeerIndex, Dropped> {
        self.admit(response.bytes(), source, now).map_err(|reason| reason.by(None))?;
        let peer = self.peer_by(response.receiver())?;
        let finished = self.with(peer, |peer, shared| peer.finish(response, source, now, shared));
        finished.map(|()| peer).map_err(|reason| reason.by(peer))
    }

    fn take_cookie(&mut self, reply: CookieReply, now: Now) -> Result<PeerIndex, Dropped> {
        let peer = self.peer_by(reply.receiver())?;
        let taken = self.with(peer, |peer, _| peer.take_cookie(reply, now));
        taken.map(|()| peer).map_err(|reason| reason.by(peer))
    }

    /// Whether a handshake message is worth its cost, and which of this host's keys it is for.
    fn admit(&mut self, message: &[u8], source: SocketAddr, now: Now) -> Result<usize, DropReason> {
        let addressed = self.locals.iter().position(|local| local.checker.mac1_is_valid(message));
        let local = addressed.ok_or(DropReason::Mac1Invalid)?;
        if !self.load.is_heavy(now.time) {
            return Ok(local);
        }
        let checker = &mut self.locals[local].checker;
        if !checker.mac2_is_valid(message, source, now.time) {
            if !self.load.grants_cookie() {
                return Err(DropReason::HandshakeRate);
            }
            let reply = checker.reply(message, source, now.time, &mut self.shared.random);
            let transmit =
                Output::Transmit { peer: None, endpoint: source, message: reply.to_vec(), packet_len: 0 };
            self.shared.outputs.push_back(transmit);
            return Err(DropReason::CookieRequired);
        }
        if self.limiter.admits(source.ip(), now.time) { Ok(local) } else { Err(DropReason::HandshakeRate) }
    }

    fn peer_by(&self, index: u32) -> Result<PeerIndex, Dropped> {
        self.shared.indexes.get(&index).copied().ok_or(DropReason::IndexUnknown.by(None))
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

/// A key of this host's that a handshake message may be for.
#[derive(Debug)]
struct Local {
    private_key: PrivateKey,
    checker: Checker,
}

impl Local {
    fn all(keys: &HostKeys) -> Vec<Self> {
        let local =
            |key: &PrivateKey| Self { private_key: key.clone(), checker: Checker::new(&key.public()) };
        keys.iter().map(local).collect()
    }
}

/// What peers share: the host's keys, randomness, the indexes given out, what is to be done.
pub(super) struct Shared {
    keys: HostKeys,
    random: Random,
    /// Which lane of the host this is; handshakes are with that lane of a peer.
    pub(super) lane: u8,
    /// Padding does not go beyond.
    pub(super) mtu: usize,
    /// Whom the index in a message means.
    indexes: HashMap<u32, PeerIndex, RandomState>,
    outputs: VecDeque<Output>,
}

impl Shared {
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
            if let std::collections::hash_map::Entry::Vacant(entry) = self.indexes.entry(index) {
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
