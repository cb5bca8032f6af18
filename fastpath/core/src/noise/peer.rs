//! The sealed side of one peer: its sessions, its handshakes (`handshakes.rs`), its timers. Section 6 of the WireGuard
//! paper; where that is silent, what Linux does (`drivers/net/wireguard/{timers,send,receive,noise}.c`).
//!
//! ```text
//! initiation sent ─ response received ─► current                       this end began
//! initiation received ─ response sent ─► next ─ data received ─► current      it answered
//! ```
//!
//! Until a responder has received data, it sends nothing by the next session and changes nothing else: only
//! then it is proved that the initiator is there now, and where. The session before the current one is kept
//! for what is still on its way.

mod handshakes;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use handshakes::Turn;

use super::cookie::Signer;
use super::handshake::Initiator;
use super::keys::PeerKeys;
use super::peers::{Now, Output};
use super::session::{REJECT_AFTER_TIME, Role, Session, message_len};
use super::shared::Shared;
use super::tai64n::Tai64n;
use super::timers::{Timer, Timers};
use crate::drops::DropReason;
use crate::peers::PeerIndex;
use crate::wire::wireguard::{Data, HEADER_LEN, TAG_LEN};

/// How long to wait for the answer to an initiation,
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// plus up to this, so that two ends that began at once do not go on doing so.
pub const REKEY_JITTER: Duration = Duration::from_millis(333);
/// How long to go on trying when nothing else asks for a session.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// After receiving without having anything to send, say so; longer silence is suspicious.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// At most one initiation of a peer is answered in this time.
pub const INITIATION_INTERVAL: Duration = Duration::from_millis(20);
/// Bytes of packets that wait for a handshake, per peer. About 90 full ones: the start of some
/// connections, not a buffer for a stream.
pub const QUEUE_BYTES: usize = 128 * 1024;

const WIPE_AFTER: Duration = Duration::from_secs(3 * REJECT_AFTER_TIME.as_secs());
const MAX_ATTEMPTS: u64 = REKEY_ATTEMPT_TIME.as_secs() / REKEY_TIMEOUT.as_secs();
/// An initiator that only receives renews the session before it ends, early enough to be answered.
const REKEY_WHEN_RECEIVING: Duration =
    Duration::from_secs(REJECT_AFTER_TIME.as_secs() - KEEPALIVE_TIMEOUT.as_secs() - REKEY_TIMEOUT.as_secs());

/// A session to seal packets with, for as long as the caller's `now` is now.
#[derive(Debug)]
pub struct Sealer<'a> {
    /// Where the peer is.
    pub endpoint: SocketAddr,
    session: &'a mut Session,
}

impl Sealer<'_> {
    /// Seals a message in place: 16 bytes of room, the packet and its padding, 16 bytes of room.
    ///
    /// # Panics
    /// If `message` is shorter than that.
    pub fn seal(&mut self, message: &mut [u8]) {
        self.session.seal(message);
    }
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) keys: PeerKeys,
    at: PeerIndex,
    /// What the map says.
    pub(super) configured: Option<SocketAddr>,
    /// Where it is, as far as known.
    endpoint: Option<SocketAddr>,
    signer: Signer,
    initiator: Option<(u32, Initiator)>,
    previous: Option<Box<Session>>,
    current: Option<Box<Session>>,
    next: Option<Box<Session>>,
    queue: VecDeque<Vec<u8>>,
    queued_bytes: usize,
    pub(super) timers: Timers,
    /// When the caller is to be woken for the timers; never later than the first.
    pub(super) wake: Option<Duration>,
    jitter: Duration,
    attempts: u64,
    turn: Turn,
    initiation_sent: Option<Duration>,
    initiation_accepted: Option<Duration>,
    newest_stamp: Tai64n,
    newest_sent: Duration,
    /// More was received while a keepalive was due.
    received_more: bool,
    /// Whether the current session was renewed because of what it received.
    renewed: bool,
}

impl Peer {
    pub(super) fn new(at: PeerIndex, keys: PeerKeys, endpoint: Option<SocketAddr>) -> Self {
        Self {
            at,
            configured: endpoint,
            endpoint,
            signer: Signer::new(&keys.public_key),
            keys,
            initiator: None,
            previous: None,
            current: None,
            next: None,
            queue: VecDeque::new(),
            queued_bytes: 0,
            timers: Timers::default(),
            wake: None,
            jitter: Duration::ZERO,
            attempts: 0,
            turn: Turn::default(),
            initiation_sent: None,
            initiation_accepted: None,
            newest_stamp: Tai64n::default(),
            newest_sent: Duration::ZERO,
            received_more: false,
            renewed: false,
        }
    }

    /// Takes over what a new map says of the same peer: its place, its configured endpoint, its keys.
    pub(super) fn adopt(&mut self, new: Self, shared: &mut Shared) {
        self.at = new.at;
        if new.configured != self.configured {
            self.configured = new.configured;
            self.move_to(new.configured, shared);
        }
        if new.keys.public_key != self.keys.public_key {
            self.signer = new.signer;
        }
        self.keys = new.keys;
        self.wake = None;
    }

    /// After it has given up, another packet may try again.
    pub(super) fn is_expected(&self) -> bool {
        self.endpoint.is_some() && (self.attempts == 0 || !self.timers.is_armed(Timer::Retransmit))
    }

    #[cfg(test)]
    pub(super) fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
    }

    /// The indexes that messages for this peer may name.
    pub(super) fn indexes(&self) -> impl Iterator<Item = u32> {
        let sessions = [&self.previous, &self.current, &self.next].into_iter().flatten();
        sessions.map(|session| session.local).chain(self.initiator.iter().map(|(index, _)| *index))
    }

    // --- sending ---

    /// Sees to what sending brings with it; false: there is no session to send with.
    pub(super) fn prepare(&mut self, data: bool, now: Now, shared: &mut Shared) -> bool {
        let Some(session) = self.current.as_ref().filter(|session| session.is_alive(now.time)) else {
            return false;
        };
        let worn = session.is_worn(now.time);
        self.has_sent(now.time);
        if data && !self.timers.is_armed(Timer::Silence) {
            self.timers.arm(Timer::Silence, now.time + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + self.jitter);
        }
        if worn {
            self.begin_handshake(now, shared);
        }
        true
    }

    /// The session to send with, after [`Self::prepare`].
    pub(super) fn sealer(&mut self) -> Option<Sealer<'_>> {
        let session = self.current.as_mut()?;
        Some(Sealer { endpoint: self.endpoint?, session })
    }

    /// Keeps a packet until there is a session, and sees to it that there will be one.
    pub(super) fn wait(&mut self, packet: &[u8], now: Now, shared: &mut Shared) -> Result<(), DropReason> {
        self.endpoint.ok_or(DropReason::NoEndpoint)?;
        if !packet.is_empty() {
            self.enqueue(packet, shared);
        }
        self.begin_handshake(now, shared);
        Ok(())
    }

    fn enqueue(&mut self, packet: &[u8], shared: &mut Shared) {
        self.queued_bytes += packet.len();
        self.queue.push_back(packet.to_vec());
        while self.queued_bytes > QUEUE_BYTES {
            self.queued_bytes -= self.queue.pop_front().map_or(0, |oldest| oldest.len());
            shared.drop(DropReason::HandshakeBacklog.by(self.at));
        }
    }

    /// Sends what waited for a session; if nothing did and `confirm`, an empty message.
    fn flush(&mut self, confirm: bool, now: Now, shared: &mut Shared) {
        self.queued_bytes = 0;
        let mut waiting = std::mem::take(&mut self.queue);
        if waiting.is_empty() && confirm {
            waiting.push_back(Vec::new());
        }
        for packet in waiting {
            self.send(&packet, now, shared);
        }
    }

    fn send(&mut self, packet: &[u8], now: Now, shared: &mut Shared) {
        let ready = self.prepare(!packet.is_empty(), now, shared);
        let Some(mut sealer) = self.sealer().filter(|_| ready) else {
            return self.wait(packet, now, shared).unwrap_or_else(|reason| shared.drop(reason.by(self.at)));
        };
        let mut message = vec![0; message_len(packet.len(), shared.mtu)];
        message[HEADER_LEN..HEADER_LEN + packet.len()].copy_from_slice(packet);
        sealer.seal(&mut message);
        let (endpoint, packet_len) = (sealer.endpoint, packet.len());
        shared.report(Output::Transmit { peer: Some(self.at), endpoint, message, packet_len });
    }

    /// Notes that something authenticated was sent.
    fn has_sent(&mut self, now: Duration) {
        self.timers.cancel(Timer::Keepalive);
        self.received_more = false;
        self.traversed(now);
    }

    fn traversed(&mut self, now: Duration) {
        if let Some(interval) = self.keys.keepalive {
            self.timers.arm(Timer::Persistent, now + interval);
        }
    }

    // --- receiving ---

    /// Opens a data message in place; the packet, empty for a keepalive, is at the range returned.
    pub(super) fn open(
        &mut self,
        data: Data,
        message: &mut [u8],
        source: SocketAddr,
        now: Now,
        shared: &mut Shared,
    ) -> Result<Range<usize>, DropReason> {
        let sessions = [&mut self.current, &mut self.previous, &mut self.next];
        let session = sessions.into_iter().flatten().find(|session| session.local == data.receiver);
        session.ok_or(DropReason::IndexUnknown)?.open(data, message, now.time)?;
        self.move_to(Some(source), shared);
        self.has_received(now.time);
        if self.next.as_ref().is_some_and(|next| next.local == data.receiver) {
            self.confirm(now, shared);
        }
        let packet = HEADER_LEN..message.len() - TAG_LEN;
        if !packet.is_empty() {
            self.has_received_data(now.time);
        }
        self.renew_before_the_end(now, shared);
        Ok(packet)
    }

    /// The initiator uses the session that this end answered for: so may this end.
    fn confirm(&mut self, now: Now, shared: &mut Shared) {
        shared.retire(self.previous.take());
        self.previous = self.current.take();
        self.current = self.next.take();
        self.handshake_done(shared);
        self.flush(false, now, shared);
    }

    fn move_to(&mut self, endpoint: Option<SocketAddr>, shared: &mut Shared) {
        if self.endpoint != endpoint {
            self.endpoint = endpoint;
            shared.report(Output::Moved(self.at, endpoint));
        }
    }

    fn has_received(&mut self, now: Duration) {
        self.timers.cancel(Timer::Silence);
        self.traversed(now);
    }

    fn has_received_data(&mut self, now: Duration) {
        if self.timers.is_armed(Timer::Keepalive) {
            self.received_more = true;
        } else {
            self.timers.arm(Timer::Keepalive, now + KEEPALIVE_TIMEOUT);
        }
    }

    fn renew_before_the_end(&mut self, now: Now, shared: &mut Shared) {
        let ends = |session: &Session| {
            session.role == Role::Initiator && now.time >= session.born + REKEY_WHEN_RECEIVING
        };
        if !self.renewed && self.current.as_ref().is_some_and(|current| ends(current)) {
            self.renewed = true;
            self.begin_handshake(now, shared);
        }
    }

    // --- time ---

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Now, shared: &mut Shared) {
        while let Some(timer) = self.timers.expire(now.time) {
            match timer {
                Timer::Retransmit => self.retransmit(now, shared),
                Timer::Keepalive => self.keep_alive(now, shared),
                Timer::Silence => self.begin_handshake(now, shared),
                Timer::Wipe => self.wipe(shared),
                Timer::Persistent => self.send(&[], now, shared),
            }
        }
    }

    fn retransmit(&mut self, now: Now, shared: &mut Shared) {
        if self.attempts >= MAX_ATTEMPTS {
            return self.give_up(now.time, shared);
        }
        self.attempts += 1;
        self.initiate(now, shared);
    }

    fn give_up(&mut self, now: Duration, shared: &mut Shared) {
        self.timers.cancel(Timer::Keepalive);
        self.queued_bytes = 0;
        for _ in self.queue.drain(..) {
            shared.drop(DropReason::HandshakeFailed.by(self.at));
        }
        if !self.timers.is_armed(Timer::Wipe) {
            self.timers.arm(Timer::Wipe, now + WIPE_AFTER);
        }
    }

    fn keep_alive(&mut self, now: Now, shared: &mut Shared) {
        let again = self.received_more;
        self.send(&[], now, shared);
        if again {
            self.timers.arm(Timer::Keepalive, now.time + KEEPALIVE_TIMEOUT);
        }
    }

    /// Forgets every key.
    pub(super) fn wipe(&mut self, shared: &mut Shared) {
        self.forget_initiation(shared);
        for session in [self.previous.take(), self.current.take(), self.next.take()] {
            shared.retire(session);
        }
    }

    /// Says something at once if it is to keep a NAT open.
    pub(super) fn start(&mut self, now: Now) {
        if self.keys.keepalive.is_some() && !self.timers.is_armed(Timer::Persistent) {
            self.timers.arm(Timer::Persistent, now.time);
        }
    }

    #[cfg(feature = "testing")]
    pub(super) fn wear(&mut self, counter: u64) {
        if let Some(session) = &mut self.current {
            session.wear(counter);
        }
    }
}
