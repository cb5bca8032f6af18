//! The way in: packets for the host, those of one flow merged where the host takes that.

use std::io;

use overmesh_core::counters::Load;
use overmesh_core::offload::merge::{Flow, Merged, Segment};
use overmesh_core::peers::PeerIndex;
use overmesh_core::tunnel::Tunnel;
use overmesh_io::device::{Batch, Device};

/// An IP packet cannot be larger.
const MAX_PACKET: usize = 65_535;
/// Packets that wait for the end of a turn.
const PACKETS: usize = 64;
/// Flows that are merged at a time; with more, the one begun first is closed.
const FLOWS: usize = 8;

/// The packets of a turn, in the order in which the host gets them.
pub(crate) struct Deliveries {
    batch: Batch,
    open: Vec<Open>,
}

/// A packet that still grows.
struct Open {
    flow: Flow,
    slot: usize,
    merged: Merged,
}

impl Deliveries {
    pub(crate) fn new() -> Self {
        Self { batch: Batch::new(PACKETS, MAX_PACKET), open: Vec::with_capacity(FLOWS) }
    }

    /// Takes a packet from `owner`. Delivers when there is no room for more.
    pub(crate) fn add(
        &mut self,
        packet: &[u8],
        owner: Option<PeerIndex>,
        inner: &mut dyn Device,
        tunnel: &Tunnel,
    ) -> io::Result<()> {
        if self.batch.vacant().is_empty() {
            self.flush(inner, tunnel)?;
        }
        let offloads = inner.capabilities();
        match Flow::of(packet).filter(|_| offloads.takes_tcp || offloads.takes_udp) {
            Some(flow) => {
                let segment = Segment::parse(packet)
                    .filter(|segment| if segment.is_tcp() { offloads.takes_tcp } else { offloads.takes_udp });
                self.merge(packet, owner, flow, segment);
            }
            None => drop(self.push(packet, owner)),
        }
        Ok(())
    }

    /// Delivers what is there and counts it.
    pub(crate) fn flush(&mut self, inner: &mut dyn Device, tunnel: &Tunnel) -> io::Result<()> {
        while !self.open.is_empty() {
            self.close(0);
        }
        inner.send(&mut self.batch)?;
        for packet in self.batch.packets() {
            tunnel.delivered(packet.owner, packet.load, packet.refused);
        }
        self.batch.clear();
        Ok(())
    }

    /// Puts the packet where its flow goes on, or else closes that: no packet of a flow overtakes
    /// another.
    fn merge(&mut self, packet: &[u8], owner: Option<PeerIndex>, flow: Flow, segment: Option<Segment>) {
        let at = self.open.iter().position(|open| open.flow == flow);
        if let (Some(at), Some(segment)) = (at, segment)
            && self.append(at, packet, &segment)
        {
            return;
        }
        if let Some(at) = at {
            self.close(at);
        }
        let slot = self.push(packet, owner);
        if let (Some(slot), Some(segment)) = (slot, segment) {
            if self.open.len() == FLOWS {
                self.close(0);
            }
            self.open.push(Open { flow, slot, merged: Merged::new(segment) });
        }
    }

    fn append(&mut self, at: usize, packet: &[u8], segment: &Segment) -> bool {
        let Open { slot, merged, .. } = &mut self.open[at];
        let growing = &mut self.batch.packets_mut()[*slot];
        let takes = merged.take(growing.bytes(), packet, segment);
        if takes {
            let payload = &packet[segment.payload()..];
            growing.extend(payload.len()).copy_from_slice(payload);
            growing.load.add(packet.len());
        }
        takes
    }

    fn close(&mut self, at: usize) {
        let Open { slot, merged, .. } = self.open.remove(at);
        let packet = &mut self.batch.packets_mut()[slot];
        packet.offload = merged.finish(packet.bytes_mut());
    }

    fn push(&mut self, packet: &[u8], owner: Option<PeerIndex>) -> Option<usize> {
        let copy = self.batch.push(packet)?;
        copy.owner = owner;
        copy.load = Load::of_one(packet.len());
        Some(self.batch.packets().len() - 1)
    }
}
