//! How large a packet may be that goes to a peer: packetization layer path MTU discovery, RFC 8899.
//!
//! ```text
//! packet to a peer ─ begin ─► search.rs: one peer's state ─ probe ─► padded echo ─► the peer's fastpath
//!                                        ▲                                                │
//!                            answered ───┴──────────────── short answer ──────────────────┘
//! ```
//!
//! A probe proves the way there only: its answer is short, so that a narrow way back does not hide a wide
//! way there, and each end probes its own. Peers without traffic are not probed and cost one word ([`Path`]),
//! which is also all that a packet reads on its way.

mod notices;
mod search;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use foldhash::fast::RandomState;

use crate::peers::PeerIndex;
use crate::tunnel::Tunnel;
pub use notices::Notices;
pub use search::{BASE, News, Pace};
use search::{Search, Step, Traffic};

/// What is known of the path to one peer. The lane writes it, anyone may read it.
#[derive(Debug, Default)]
pub struct Path(AtomicU64);

/// See [`Path`]. Sizes are inner packets, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// What TCP is cut to: confirmed, or the size that is assumed until one is.
    pub sure: u16,
    /// What is sent at all; beyond `sure` only until it is known whether it arrives.
    pub most: u16,
    /// Whether `sure` was confirmed by the peer.
    pub probed: bool,
    /// Whether it is being seen to; if not, [`Paths::begin`] is due.
    pub watched: bool,
}

const SURE: u32 = 0;
const MOST: u32 = 16;
const WATCHED: u64 = 1 << 32;
const PROBED: u64 = 1 << 33;
/// The peer is never probed.
const ASSUMED: u64 = 1 << 34;
/// The host refused to send a packet of a size that was held for good.
const DOUBTED: u64 = 1 << 35;

impl Path {
    /// What is known, in a network whose MTU is `mtu`.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "each field has 16 bits")]
    pub fn known(&self, mtu: u32) -> Known {
        let (word, mtu) = (self.0.load(Relaxed), size(mtu));
        let field = |shift: u32| (word >> shift) as u16;
        let (sure, most) =
            if word & (PROBED | ASSUMED | WATCHED) == 0 { (BASE, mtu) } else { (field(SURE), field(MOST)) };
        Known {
            sure: sure.min(mtu),
            most: most.min(mtu),
            probed: word & PROBED != 0,
            watched: word & WATCHED != 0,
        }
    }

    /// Takes for granted that all packets reach a peer that answers no probes; `None`: no longer.
    pub(crate) fn assume(&self, mtu: Option<u32>) {
        match mtu {
            Some(mtu) => {
                let mtu = u64::from(size(mtu));
                self.0.store(mtu << SURE | mtu << MOST | ASSUMED | WATCHED, Relaxed);
            }
            None if self.0.load(Relaxed) & ASSUMED != 0 => self.0.store(0, Relaxed),
            None => {}
        }
    }

    /// Notes that the host refused to send as much. The next packet has it seen to.
    pub(crate) fn doubt(&self) {
        let word = self.0.load(Relaxed);
        if word & ASSUMED == 0 {
            self.0.store(word & !WATCHED | DOUBTED, Relaxed);
        }
    }

    fn is_doubted(&self) -> bool {
        self.0.load(Relaxed) & DOUBTED != 0
    }

    fn set(&self, known: Known) {
        let flags = if known.probed { PROBED } else { 0 } | if known.watched { WATCHED } else { 0 };
        self.0.store(u64::from(known.sure) << SURE | u64::from(known.most) << MOST | flags, Relaxed);
    }

    fn unwatch(&self) {
        self.0.store(self.0.load(Relaxed) & !WATCHED, Relaxed);
    }
}

fn size(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Send the peer an echo as long as an inner packet of `size` bytes.
    Probe {
        /// Whom.
        peer: PeerIndex,
        /// Bytes.
        size: u16,
        /// Its answer bears this.
        token: u64,
    },
    /// Tell people.
    News(PeerIndex, News),
}

/// The paths to the peers that there is traffic to.
pub struct Paths {
    searches: HashMap<PeerIndex, Search, RandomState>,
    pace: Pace,
    /// Gives numbers that nobody can guess.
    random: Box<dyn FnMut() -> u64 + Send>,
    /// When searches want to be woken. An entry that is not its search's deadline is void.
    wakes: BinaryHeap<Reverse<(Duration, usize)>>,
    outputs: VecDeque<Output>,
}

impl Paths {
    /// No paths yet.
    #[must_use]
    pub fn new(pace: Pace, random: Box<dyn FnMut() -> u64 + Send>) -> Self {
        let (searches, wakes, outputs) = (HashMap::default(), BinaryHeap::new(), VecDeque::new());
        Self { searches, pace, random, wakes, outputs }
    }

    /// Sees to the path to a peer that is not watched and that there is a packet for.
    pub fn begin(&mut self, peer: PeerIndex, tunnel: &Tunnel, now: Duration) {
        let path = &tunnel.counters.peer(peer).path;
        let (mtu, known) = (size(tunnel.table.mtu()), path.known(tunnel.table.mtu()));
        let (pace, confirmed) = (self.pace, known.probed.then_some(known.sure));
        let search = self.searches.entry(peer).or_insert_with(|| Search::new(mtu, confirmed, pace, now));
        if path.is_doubted() {
            search.doubt(now);
        }
        self.publish(peer, tunnel);
    }

    /// Takes the answer to a probe; false: it is none that this peer was sent.
    pub fn answered(&mut self, peer: PeerIndex, token: u64, tunnel: &Tunnel, now: Duration) -> bool {
        let answers = self.searches.get_mut(&peer).is_some_and(|search| search.answered(token, now));
        if answers {
            self.publish(peer, tunnel);
        }
        answers
    }

    /// Notes that the host itself refused to send the probe under way: no need to wait for its answer.
    pub fn refused(&mut self, peer: PeerIndex, tunnel: &Tunnel, now: Duration) {
        if let Some(search) = self.searches.get_mut(&peer) {
            search.refused(now);
            self.publish(peer, tunnel);
        }
    }

    /// Notes that the peer is somewhere else now: what was known is of another path.
    pub fn moved(&mut self, peer: PeerIndex, tunnel: &Tunnel) {
        if self.searches.remove(&peer).is_some() {
            tunnel.counters.peer(peer).path.unwatch();
        }
    }

    /// Goes on with another table. A path that may have changed with it is tried again with the next packet.
    pub fn install(&mut self, old: &Tunnel, new: &Tunnel) {
        self.wakes.clear();
        for (peer, search) in std::mem::take(&mut self.searches) {
            let before = old.table.peer(peer);
            let Some(at) = new.table.index_of(&before.id).filter(|at| !new.table.peer(*at).stock) else {
                continue;
            };
            if old.table.mtu() == new.table.mtu()
                && before.endpoint(new.lane) == new.table.peer(at).endpoint(new.lane)
            {
                self.searches.insert(at, search);
                self.publish(at, new);
            } else {
                new.counters.peer(at).path.unwatch();
            }
        }
    }

    /// When [`Self::handle_timeout`] is to be called; `None`: not before something else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.wakes.peek().map(|Reverse((at, _))| *at)
    }

    /// Does what is due. May be called too early or too often.
    pub fn handle_timeout(&mut self, tunnel: &Tunnel, now: Duration) {
        while let Some(Reverse((at, peer))) = self.wakes.peek().copied().filter(|due| due.0.0 <= now) {
            self.wakes.pop();
            let peer = PeerIndex(peer);
            if self.searches.get(&peer).is_some_and(|search| search.deadline() == at) {
                self.advance(peer, tunnel, now);
            }
        }
    }

    /// What is to be done; ask until there is nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn advance(&mut self, peer: PeerIndex, tunnel: &Tunnel, now: Duration) {
        let counters = tunnel.counters.peer(peer);
        let traffic = Traffic {
            sent: counters.tx_bytes.read(),
            received: counters.rx_packets.read(),
            alarms: counters.alarms(),
        };
        let Some(search) = self.searches.get_mut(&peer) else { return };
        match search.advance(traffic, &mut self.random, now) {
            Step::Wait => {}
            Step::Probe { size, token } => self.outputs.push_back(Output::Probe { peer, size, token }),
            Step::Rest => {
                self.searches.remove(&peer);
                return counters.path.unwatch();
            }
        }
        self.publish(peer, tunnel);
    }

    /// Tells packets, the clock and people what a search has come to.
    fn publish(&mut self, peer: PeerIndex, tunnel: &Tunnel) {
        let Some(search) = self.searches.get_mut(&peer) else { return };
        let (counters, known) = (tunnel.counters.peer(peer), search.known());
        if counters.path.known(tunnel.table.mtu()).probed && !known.probed {
            counters.alarm();
        }
        counters.path.set(known);
        self.wakes.push(Reverse((search.deadline(), peer.0)));
        self.outputs.extend(search.news().map(|news| Output::News(peer, news)));
    }
}

impl fmt::Debug for Paths {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Paths").field("searches", &self.searches).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Load;
    use crate::peers::tests::{peer, table};
    use std::sync::Arc;

    const PEER: PeerIndex = PeerIndex(0);

    /// A lane whose path to the peer takes packets of `takes` bytes; answers come at once.
    struct Lane {
        tunnel: Tunnel,
        paths: Paths,
        takes: u16,
    }

    impl Lane {
        fn new(tunnel: Tunnel) -> Self {
            let mut token = 0;
            let random = move || {
                token += 1;
                token
            };
            Self { tunnel, paths: Paths::new(Pace::default(), Box::new(random)), takes: 1420 }
        }

        /// Time passes with traffic, if the peer's answers come through.
        fn busy(&mut self, seconds: std::ops::Range<u64>) {
            for tick in seconds.start * 100..seconds.end * 100 {
                let now = Duration::from_millis(tick * 10);
                self.tunnel.counters.peer(PEER).sent(Load::of_one(1000));
                self.tunnel.counters.peer(PEER).delivered(Load::of_one(1000));
                if !self.tunnel.path(PEER).watched {
                    self.paths.begin(PEER, &self.tunnel, now);
                }
                self.paths.handle_timeout(&self.tunnel, now);
                while let Some(output) = self.paths.poll_output() {
                    if let Output::Probe { size, token, .. } = output
                        && size <= self.takes
                    {
                        assert!(self.paths.answered(PEER, token, &self.tunnel, now));
                    }
                }
            }
        }
    }

    #[test]
    fn a_lane_whose_path_shrinks_has_the_others_look_at_theirs() {
        let first = Tunnel::new(Arc::new(table(&[peer("b")])), None);
        let mut lanes = [Lane::new(first.beside(1, None)), Lane::new(first)];
        for lane in &mut lanes {
            lane.busy(0..3);
            lane.takes = 1350;
        }
        // The first validates as it is time to; the other does so though it is not.
        lanes[0].busy(3..16);
        assert_eq!(lanes[0].tunnel.path(PEER).sure, 1350);
        assert_eq!(lanes[1].tunnel.path(PEER).sure, 1420);
        lanes[1].busy(3..5);
        assert!(lanes[1].tunnel.path(PEER).sure <= 1350);
        lanes[1].busy(5..8);
        assert_eq!(lanes[1].tunnel.path(PEER).sure, 1350);
    }
}
