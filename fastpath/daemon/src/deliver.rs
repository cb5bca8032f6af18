//! The way in: packets for the host, those of one flow merged where the host takes that.

use std::io;

use overmesh_core::counters::Load;
use overmesh_core::offload::merge::{Flow, Merged, Segment};
use overmesh_core::peers::PeerIndex;
use overmesh_core::tunnel::Tunnel;
use overmesh_core::wire::ip;
use overmesh_io::device::{Batch, Device};

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
        Self { batch: Batch::new(PACKETS, ip::MAX_LEN), open: Vec::with_capacity(FLOWS) }
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

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::sync::Arc;

    use overmesh_core::offload::cut::Cut;
    use overmesh_core::offload::virtio::{Header, Kind, Partial, Segments};
    use overmesh_core::peers::Table;
    use overmesh_io::device::Capabilities;

    use super::*;

    /// A host that writes down what it gets, and of how many packets each was merged.
    struct Host {
        capabilities: Capabilities,
        got: Vec<(Vec<u8>, Header, u64)>,
    }

    impl Host {
        fn new(takes_udp: bool) -> Self {
            let capabilities = Capabilities { takes_udp, ..Capabilities::plain("host", ip::MAX_LEN) };
            Self { capabilities, got: vec![] }
        }
    }

    impl Device for Host {
        fn capabilities(&self) -> &Capabilities {
            &self.capabilities
        }

        fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
            vec![]
        }

        fn recv(&mut self, _: &mut Batch) -> io::Result<()> {
            Ok(())
        }

        fn send(&mut self, batch: &mut Batch) -> io::Result<()> {
            let copy = |packet: &overmesh_io::device::Packet| {
                (packet.bytes().to_vec(), packet.offload, packet.load.packets)
            };
            self.got.extend(batch.packets().iter().map(copy));
            Ok(())
        }
    }

    /// Datagrams of 1200 bytes from this port, each of them filled with its number.
    fn datagrams(port: u8, count: u8) -> Vec<Vec<u8>> {
        let payload: Vec<_> = (0..count).flat_map(|number| [number; 1200]).collect();
        let len = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
        let udp = [&[1, port, 0, 53], &len[..], &[0, 0], &payload].concat();
        let mut packet = ip::emit([10, 0, 0, 2].into(), [10, 0, 0, 1].into(), &udp);
        packet[9] = 17;
        let checksum = Some(Partial { start: 20, offset: 6 });
        let segments = Some(Segments { kind: Kind::Udp, size: 1200 });
        let cut = Cut::new(&packet, Header { checksum, segments, headers_len: 28 }).unwrap();
        let segment = |at| {
            let mut segment = vec![0; cut.len(at)];
            cut.write(at, &mut segment);
            segment
        };
        (0..cut.count()).map(segment).collect()
    }

    fn deliver(packets: &[Vec<u8>], takes_udp: bool) -> Vec<(Vec<u8>, Header, u64)> {
        let mut host = Host::new(takes_udp);
        let tunnel = Tunnel::new(Arc::new(Table::new(1, 1420, None, &[]).unwrap()), None);
        let mut deliveries = Deliveries::new();
        for packet in packets {
            deliveries.add(packet, None, &mut host, &tunnel).unwrap();
        }
        deliveries.flush(&mut host, &tunnel).unwrap();
        host.got
    }

    fn counts(packets: &[Vec<u8>]) -> Vec<u64> {
        deliver(packets, true).iter().map(|(_, _, count)| *count).collect()
    }

    #[test]
    fn flows_are_merged_side_by_side() {
        let (one, other) = (datagrams(1, 5), datagrams(2, 3));
        let mixed = [&one[..2], &other[..1], &one[2..], &other[1..]].concat();
        let got = deliver(&mixed, true);
        assert_eq!(got.iter().map(|(_, _, count)| *count).collect::<Vec<_>>(), [5, 3]);
        let (packet, header, _) = &got[0];
        let cut = Cut::new(packet, *header).unwrap();
        for (at, datagram) in one.iter().enumerate() {
            let mut again = vec![0; cut.len(at)];
            cut.write(at, &mut again);
            assert_eq!(again[20..], datagram[20..]);
        }
    }

    #[test]
    fn a_packet_that_cannot_be_merged_is_not_overtaken_by_its_flow() {
        let large = datagrams(1, 4);
        let mut small = ip::emit([10, 0, 0, 2].into(), [10, 0, 0, 1].into(), &[1, 1, 0, 53, 0, 9, 0, 0, 7]);
        small[9] = 17;
        let mixed = [&large[..2], &[small], &datagrams(2, 2), &large[2..]].concat();
        assert_eq!(counts(&mixed), [2, 1, 2, 2]);
    }

    #[test]
    fn more_flows_than_can_be_open_and_more_packets_than_there_is_room_for() {
        let flows: Vec<_> = (0..12).map(|port| datagrams(port, 10)).collect();
        let mixed: Vec<_> = (0..10).flat_map(|at| flows.iter().map(move |flow| flow[at].clone())).collect();
        assert_eq!(counts(&mixed).iter().sum::<u64>(), 120);
        let one_after_the_other = flows.concat();
        assert_eq!(counts(&one_after_the_other), [10; 12]);
    }

    #[test]
    fn a_host_without_offloads_gets_packets_as_they_came() {
        let packets = [datagrams(1, 50), datagrams(1, 50)].concat();
        let got: Vec<_> = deliver(&packets, false).into_iter().map(|(bytes, ..)| bytes).collect();
        assert_eq!(got, packets);
    }
}
