//! The loop that carries packets: read a batch, carry it to the end, flush. One thread, no queue.
//!
//! ```text
//! host ─ inner.recv ─ tunnel.outbound ─ outer.send ─ underlay
//! host ─ inner.send ─ tunnel.inbound  ─ outer.recv ─ underlay
//! ```
//!
//! Nothing here waits but for packets. Another thread rules the lane by commands (`command.rs`);
//! what a command replaces goes back to that thread, to be freed there.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;
use std::{io, mem};

use overmesh_core::tunnel::{Content, Tunnel};
use overmesh_core::wire::{control, geneve};
use overmesh_io::device::{Batch, Device, Packet};
use overmesh_io::poll::{Poller, Waker};
use tokio::sync::broadcast;

use crate::command::{Command, Devices, Event, Install, LaneHandle, Replaced};
use crate::probe::{Probe, Probes};

/// Packets a turn and direction: enough to spread the cost of a wake-up, few enough that the other
/// direction is not kept waiting.
const BATCH: usize = 64;

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
    let batch = new_batch(&*inner, &*outer);
    let replies = new_batch(&*inner, &*outer);
    let probes = Probes::default();
    let lane = Lane { inner, outer, tunnel, batch, replies, probes, poller, waker, commands, events, clock };
    let thread = Builder::new().name("lane-0".into()).spawn(move || lane.run())?;
    Ok((handle, thread))
}

fn new_batch(inner: &dyn Device, outer: &dyn Device) -> Batch {
    Batch::new(BATCH, inner.capabilities().max_packet.max(outer.capabilities().max_packet))
}

struct Lane {
    inner: Box<dyn Device>,
    outer: Box<dyn Device>,
    tunnel: Arc<Tunnel>,
    batch: Batch,
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
        let Self { inner, outer, tunnel, batch, .. } = self;
        batch.clear();
        inner.recv(batch).map_err(lost(&**inner))?;
        batch.retain(|packet| match tunnel.outbound(packet.bytes()) {
            Ok(outbound) => {
                packet.prepend(&outbound.header);
                packet.address = outbound.endpoint;
                packet.owner = Some(outbound.peer);
                true
            }
            Err(_counted) => false,
        });
        outer.send(batch).map_err(lost(&**outer))?;
        for packet in batch.packets() {
            tunnel.sent(packet.owner, packet.len() - geneve::HEADER_LEN, packet.refused);
        }
        Ok(())
    }

    fn carry_inbound(&mut self) -> Result<(), Lost> {
        let Self { inner, outer, tunnel, batch, replies, probes, .. } = self;
        batch.clear();
        outer.recv(batch).map_err(lost(&**outer))?;
        let now = Instant::now();
        batch.retain(|packet| {
            let underlay = packet.address.ip();
            let Ok(inbound) = tunnel.inbound(packet.bytes_mut(), underlay, now - self.clock) else {
                return false;
            };
            if let Some(peer) = inbound.peer.filter(|_| inbound.first) {
                let _ = self.events.send(Event::PeerHeard(tunnel.table.peer(peer).id.clone()));
            }
            packet.owner = inbound.peer;
            match inbound.content {
                Content::Packet(range) => {
                    packet.trim(range);
                    return true;
                }
                Content::Reply => send_back(packet, replies),
                Content::Answer(token) => {
                    if let Err(reason) = probes.answered(token, underlay, now, &tunnel.table) {
                        tunnel.counters.dropped(reason.by(inbound.peer));
                    }
                }
            }
            false
        });
        inner.send(batch).map_err(lost(&**inner))?;
        for packet in batch.packets() {
            tunnel.delivered(packet.owner, packet.len(), packet.refused);
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
            self.batch = new_batch(&*self.inner, &*self.outer);
            self.replies = new_batch(&*self.inner, &*self.outer);
        }
        Ok(replaced)
    }

    fn probe(&mut self, probe: Probe) -> Result<(), Lost> {
        let echo = control::emit_request(self.tunnel.table.network_number(), probe.token, probe.size);
        if let Some(packet) = self.replies.push(&echo) {
            packet.address = probe.endpoint;
            packet.owner = self.tunnel.table.index_of(&probe.peer);
        }
        self.probes.begin(probe, Instant::now());
        self.flush_replies()
    }
}

/// Echoes are few: a copy is simpler than to trade slots.
fn send_back(request: &Packet, replies: &mut Batch) {
    if let Some(reply) = replies.push(request.bytes()) {
        reply.address = request.address;
        reply.owner = request.owner;
    }
}

fn lost(device: &dyn Device) -> impl FnOnce(io::Error) -> Lost {
    move |reason| Lost { device: device.capabilities().name.clone(), reason }
}
