//! What the host has sent and the lane has not: single packets pass super-packets of other flows.
//!
//! The TUN's queue is one for all flows, and a bulk transfer fills it with super-packets, milliseconds
//! of sealing. So a turn takes out of the queue what there is and carries as many super-packets as it
//! has time for; a single packet (a ping, a request, an acknowledgement) waits only for its own flow.

use overmesh_core::offload::merge::Flow;
use overmesh_core::wire::ip;
use overmesh_io::device::{Batch, Packet};

use crate::lane::BUDGET;

/// Packets that wait at most, and bytes; the rest waits in the kernel. What the processor's cache does not
/// hold is dear to come back to.
const WAITING: usize = 64;
const WAITING_BYTES: usize = 2 << 20;

/// The host's packets, in its order.
pub(crate) struct Backlog {
    packets: Batch,
    /// For each packet: whether it stays for a later turn.
    stays: Vec<bool>,
    /// The flows of those that stay; `None`: of neither TCP nor UDP.
    behind: Vec<Option<Flow>>,
}

impl Backlog {
    pub(crate) fn new() -> Self {
        Self {
            packets: Batch::with_budget(WAITING, ip::MAX_LEN, WAITING_BYTES),
            stays: Vec::with_capacity(WAITING),
            behind: Vec::with_capacity(WAITING),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Where further packets go.
    pub(crate) fn room(&mut self) -> &mut Batch {
        &mut self.packets
    }

    /// The packets of this turn, in the host's order. [`Self::forget`] them when they are carried.
    pub(crate) fn due(&mut self) -> impl Iterator<Item = &Packet> {
        self.choose();
        let both = self.packets.packets().iter().zip(&self.stays);
        both.filter(|(_, stays)| !**stays).map(|(packet, _)| packet)
    }

    /// Drops what was due.
    pub(crate) fn forget(&mut self) {
        let mut stays = self.stays.iter();
        self.packets.retain(|_| stays.next().is_some_and(|stays| *stays));
    }

    fn choose(&mut self) {
        let Self { packets, stays, behind } = self;
        let mut carried = 0;
        stays.clear();
        behind.clear();
        for packet in packets.packets() {
            let is_super = packet.offload.segments.is_some();
            let mut waits = false;
            if carried >= BUDGET {
                let flow = Flow::of(packet.bytes());
                waits = is_super || behind.contains(&flow);
                behind.extend(waits.then_some(flow));
            } else if is_super {
                carried += packet.len();
            }
            stays.push(waits);
        }
    }
}

#[cfg(test)]
mod tests {
    use overmesh_core::offload::virtio::{Header, Kind, Segments};

    use super::*;

    const SUPER: Header =
        Header { checksum: None, segments: Some(Segments { kind: Kind::Tcp4, size: 1000 }), headers_len: 40 };

    /// A TCP packet of a flow, `len` bytes after the IP header.
    fn packet(flow: u8, len: usize) -> Vec<u8> {
        let mut tcp = vec![0; len];
        tcp[1] = flow;
        let mut packet = ip::emit([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), &tcp);
        packet[9] = 6;
        packet
    }

    fn add(backlog: &mut Backlog, flow: u8, len: usize) {
        let slot = backlog.room().push(&packet(flow, len)).unwrap();
        slot.offload = if len > 1000 { SUPER } else { Header::default() };
    }

    /// Flow and length of each packet that is due.
    fn turn(backlog: &mut Backlog) -> Vec<(u8, usize)> {
        let due = backlog.due().map(|packet| (packet.bytes()[21], packet.len() - 20)).collect();
        backlog.forget();
        due
    }

    #[test]
    fn a_turn_carries_so_many_bytes_of_super_packets_and_all_single_ones() {
        let mut backlog = Backlog::new();
        for _ in 0..6 {
            add(&mut backlog, 1, 60_000);
        }
        add(&mut backlog, 2, 100);
        assert_eq!(turn(&mut backlog), [vec![(1, 60_000); 5], vec![(2, 100)]].concat());
        assert_eq!(turn(&mut backlog), [(1, 60_000)]);
        assert!(backlog.is_empty());
    }

    #[test]
    fn no_packet_passes_one_of_its_own_flow() {
        let mut backlog = Backlog::new();
        for _ in 0..5 {
            add(&mut backlog, 1, 60_000);
        }
        for (flow, len) in [(2, 50_000), (2, 10), (3, 10), (1, 20), (2, 30)] {
            add(&mut backlog, flow, len);
        }
        assert_eq!(turn(&mut backlog)[5..], [(3, 10), (1, 20)]);
        assert_eq!(turn(&mut backlog), [(2, 50_000), (2, 10), (2, 30)]);
    }

    #[test]
    fn what_arrives_later_waits_behind_what_stayed() {
        let mut backlog = Backlog::new();
        for _ in 0..10 {
            add(&mut backlog, 1, 60_000);
        }
        assert_eq!(turn(&mut backlog).len(), 5);
        add(&mut backlog, 1, 7);
        add(&mut backlog, 2, 8);
        assert_eq!(turn(&mut backlog), [vec![(1, 60_000); 5], vec![(1, 7), (2, 8)]].concat());
    }
}
