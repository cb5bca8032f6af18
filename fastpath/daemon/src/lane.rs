//! The loop that carries packets: read a batch, carry it to the end, flush. One thread, no queue.
//!
//! ```text
//! host ─ inner.recv ─ cut ─ tunnel.outbound ─ gather ─ outer.send ─ underlay
//! host ─ inner.send ─ deliver ─ tunnel.inbound ──────── outer.recv ─ underlay
//! ```
//!
//! Nothing here waits but for packets. Another thread rules the lane by commands (`command.rs`);
//! what a command replaces goes back to that thread, to be freed there.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;
use std::{io, mem};

use overmesh_core::drops::Dropped;
use overmesh_core::offload::cut::Cut;
use overmesh_core::peers::PeerIndex;
use overmesh_core::tunnel::{Content, Outbound, Tunnel};
use overmesh_core::wire::control;
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
    let lane = Lane {
        received: new_batch(&*inner, &*outer),
        inner,
        outer,
        tunnel,
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
            let ready = self.poller.wait().map_err(|reason| Lost { device: "epoll".into(), reason })?;
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
        let Self { inner, outer, tunnel, received, runs, .. } = self;
        received.clear();
        inner.recv(received).map_err(lost(&**inner))?;
        for packet in received.packets() {
            if let Ok((cut, outbound)) = judge(packet, tunnel) {
                runs.add(&cut, &outbound, &mut **outer, tunnel).map_err(lost(&**outer))?;
            }
        }
        runs.flush(&mut **outer, tunnel).map_err(lost(&**outer))
    }

    fn carry_inbound(&mut self) -> Result<(), Lost> {
        let Self { inner, outer, tunnel, received, deliveries, replies, probes, .. } = self;
        received.clear();
        outer.recv(received).map_err(lost(&**outer))?;
        let now = Instant::now();
        for run in received.packets_mut() {
            let from = run.address;
            for at in 0..run.datagram_count() {
                let datagram = run.datagram_mut(at);
                let Ok(inbound) = tunnel.inbound(datagram, from.ip(), now - self.clock) else { continue };
                if let Some(peer) = inbound.peer.filter(|_| inbound.first) {
                    let _ = self.events.send(Event::PeerHeard(tunnel.table.peer(peer).id.clone()));
                }
                match inbound.content {
                    Content::Packet(range) => deliveries
                        .add(&datagram[range], inbound.peer, &mut **inner, tunnel)
                        .map_err(lost(&**inner))?,
                    Content::Reply => put(replies, datagram, from, inbound.peer),
                    Content::Answer(token) => {
                        if let Err(reason) = probes.answered(token, from.ip(), now, &tunnel.table) {
                            tunnel.counters.dropped(reason.by(inbound.peer));
                        }
                    }
                }
            }
        }
        deliveries.flush(&mut **inner, tunnel).map_err(lost(&**inner))?;
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
        let replaced = self
            .replace_devices(devices)
            .map(|devices| Replaced { devices, tunnel: mem::replace(&mut self.tunnel, tunnel) });
        let _ = done.send(replaced);
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
        let echo = control::emit_request(self.tunnel.table.network_number(), probe.token, probe.size);
        put(&mut self.replies, &echo, probe.endpoint, self.tunnel.table.index_of(&probe.peer));
        self.probes.begin(probe, Instant::now());
        self.flush_replies()
    }
}

/// How a packet of the host is cut and whom it goes to; what goes nowhere is counted.
fn judge<'a>(packet: &'a Packet, tunnel: &Tunnel) -> Result<(Cut<'a>, Outbound), Dropped> {
    let cut = Cut::new(packet.bytes(), packet.offload).map_err(|reason| reason.by(None));
    let cut = cut.inspect_err(|dropped| tunnel.counters.dropped(*dropped))?;
    let outbound = tunnel.outbound(cut.packet(), cut.len(0))?;
    Ok((cut, outbound))
}

fn put(replies: &mut Batch, echo: &[u8], to: SocketAddr, peer: Option<PeerIndex>) {
    if let Some(packet) = replies.push(echo) {
        packet.address = to;
        packet.owner = peer;
    }
}

fn lost(device: &dyn Device) -> impl FnOnce(io::Error) -> Lost {
    move |reason| Lost { device: device.capabilities().name.clone(), reason }
}
