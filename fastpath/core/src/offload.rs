//! Super-packets: what the kernel leaves to a TUN device that says it segments and checksums, and
//! what it takes back in one piece.
//!
//! ```text
//! out  virtio header + packet of up to 64 KiB ─ cut ─ packets of at most the MTU, checksums complete
//! in   packets in order, checksums verified ─ merge ─ virtio header + one packet
//! ```
//!
//! One walk through the kernel's stack costs about the same for a packet of 1400 bytes as for one
//! of 64 KiB; this is where most of the speed comes from.

pub(crate) mod checksum;
pub mod cut;
pub mod merge;
mod transport;
pub mod virtio;

#[cfg(test)]
pub(crate) mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::checksum::tests::naive;
    use super::cut::Cut;
    use super::merge::{Flow, Merged, Segment};
    use super::virtio::{Header, Kind, Partial, Segments};
    use crate::drops::DropReason;
    use crate::wire::ip;

    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const FIN: u8 = 1;
    const PSH: u8 = 8;
    const ACK: u8 = 16;
    const CWR: u8 = 128;

    fn ends(v4: bool) -> [IpAddr; 2] {
        let texts = if v4 { ["10.77.0.1", "10.77.0.2"] } else { ["fd00::1", "fd00::2"] };
        texts.map(|text| text.parse().unwrap())
    }

    fn ip_len(packet: &[u8]) -> usize {
        if packet[0] == 0x45 { 20 } else { 40 }
    }

    fn protocol(packet: &[u8]) -> u8 {
        packet[if packet[0] == 0x45 { 9 } else { 6 }]
    }

    fn pseudo(packet: &[u8]) -> Vec<u8> {
        let at = ip_len(packet);
        let addresses = if at == 20 { 12..20 } else { 8..40 };
        let length = u32::try_from(packet.len() - at).unwrap().to_be_bytes();
        [&packet[addresses], &[0, protocol(packet)], &length].concat()
    }

    /// One's complement sum of pseudo-header and transport, by the book.
    fn transport_sum(packet: &[u8]) -> u16 {
        naive(&[pseudo(packet), packet[ip_len(packet)..].to_vec()].concat())
    }

    fn intact(packet: &[u8]) -> bool {
        transport_sum(packet) == 0xffff && (packet[0] != 0x45 || naive(&packet[..20]) == 0xffff)
    }

    /// A packet with right checksums; with a timestamp option where it is TCP.
    pub(crate) fn packet(v4: bool, tcp: Option<(u32, u8)>, payload: &[u8]) -> Vec<u8> {
        let transport = if let Some((sequence, flags)) = tcp {
            let options = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
            let rest = [0x80, flags, 1, 0, 0, 0, 0, 0];
            [&[0, 80, 200, 1], &sequence.to_be_bytes()[..], &[0, 0, 0, 9], &rest, &options].concat()
        } else {
            let len = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
            [&[0, 53, 200, 1], &len[..], &[0, 0]].concat()
        };
        let [source, destination] = ends(v4);
        let mut packet = ip::emit(source, destination, &[&transport, payload].concat());
        let (protocol, checksum) = if tcp.is_some() { (TCP, 16) } else { (UDP, 6) };
        packet[if v4 { 9 } else { 6 }] = protocol;
        if v4 {
            packet[4..7].copy_from_slice(&[0xff, 0xfe, 0x40]);
            let sum = !naive(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let at = ip_len(&packet) + checksum;
        let sum = match !transport_sum(&packet) {
            0 => 0xffff,
            sum => sum,
        };
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// The same as a host leaves it to be cut into segments of `size`.
    pub(crate) fn super_packet(
        v4: bool,
        tcp: Option<(u32, u8)>,
        payload: &[u8],
        size: u16,
    ) -> (Vec<u8>, Header) {
        let mut packet = packet(v4, tcp, payload);
        let (start, offset) = (ip_len(&packet), if tcp.is_some() { 16 } else { 6 });
        let headers = start + if tcp.is_some() { 32 } else { 8 };
        let at = start + offset;
        packet[at..at + 2].fill(0);
        let partial = naive(&pseudo(&packet));
        packet[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        let kind = match (tcp, v4) {
            (None, _) => Kind::Udp,
            (_, true) => Kind::Tcp4,
            (_, false) => Kind::Tcp6,
        };
        let word = |len| u16::try_from(len).unwrap();
        let checksum = Some(Partial { start: word(start), offset: word(offset) });
        (packet, Header { checksum, segments: Some(Segments { kind, size }), headers_len: word(headers) })
    }

    fn segments(packet: &[u8], header: Header) -> Vec<Vec<u8>> {
        let cut = Cut::new(packet, header).unwrap();
        let segment = |at| {
            let mut segment = vec![0xaa; cut.len(at)];
            cut.write(at, &mut segment);
            segment
        };
        (0..cut.count()).map(segment).collect()
    }

    /// All packets merged into as few as they allow.
    fn merge(packets: &[Vec<u8>]) -> Vec<(Vec<u8>, Header)> {
        let mut done = vec![];
        let mut open: Option<(Vec<u8>, Merged)> = None;
        let finished = |(mut bytes, merged): (Vec<u8>, Merged)| {
            let header = merged.finish(&mut bytes);
            (bytes, header)
        };
        for packet in packets {
            let segment = Segment::parse(packet).expect("it may be merged");
            if let Some((bytes, merged)) = &mut open
                && merged.take(bytes, packet, &segment)
            {
                bytes.extend(&packet[segment.payload()..]);
            } else {
                done.extend(open.replace((packet.clone(), Merged::new(segment))).map(finished));
            }
        }
        done.extend(open.map(finished));
        done
    }

    fn payloads() -> impl Strategy<Value = (Vec<u8>, u16)> {
        (prop::collection::vec(any::<u8>(), 1..20_000), 1000..1500_u16)
    }

    /// The segments that a packet is cut to which has to fit `most` bytes.
    fn shrunk(packet: &[u8], header: Header, most: usize) -> Option<Vec<Vec<u8>>> {
        let cut = Cut::new(packet, header).unwrap().shrink(most)?;
        let segment = |at| {
            let mut segment = vec![0xaa; cut.len(at)];
            cut.write(at, &mut segment);
            segment
        };
        Some((0..cut.count()).map(segment).collect())
    }

    #[test]
    fn only_whole_tcp_segments_with_data_are_cut_smaller() {
        let single = |packet: &[u8]| shrunk(packet, Header::default(), 576);
        let good = packet(true, Some((1, ACK)), &[7; 1000]);
        assert!(single(&good).is_some());
        for flags in [2, 4 | ACK, 32 | ACK] {
            assert!(single(&packet(true, Some((1, flags)), &[7; 1000])).is_none(), "flags {flags:#x}");
        }
        assert!(single(&packet(true, None, &[7; 1000])).is_none(), "a UDP datagram");
        let (datagrams, header) = super_packet(false, None, &[7; 3000], 1000);
        assert!(shrunk(&datagrams, header, 576).is_none(), "UDP datagrams");
        let mut fragment = good.clone();
        fragment[6] |= 0x20;
        assert!(single(&fragment).is_none(), "a fragment");
        let mut spoilt = good;
        spoilt[100] ^= 1;
        assert!(single(&spoilt).is_none(), "what was spoilt is not made whole");
    }

    proptest! {
        #[test]
        fn tcp_is_cut_to_what_a_path_takes((payload, size) in payloads(), most in 576..1500_usize, v4: bool, sequence: u32) {
            let fields = Some((sequence, ACK | PSH));
            let (whole, header) = super_packet(v4, fields, &payload, size);
            let partial = packet(v4, fields, &payload[..payload.len().min(1400)]);
            let headers = usize::from(header.headers_len);
            for (whole, header) in [(whole, header), (partial, Header::default())] {
                let segments = shrunk(&whole, header, most).unwrap();
                let mut carried = vec![];
                for segment in &segments {
                    prop_assert!(intact(segment) && segment.len() <= most);
                    let expected = sequence.wrapping_add(u32::try_from(carried.len()).unwrap());
                    let at = ip_len(segment);
                    prop_assert_eq!(&segment[at + 4..at + 8], expected.to_be_bytes());
                    carried.extend_from_slice(&segment[headers..]);
                }
                prop_assert_eq!(&carried, &whole[headers..]);
                prop_assert_eq!(segments.len(), carried.len().div_ceil(most - headers));
            }
        }

        #[test]
        fn segments_are_whole_and_intact((payload, size) in payloads(), v4: bool, tcp: bool, sequence: u32) {
            let fields = tcp.then_some((sequence, ACK | PSH | FIN | CWR));
            let (packet, header) = super_packet(v4, fields, &payload, size);
            let segments = segments(&packet, header);
            prop_assert_eq!(segments.len(), payload.len().div_ceil(size.into()));
            let headers = usize::from(header.headers_len);
            let at = ip_len(&packet);
            let mut carried: Vec<u8> = vec![];
            for (number, segment) in segments.iter().enumerate() {
                prop_assert!(intact(segment));
                prop_assert_eq!(ip::Packet::new_checked(segment).unwrap().total_len(), segment.len());
                let last = number + 1 == segments.len();
                if v4 {
                    let id = u16::from_be_bytes([segment[4], segment[5]]);
                    prop_assert_eq!(id, 0xfffe_u16.wrapping_add(u16::try_from(number).unwrap()));
                }
                if tcp {
                    let expected = sequence.wrapping_add(u32::try_from(carried.len()).unwrap());
                    prop_assert_eq!(&segment[at + 4..at + 8], expected.to_be_bytes());
                    let flags = segment[at + 13];
                    prop_assert_eq!(flags & CWR != 0, number == 0);
                    prop_assert_eq!(flags & (PSH | FIN), if last { PSH | FIN } else { 0 });
                } else {
                    let len = u16::try_from(segment.len() - at).unwrap();
                    prop_assert_eq!(&segment[at + 4..at + 6], len.to_be_bytes());
                    prop_assert!(segment[at + 6..at + 8] != [0, 0]);
                }
                carried.extend(&segment[headers..]);
            }
            prop_assert_eq!(carried, payload);
        }

        #[test]
        fn what_is_cut_can_be_merged_again((payload, size) in payloads(), v4: bool, tcp: bool, push: bool) {
            let fields = tcp.then_some((u32::MAX - 5000, if push { ACK | PSH } else { ACK }));
            let (packet, header) = super_packet(v4, fields, &payload, size);
            let segments = segments(&packet, header);
            prop_assume!(segments.len() > 1);
            prop_assert_eq!(merge(&segments), [(packet, header)]);
        }

        #[test]
        fn a_partial_checksum_is_completed(payload: Vec<u8>, v4: bool, tcp: bool) {
            let fields = tcp.then_some((1, ACK));
            let whole = packet(v4, fields, &payload);
            let (partial, header) = super_packet(v4, fields, &payload, 1);
            let header = Header { segments: None, ..header };
            prop_assert_eq!(segments(&partial, header), [whole]);
        }

        #[test]
        fn one_wrong_bit_keeps_a_packet_alone(bit in 0..8 * 1052_usize, v4: bool, tcp: bool) {
            let mut packet = packet(v4, tcp.then_some((1, ACK)), &[7; 1000]);
            let bit = bit % (8 * packet.len());
            // The hop limit and traffic class of IPv6 have no checksum.
            prop_assume!(v4 || bit / 8 >= 8 || bit / 8 == 6);
            packet[bit / 8] ^= 1 << (bit % 8);
            let whole = ip::Packet::new_checked(&packet).is_ok_and(|it| it.total_len() == packet.len());
            prop_assert!(!whole || Segment::parse(&packet).is_none());
        }
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_the_other_zero() {
        for last in 0..=u16::MAX {
            let (partial, header) = super_packet(true, None, &last.to_be_bytes(), 1);
            let segment = segments(&partial, Header { segments: None, ..header }).remove(0);
            if segment[26..28] == [0xff, 0xff] {
                return assert!(intact(&segment));
            }
        }
        panic!("one of all payloads has that checksum");
    }

    #[test]
    fn a_gap_a_change_or_a_push_ends_a_run() {
        let segment = |sequence, flags| packet(true, Some((sequence, flags)), &[1; 100]);
        let merged = |packets: &[Vec<u8>]| merge(packets).len();
        assert_eq!(merged(&[segment(0, ACK), segment(100, ACK), segment(200, ACK)]), 1);
        assert_eq!(merged(&[segment(0, ACK), segment(200, ACK)]), 2);
        assert_eq!(merged(&[segment(100, ACK), segment(0, ACK)]), 2);
        assert_eq!(merged(&[segment(0, ACK | PSH), segment(100, ACK)]), 2);
        let short = packet(true, Some((100, ACK)), &[1; 99]);
        assert_eq!(merged(&[segment(0, ACK), short.clone(), segment(199, ACK)]), 2);
        assert_eq!(merged(&[short, packet(true, Some((199, ACK)), &[1; 100])]), 2);
    }

    #[test]
    fn datagrams_are_merged_up_to_as_many_as_the_kernel_takes() {
        let merged = merge(&vec![packet(true, None, &[1; 64]); 130]);
        let payloads = merged.iter().map(|(packet, _)| packet.len() - 28);
        assert_eq!(payloads.collect::<Vec<_>>(), [64 * 64, 64 * 64, 2 * 64]);
    }

    #[test]
    fn what_the_host_must_see_by_itself_stays_alone() {
        let tcp = |flags, payload: &[u8]| Segment::parse(&packet(true, Some((1, flags)), payload));
        assert!(tcp(ACK, b"x").is_some() && tcp(ACK | PSH, b"x").is_some());
        assert!(tcp(ACK, b"").is_none(), "an acknowledgement alone");
        for flags in [0, FIN | ACK, 2, 4 | ACK, 32 | ACK, 64 | ACK, CWR | ACK] {
            assert!(tcp(flags, b"x").is_none(), "flags {flags:#x}");
        }
        assert!(Segment::parse(&packet(true, None, b"")).is_none(), "nothing to merge");
        assert!(Segment::parse(&packet(true, None, b"x")).is_some());
    }

    #[test]
    fn flows_are_told_apart_by_addresses_ports_and_protocol() {
        let tcp = packet(true, Some((1, ACK)), b"x");
        let mut other = tcp.clone();
        other[23] ^= 1;
        assert_ne!(Flow::of(&tcp), Flow::of(&other));
        assert_ne!(Flow::of(&tcp), Flow::of(&packet(false, Some((1, ACK)), b"x")));
        assert_eq!(Flow::of(&tcp), Flow::of(&packet(true, Some((7, ACK | FIN)), b"")));
        let [source, destination] = ends(true);
        assert_eq!(Flow::of(&ip::emit(source, destination, b"neither")), None);
    }

    #[test]
    fn orders_that_make_no_sense_are_malformed() {
        let (packet, header) = super_packet(true, Some((1, ACK)), &[0; 3000], 1000);
        let refused = |header| Cut::new(&packet, header).unwrap_err();
        let with = |start, offset| Header { checksum: Some(Partial { start, offset }), ..header };
        for header in [
            Header { checksum: None, ..header },
            with(21, 16),
            with(20, 6),
            Header { segments: Some(Segments { kind: Kind::Tcp6, size: 1000 }), ..header },
            Header { segments: None, ..with(3040, 16) },
            Header { segments: None, ..with(u16::MAX, u16::MAX) },
        ] {
            assert_eq!(refused(header), DropReason::InnerMalformed);
        }
    }
}
