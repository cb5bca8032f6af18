//! The loop that carries packets: read a batch, carry it to the end, flush. One thread, which shares nothing with
//! other lanes but the table; a packet that another lane must carry goes there by `handover.rs`. Only super-packets
//! may stay for a later turn, and what is behind them in their flow, so that others need not wait (`backlog.rs`).
//!
//! ```text
//! outbound   host ─ inner.recv ─ backlog ─ cut ─ tunnel.outbound ─ gather, seal ─ outer.send ─ underlay
//! inbound    host ─ inner.send ─ deliver ─ tunnel.inbound ──────── outer.recv ─ underlay
//! replies    what the fastpath says itself: handshakes, echoes ─── outer.send ─ underlay
//! ```
//!
//! Nothing here waits but for packets, and in a sealed network for what comes due. Another thread
//! rules the lane by commands (`command.rs`); what a command replaces goes back to that thread, to
//! be freed there.

mod commands;
mod inbound;
mod outbound;
mod replies;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use overmesh_core::noise::{Now, Peers};
use overmesh_core::peers::Table;
use overmesh_core::pmtu::{BASE, Notices, Pace, Paths};
use overmesh_core::tunnel::Tunnel;
use overmesh_io::device::{Batch, Device};
use overmesh_io::poll::{Poller, Waker};
use tokio::sync::broadcast;

use crate::backlog::Backlog;
use crate::command::{COMMANDS, Command, Event, INNER, LaneEnds, LaneHandle, OUTER};
use crate::deliver::Deliveries;
use crate::gather::Runs;
use crate::handover::{Inbox, Lower};
use crate::probe::Probes;
use replies::Replies;

/// Packets a turn and direction: enough to spread the cost of a wake-up, few enough that the other
/// direction is not kept waiting.
const BATCH: usize = 64;
/// Bytes of super-packets a turn and direction, for the same reason: they are long.
pub(crate) const BUDGET: usize = 256 << 10;

/// Starts a lane on a thread of its own; which one it is, `tunnel` says.
///
/// `lower` are all lanes below it; they must outlive it. `clock` is the zero of the times at which
/// peers are heard; `pace`, how often settled paths are tried again.
pub fn spawn<'a>(
    inner: Box<dyn Device>,
    outer: Box<dyn Device>,
    tunnel: Arc<Tunnel>,
    lower: impl Iterator<Item = &'a LaneHandle>,
    clock: Instant,
    pace: Pace,
    events: broadcast::Sender<Event>,
) -> io::Result<(LaneHandle, JoinHandle<()>)> {
    let (handle, LaneEnds { commands, waker, inbox }) = LaneHandle::new()?;
    let mut poller = Poller::default();
    poller.watch(COMMANDS, [waker.as_fd()]);
    poller.watch(INNER, inner.descriptors());
    poller.watch(OUTER, outer.descriptors());
    let name = format!("lane-{}", tunnel.lane);
    let lane = Lane {
        backlog: Backlog::new(),
        received: new_batch(&*outer),
        sealed: new_sealed(&tunnel.table, tunnel.lane, now_on(clock)),
        inner,
        outer,
        tunnel,
        runs: Runs::new(),
        deliveries: Deliveries::new(),
        replies: Replies::new(),
        probes: Probes::default(),
        lower: Lower::new(lower.map(LaneHandle::outbox)),
        inbox,
        paths: Paths::new(pace, Box::new(random_u64)),
        notices: Notices::new(),
        poller,
        waker,
        commands,
        events,
        clock,
    };
    let thread = Builder::new().name(name).spawn(move || lane.run())?;
    Ok((handle, thread))
}

struct Lane {
    inner: Box<dyn Device>,
    outer: Box<dyn Device>,
    tunnel: Arc<Tunnel>,
    /// Sessions with the peers, in a sealed network.
    sealed: Option<Peers>,
    /// What the host has sent.
    backlog: Backlog,
    /// What the underlay gave in this turn.
    received: Batch,
    runs: Runs,
    deliveries: Deliveries,
    replies: Replies,
    probes: Probes,
    /// Lanes that may be given packets.
    lower: Lower,
    /// Packets given by higher lanes.
    inbox: Inbox,
    /// How large packets to each peer may be.
    paths: Paths,
    notices: Notices,
    poller: Poller,
    waker: Waker,
    commands: Receiver<Command>,
    events: broadcast::Sender<Event>,
    clock: Instant,
}

/// A device that is gone.
struct Lost {
    device: String,
    reason: io::Error,
}

impl Lane {
    fn run(mut self) {
        if let Err(Lost { device, reason }) = self.carry() {
            let _ = self.events.send(Event::DeviceLost { device, reason: reason.to_string() });
        }
    }

    fn carry(&mut self) -> Result<(), Lost> {
        loop {
            self.tend()?;
            let ready =
                self.poller.wait(self.patience()).map_err(|reason| Lost { device: "poll".into(), reason })?;
            if ready.has(COMMANDS) {
                if self.obey()?.is_break() {
                    return Ok(());
                }
                self.carry_handed()?;
            }
            if ready.has(OUTER) {
                self.carry_inbound()?;
            }
            if ready.has(INNER) || !self.backlog.is_empty() {
                self.carry_outbound()?;
            }
        }
    }

    /// How long to wait for packets.
    fn patience(&self) -> Option<Duration> {
        if !self.backlog.is_empty() {
            return Some(Duration::ZERO);
        }
        let sessions = self.sealed.as_ref().and_then(Peers::poll_timeout);
        let due = sessions.into_iter().chain(self.paths.poll_timeout()).min()?;
        Some(due.saturating_sub(self.clock.elapsed()))
    }
}

/// Both clocks. `clock` is the zero of the monotonic one.
fn now_on(clock: Instant) -> Now {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now { time: clock.elapsed(), unix }
}

fn new_batch(outer: &dyn Device) -> Batch {
    Batch::with_budget(BATCH, outer.capabilities().max_packet, BUDGET)
}

/// Sessions with nobody yet; `None` in a plain network.
fn new_sealed(table: &Table, lane: usize, now: Now) -> Option<Peers> {
    let number = u8::try_from(lane).expect("lanes are checked to be few");
    let mut peers = Peers::new(table.host_keys()?.clone(), Box::new(random)).on_lane(number);
    peers.install(table.keys(lane), padded_to(table), now);
    Some(peers)
}

/// Up to where packets are padded that wait for a session: what reaches a peer of whom nothing is known.
fn padded_to(table: &Table) -> usize {
    table.mtu().min(BASE.into()) as usize
}

fn random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("Linux gives random bytes after boot");
}

fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    random(&mut bytes);
    u64::from_ne_bytes(bytes)
}

fn lost(device: &dyn Device) -> impl FnOnce(io::Error) -> Lost {
    move |reason| Lost { device: device.capabilities().name.clone(), reason }
}
