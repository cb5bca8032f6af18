//! The loop that carries packets: read a batch, carry it to the end, flush. One thread, no queue.
//!
//! ```text
//! host ─ inner.recv ─ cut ─ tunnel.outbound ─ gather, seal ─ outer.send ─ underlay
//! host ─ inner.send ─ deliver ─ tunnel.inbound ──────── outer.recv ─ underlay
//! ```
//!
//! Nothing here waits but for packets, and in a sealed network for what comes due. Another thread rules the lane by commands (`command.rs`);
//! what a command replaces goes back to that thread, to be freed there.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime};
use std::{io, mem};

use overmesh_core::counters::Load;
use overmesh_core::drops::Dropped;
use overmesh_core::noise::{Now, Output, Peers};
use overmesh_core::offload::cut::Cut;
use overmesh_core::peers::{PeerIndex, Table};
use overmesh_core::tunnel::{Content, Framing, Tunnel};
use overmesh_core::wire::{control, geneve};
use overmesh_io::device::{Batch, Device, Packet};
use overmesh_io::poll::{Poller, Waker};
use tokio::sync::broadcast;

use crate::command::{Command, Devices, Event, Install, LaneHandle, Replaced};
use crate::deliver::Deliveries;
use crate::gather::{MAX_RUN, Runs};
use crate::probe::{Probe, Probes};

/// Packets a turn and direction: enough to spread the cost of a wake-up, few enough that the other
/// direction is not kept waiting.
const BATCH: usize = 64;
/// Bytes after which a turn reads no more, for the same reason: super-packets are long.
const BUDGET: usize = 256 << 10;
/// Echoes that a turn answers; they are rare.
const REPLIES: usize = 16;

const COMMANDS: u32 = 0;
const INNER: u32 = 1;
const OUTER: u32 = 2;

/// Starts a lane on a thread of its own.
///
/// `clock` is the zero of the times at which peers are heard.
pub fn spawn(
    inner: Box<dyn Device>,
    outer: Box<dyn Device>,
    tunnel: Arc<Tunnel>,
    clock: Instant,
    events: broadcast::Sender<Event>,
) -> io::Result<(LaneHandle, JoinHandle<()>)> {
    let (handle, waker, commands) = LaneHandle::new()?;
    let poller = Poller::new()?;
    poller.watch([waker.as_fd()], COMMANDS)?;
    poller.watch(inner.descriptors(), INNER)?;
    poller.watch(outer.descriptors(), OUTER)?;
    let sealed = new_sealed(&tunnel.table, now_on(clock));
    let lane = Lane {
        received: new_batch(&*inner, &*outer),
        inner,
        outer,
        tunnel,
        sealed,
        runs: Runs::new(),
        deliveries: Deliveries::new(),
        replies: Batch::new(REPLIES, MAX_RUN),
        probes: Probes::default(),
        poller,
        waker,
        commands,
        events,
        clock,
    };
    let thread = Builder::new().name("lane-0".into()).spawn(move || lane.run())?;
    Ok((handle, thread))
}

fn new_batch(inner: &dyn Device, outer: &dyn Device) -> Batch {
    let max_packet = inner.capabilities().max_packet.max(outer.capabilities().max_packet);
    Batch::with_budget(BATCH, max_packet, BUDGET)
}

struct Lane {
    inner: Box<dyn Device>,
    outer: Box<dyn Device>,
    tunnel: Arc<Tunnel>,
    /// Sessions with the peers, in a sealed network.
    sealed: Option<Peers>,
    /// What one of the devices gave in this turn.
    received: Batch,
    runs: Runs,
    deliveries: Deliveries,
    /// Echoes to send back at the end of a turn.
    replies: Batch,
    probes: Probes,
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
            let ready = self
                .poller
                .wait(self.patience())
                .map_err(|reason| Lost { device: "epoll".into(), reason })?;
            if ready.has(COMMANDS) && self.obey()?.is_break() {
                return Ok(());
            }
            if ready.has(OUTER) {
                self.carry_inbound()?;
            }
            if ready.has(INNER) {
                self.carry_outbound()?;
            }
        }
    }

    fn carry_outbound(&mut self) -> Result<(), Lost> {
        let Self { inner, outer, tunnel, sealed, received, runs, .. } = self;
        received.clear();
        inner.recv(received).map_err(lost(&**inner))?;
        let now = now_on(self.clock);
        for packet in received.packets() {
            let added = match sealed {
                Some(peers) => add_sealed(packet, runs, &mut **outer, tunnel, peers, now),
                None => add_plain(packet, runs, &mut **outer, tunnel),
            };
            added.map_err(lost(&**outer))?;
        }
        runs.flush(&mut **outer, tunnel).map_err(lost(&**outer))
    }

    fn carry_inbound(&mut self) -> Result<(), Lost> {
        let Self { inner, outer, tunnel, sealed, received, deliveries, replies, probes, .. } = self;
        received.clear();
        outer.recv(received).map_err(lost(&**outer))?;
        let (instant, now) = (Instant::now(), now_on(self.clock));
        for run in received.packets_mut() {
            let from = run.address;
            for at in 0..run.datagram_count() {
                let datagram = run.datagram_mut(at);
                let inbound = match sealed {
                    Some(peers) => tunnel.inbound_sealed(datagram, from, peers, now),
                    None => tunnel.inbound(datagram, from.ip(), now.time),
                };
                let Ok(inbound) = inbound else { continue };
                if let Some(peer) = inbound.peer.filter(|_| inbound.first) {
                    let _ = self.events.send(Event::PeerHeard(tunnel.table.peer(peer).id.clone()));
                }
                match (inbound.content, &mut *sealed, inbound.peer) {
                    (Content::Packet(range), ..) => deliveries
                        .add(&datagram[range], inbound.peer, &mut **inner, tunnel)
                        .map_err(lost(&**inner))?,
                    (Content::Reply(range), Some(peers), Some(peer)) => {
                        put_sealed(replies, &datagram[range], peer, tunnel, peers, now);
                    }
                    (Content::Reply(range), ..) => put(replies, &datagram[range], from, inbound.peer),
                    (Content::Answer(token), sealed, peer) => {
                        let answered = probes.answered(token, instant, |asked| match sealed {
                            Some(_) => tunnel.table.index_of(asked) == peer,
                            None => is_at(&tunnel.table, asked, from),
                        });
                        if let Err(reason) = answered {
                            tunnel.counters.dropped(reason.by(peer));
                        }
                    }
                    (Content::Nothing, ..) => {}
                }
            }
        }
        deliveries.flush(&mut **inner, tunnel).map_err(lost(&**inner))?;
        self.flush_replies()
    }

    /// How long to wait for packets.
    fn patience(&self) -> Option<Duration> {
        let due = self.sealed.as_ref()?.poll_timeout()?;
        Some(due.saturating_sub(self.clock.elapsed()))
    }

    /// Does what is due, and what sessions asked for besides.
    fn tend(&mut self) -> Result<(), Lost> {
        let Some(peers) = &mut self.sealed else { return Ok(()) };
        peers.handle_timeout(now_on(self.clock));
        while let Some(output) = self.sealed.as_mut().and_then(Peers::poll_output) {
            let counters = &self.tunnel.counters;
            match output {
                Output::Transmit { peer, endpoint, message, packet_len } => {
                    if self.replies.vacant().is_empty() {
                        self.flush_replies()?;
                    }
                    put(&mut self.replies, &message, endpoint, peer);
                    if packet_len > 0 {
                        self.tunnel.sent(peer, Load::of_one(packet_len), None);
                    }
                }
                Output::Dropped(dropped) => counters.dropped(dropped),
                Output::Connected(peer) => counters.peer(peer).connected(self.clock.elapsed()),
                Output::Moved(peer, endpoint) => counters.peer(peer).moved(endpoint),
            }
        }
        self.flush_replies()
    }

    fn flush_replies(&mut self) -> Result<(), Lost> {
        let Self { outer, tunnel, replies, .. } = self;
        outer.send(replies).map_err(lost(&**outer))?;
        for packet in replies.packets() {
            if let Some(reason) = packet.refused {
                tunnel.counters.dropped(reason.by(packet.owner));
            }
        }
        replies.clear();
        Ok(())
    }

    fn obey(&mut self) -> Result<ControlFlow<()>, Lost> {
        self.waker.reset();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Install(install)) => self.install(install),
                Ok(Command::Probe(probe)) => self.probe(probe)?,
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Ok(ControlFlow::Break(())),
                Err(TryRecvError::Empty) => return Ok(ControlFlow::Continue(())),
            }
        }
    }

    fn install(&mut self, install: Install) {
        let Install { tunnel, devices, done } = install;
        let replaced = self.replace_devices(devices).map(|devices| {
            self.replace_sealed(&tunnel.table);
            Replaced { devices, tunnel: mem::replace(&mut self.tunnel, tunnel) }
        });
        let _ = done.send(replaced);
    }

    /// Sessions go on if this host's key is the same.
    fn replace_sealed(&mut self, table: &Table) {
        let now = now_on(self.clock);
        match &mut self.sealed {
            Some(peers) if table.private_key() == self.tunnel.table.private_key() => {
                peers.install(table.keys(), table.mtu() as usize, now);
            }
            sealed => *sealed = new_sealed(table, now),
        }
    }

    fn replace_devices(&mut self, devices: Devices) -> io::Result<Devices> {
        for (device, token) in [(&devices.inner, INNER), (&devices.outer, OUTER)] {
            let descriptors = device.iter().flat_map(|device| device.descriptors());
            self.poller.watch(descriptors, token)?;
        }
        let replaced = Devices {
            inner: devices.inner.map(|inner| mem::replace(&mut self.inner, inner)),
            outer: devices.outer.map(|outer| mem::replace(&mut self.outer, outer)),
        };
        if replaced.inner.is_some() || replaced.outer.is_some() {
            self.received = new_batch(&*self.inner, &*self.outer);
        }
        Ok(replaced)
    }

    fn probe(&mut self, probe: Probe) -> Result<(), Lost> {
        let Self { tunnel, sealed, replies, .. } = self;
        let peer = tunnel.table.index_of(&probe.peer);
        let network_number = tunnel.table.network_number();
        if let (Some(peers), Some(peer)) = (sealed, peer) {
            // As long as a sealed packet of that size: the Geneve header is part of it here.
            let size = probe.size.saturating_sub(geneve::HEADER_LEN);
            let echo = control::emit_request(network_number, probe.token, size);
            put_sealed(replies, &echo, peer, tunnel, peers, now_on(self.clock));
        } else {
            let echo = control::emit_request(network_number, probe.token, probe.size);
            put(replies, &echo, probe.endpoint, peer);
        }
        self.probes.begin(probe, Instant::now());
        self.flush_replies()
    }
}

/// Both clocks. `clock` is the zero of the monotonic one.
fn now_on(clock: Instant) -> Now {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now { time: clock.elapsed(), unix }
}

/// Sessions with nobody yet; `None` in a plain network.
fn new_sealed(table: &Table, now: Now) -> Option<Peers> {
    let random = |bytes: &mut [u8]| getrandom::fill(bytes).expect("Linux gives random bytes after boot");
    let mut peers = Peers::new(table.private_key()?.clone(), Box::new(random));
    peers.install(table.keys(), table.mtu() as usize, now);
    Some(peers)
}

fn add_plain(packet: &Packet, runs: &mut Runs, outer: &mut dyn Device, tunnel: &Tunnel) -> io::Result<()> {
    match judge(packet, tunnel, |packet, largest| tunnel.outbound(packet, largest)) {
        Ok((cut, mut plain)) => runs.add(&cut, &mut plain, outer, tunnel),
        Err(_counted) => Ok(()),
    }
}

fn add_sealed(
    packet: &Packet,
    runs: &mut Runs,
    outer: &mut dyn Device,
    tunnel: &Tunnel,
    peers: &mut Peers,
    now: Now,
) -> io::Result<()> {
    let judged = judge(packet, tunnel, |packet, largest| tunnel.outbound_sealed(packet, largest));
    let Ok((cut, peer)) = judged else { return Ok(()) };
    if let Some(sealer) = peers.sealer(peer, now) {
        return runs.add(&cut, &mut tunnel.seal(peer, sealer), outer, tunnel);
    }
    wait(&cut, peer, tunnel, peers, now);
    Ok(())
}

/// Keeps the segments of a packet until there is a session.
fn wait(cut: &Cut, peer: PeerIndex, tunnel: &Tunnel, peers: &mut Peers, now: Now) {
    for at in 0..cut.count() {
        let mut segment = vec![0; cut.len(at)];
        cut.write(at, &mut segment);
        if let Err(reason) = peers.wait(peer, &segment, now) {
            tunnel.counters.dropped(reason.by(peer));
        }
    }
}

/// How a packet of the host is cut and what `tunnel` says of it; what goes nowhere is counted.
fn judge<'a, T>(
    packet: &'a Packet,
    tunnel: &Tunnel,
    outbound: impl FnOnce(&[u8], usize) -> Result<T, Dropped>,
) -> Result<(Cut<'a>, T), Dropped> {
    let cut = Cut::new(packet.bytes(), packet.offload).map_err(|reason| reason.by(None));
    let cut = cut.inspect_err(|dropped| tunnel.counters.dropped(*dropped))?;
    let outbound = outbound(cut.packet(), cut.len(0))?;
    Ok((cut, outbound))
}

/// Whether a peer may send from there, in a plain network.
fn is_at(table: &Table, peer: &str, from: SocketAddr) -> bool {
    table.index_of(peer).is_some_and(|peer| table.peer(peer).is_at(from.ip()))
}

fn put(replies: &mut Batch, echo: &[u8], to: SocketAddr, peer: Option<PeerIndex>) {
    if let Some(packet) = replies.push(echo) {
        packet.address = to;
        packet.owner = peer;
    }
}

/// Echoes are few: a copy is simpler than to seal in place.
fn put_sealed(
    replies: &mut Batch,
    echo: &[u8],
    peer: PeerIndex,
    tunnel: &Tunnel,
    peers: &mut Peers,
    now: Now,
) {
    let Some(sealer) = peers.sealer(peer, now) else {
        return peers.wait(peer, echo, now).unwrap_or_else(|reason| tunnel.counters.dropped(reason.by(peer)));
    };
    let mut framing = tunnel.seal(peer, sealer);
    let mut message = vec![0; framing.datagram_len(echo.len())];
    message[framing.room_before()..][..echo.len()].copy_from_slice(echo);
    framing.frame(&mut message, echo.len());
    put(replies, &message, framing.endpoint(), Some(peer));
}

fn lost(device: &dyn Device) -> impl FnOnce(io::Error) -> Lost {
    move |reason| Lost { device: device.capabilities().name.clone(), reason }
}
