//! What a lane has carried and dropped, per peer and per reason.
//!
//! A lane is the only writer of its counters, so writing is a plain load and store; anyone may
//! read at any time. Counters belong to peer ids, not to tables: they outlive a table in which the
//! peer stays.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::drops::{DropReason, Dropped};
use crate::peers::{Peer, PeerIndex, Table};
use crate::pmtu::Path;

/// The counters of one lane, in the order of the table they were made for.
#[derive(Debug)]
pub struct Counters {
    /// Drops of all packets, by reason, those blamed on a peer included.
    pub drops: Arc<Drops>,
    /// Packets that were given to another lane, which has the peer they are for.
    pub handed_over: Arc<Counter>,
    peers: Vec<Arc<PeerCounters>>,
}

impl Counters {
    /// Counters for `table`. `previous` is the table before it and its counters; peers in both
    /// keep theirs. `first` are those of the first lane for the same table, unless these are they.
    #[must_use]
    pub fn new(table: &Table, previous: Option<(&Table, &Self)>, first: Option<&Self>) -> Self {
        let kept = |(index, peer): (PeerIndex, &Arc<Peer>)| {
            let (table, counters) = previous?;
            let before = if table.has(index, peer) { Some(index) } else { table.index_of(&peer.id) };
            before.map(|index| counters.peers[index.0].clone())
        };
        let beside = |index: PeerIndex| first.map(|first| Arc::new(first.peer(index).beside()));
        let peer =
            |entry: (PeerIndex, &Arc<Peer>)| kept(entry).or_else(|| beside(entry.0)).unwrap_or_default();
        Self {
            drops: previous.map(|(_, counters)| counters.drops.clone()).unwrap_or_default(),
            handed_over: previous.map(|(_, counters)| counters.handed_over.clone()).unwrap_or_default(),
            peers: table.entries().map(peer).collect(),
        }
    }

    /// The counters of one peer.
    #[must_use]
    pub fn peer(&self, peer: PeerIndex) -> &PeerCounters {
        &self.peers[peer.0]
    }

    /// Counts a drop, in total and against the peer to blame.
    pub fn dropped(&self, dropped: Dropped) {
        self.dropped_many(dropped, 1);
    }

    /// Counts a packet given to another lane.
    pub fn handed_over(&self) {
        self.handed_over.add(1);
    }

    /// Counts drops of several packets for one reason.
    pub fn dropped_many(&self, dropped: Dropped, packets: u64) {
        self.drops.add(dropped.reason, packets);
        if let Some(peer) = dropped.peer {
            self.peer(peer).drops.add(dropped.reason, packets);
        }
    }
}

/// One peer's counters. Bytes are inner bytes: without Geneve, UDP and outer IP headers.
#[derive(Debug, Default)]
pub struct PeerCounters {
    /// Packets sent to the peer.
    pub tx_packets: Counter,
    /// Bytes sent to the peer.
    pub tx_bytes: Counter,
    /// Packets from the peer that were handed to the host.
    pub rx_packets: Counter,
    /// Bytes from the peer that were handed to the host.
    pub rx_bytes: Counter,
    /// Packets dropped on the way to the peer or from it.
    pub drops: Drops,
    /// How large a packet to it may be.
    pub path: Path,
    heard: Moment,
    connected: Moment,
    /// Written when the peer moves, which is rare.
    endpoint: Mutex<Option<SocketAddr>>,
    any_lane: Arc<AnyLane>,
}

/// What lanes let each other know of a peer.
#[derive(Debug, Default)]
struct AnyLane {
    /// Whether one has heard the peer; looked at once by each.
    heard: AtomicBool,
    /// How often one found that packets of the size that its path took do not arrive any more.
    alarms: AtomicU32,
}

impl PeerCounters {
    /// Counters of the same peer for another lane.
    fn beside(&self) -> Self {
        Self { any_lane: self.any_lane.clone(), ..Self::default() }
    }

    /// Counts packets sent.
    pub fn sent(&self, load: Load) {
        self.tx_packets.add(load.packets);
        self.tx_bytes.add(load.bytes);
    }

    /// Counts packets handed to the host.
    pub fn delivered(&self, load: Load) {
        self.rx_packets.add(load.packets);
        self.rx_bytes.add(load.bytes);
    }

    /// Notes that the peer was heard at `now`; true the first time on any lane.
    pub fn heard(&self, now: Duration) -> bool {
        self.heard.note(now) && !self.any_lane.heard.swap(true, Relaxed)
    }

    /// Has all lanes see whether their paths to the peer still take what they took.
    pub(crate) fn alarm(&self) {
        self.any_lane.alarms.fetch_add(1, Relaxed);
    }

    /// Another number than before: there was an alarm.
    pub(crate) fn alarms(&self) -> u32 {
        self.any_lane.alarms.load(Relaxed)
    }

    /// Notes that a handshake with the peer was complete at `now`.
    pub fn connected(&self, now: Duration) {
        self.connected.note(now);
    }

    /// When the last handshake was complete; `None`: never.
    #[must_use]
    pub fn last_connected(&self) -> Option<Duration> {
        self.connected.read()
    }

    /// Notes where a sealed peer is now.
    pub fn moved(&self, endpoint: Option<SocketAddr>) {
        *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner) = endpoint;
    }

    /// Where a sealed peer is.
    #[must_use]
    pub fn endpoint(&self) -> Option<SocketAddr> {
        *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the peer was last heard, on the clock that [`Self::heard`] was given.
    #[must_use]
    pub fn last_heard(&self) -> Option<Duration> {
        self.heard.read()
    }
}

/// How much was carried in one piece: inner packets and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Packets, as they are on the wire.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Load {
    /// One packet.
    #[must_use]
    pub fn of_one(bytes: usize) -> Self {
        Self { packets: 1, bytes: bytes as u64 }
    }

    /// One packet more.
    pub fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

/// A number that one thread raises and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    fn add(&self, amount: u64) {
        // The lane is the only writer: no read-modify-write is needed, which costs a bus lock.
        self.0.store(self.0.load(Relaxed).wrapping_add(amount), Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Drops by reason.
#[derive(Debug)]
pub struct Drops([Counter; DropReason::COUNT]);

impl Default for Drops {
    fn default() -> Self {
        Self([const { Counter(AtomicU64::new(0)) }; DropReason::COUNT])
    }
}

impl Drops {
    fn add(&self, reason: DropReason, packets: u64) {
        self.0[reason as usize].add(packets);
    }

    /// How many packets were dropped for `reason`.
    #[must_use]
    pub fn read(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].read()
    }

    /// The reasons that occurred, with how often.
    pub fn occurred(&self) -> impl Iterator<Item = (DropReason, u64)> {
        let all = DropReason::ALL.iter().map(|reason| (*reason, self.read(*reason)));
        all.filter(|(_, count)| *count > 0)
    }
}

/// Milliseconds on the caller's clock plus one; zero is never.
#[derive(Debug, Default)]
struct Moment(AtomicU64);

impl Moment {
    fn note(&self, now: Duration) -> bool {
        let first = self.0.load(Relaxed) == 0;
        let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.0.store(millis.saturating_add(1), Relaxed);
        first
    }

    fn read(&self) -> Option<Duration> {
        self.0.load(Relaxed).checked_sub(1).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::tests::{peer, table};

    #[test]
    fn counters_outlive_a_table_in_which_the_peer_stays() {
        let before = table(&[peer("a"), peer("b")]);
        let counters = Counters::new(&before, None, None);
        counters.peer(before.index_of("b").unwrap()).sent(Load::of_one(100));
        counters.dropped(DropReason::NoRoute.by(None));

        let after = table(&[peer("b"), peer("c")]);
        let counters = Counters::new(&after, Some((&before, &counters)), None);
        assert_eq!(counters.peer(after.index_of("b").unwrap()).tx_bytes.read(), 100);
        assert_eq!(counters.peer(after.index_of("c").unwrap()).tx_bytes.read(), 0);
        assert_eq!(counters.drops.read(DropReason::NoRoute), 1);
    }

    #[test]
    fn a_blamed_drop_counts_twice_an_unblamed_once() {
        let table = table(&[peer("a")]);
        let counters = Counters::new(&table, None, None);
        let a = table.index_of("a").unwrap();
        counters.dropped(DropReason::TooBig.by(a));
        counters.dropped(DropReason::TooBig.by(None));
        assert_eq!(counters.drops.occurred().collect::<Vec<_>>(), [(DropReason::TooBig, 2)]);
        assert_eq!(counters.peer(a).drops.read(DropReason::TooBig), 1);
    }

    #[test]
    fn a_peer_heard_on_one_lane_is_not_new_on_another() {
        let table = table(&[peer("a")]);
        let a = table.index_of("a").unwrap();
        let first = Counters::new(&table, None, None);
        let second = Counters::new(&table, None, Some(&first));
        assert!(second.peer(a).heard(Duration::ZERO));
        assert!(!first.peer(a).heard(Duration::ZERO));
        let third = Counters::new(&table, None, Some(&first));
        assert!(!third.peer(a).heard(Duration::ZERO));
        assert_eq!(third.peer(a).last_heard(), Some(Duration::ZERO));
    }

    #[test]
    fn only_the_first_word_is_the_first() {
        let counters = PeerCounters::default();
        assert_eq!(counters.last_heard(), None);
        assert!(counters.heard(Duration::ZERO));
        assert!(!counters.heard(Duration::from_millis(5)));
        assert_eq!(counters.last_heard(), Some(Duration::from_millis(5)));
    }
}
