//! Merges packets of one flow that came in order into one for the host to take in one piece: what
//! GRO is to a network card.
//!
//! Whoever holds the packets asks [`Flow::of`] and [`Segment::parse`] for each, keeps one [`Merged`]
//! for each flow that has one open, and puts the payload of what it takes behind the others.

use super::checksum::Sum;
use super::transport::{
    ACK, PORTS, PSH, TCP, TCP_CHECKSUM, TCP_DATA_OFFSET, TCP_FLAGS, TCP_HEADER_LEN, UDP, UDP_CHECKSUM,
    UDP_HEADER_LEN, UDP_LEN, V4_DONT_FRAGMENT, V4_FRAGMENT, V4_ID, V4_PROTOCOL, V6_NEXT_HEADER, addresses,
    is_v4, pseudo, put_len, sequence, set_len, tcp_header_len, v4_header_len,
};
use super::virtio::{Header, Kind, Partial, Segments};
use crate::wire::field;
use crate::wire::ip::{MAX_LEN, V4_HEADER_LEN, V6_HEADER_LEN};

/// Datagrams in a super-packet: the kernel refuses more than its `UDP_MAX_SEGMENTS`, which was 64 before it was
/// raised.
const MAX_DATAGRAMS: u16 = 64;

const MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff;

/// Addresses, ports and protocol. Packets of one flow must not overtake each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow([u8; 37]);

impl Flow {
    /// The flow of a whole IP packet; `None` unless it is TCP or UDP with its ports in it.
    #[must_use]
    pub fn of(packet: &[u8]) -> Option<Self> {
        let (protocol, transport) = transport_of(packet)?;
        let ports = packet.get(transport..)?.get(PORTS)?;
        let mut flow = [0; 37];
        flow[0] = protocol;
        flow[1..5].copy_from_slice(ports);
        let addresses = addresses(packet);
        flow[5..5 + addresses.len()].copy_from_slice(addresses);
        Some(Self(flow))
    }
}

/// Protocol and place of the transport header.
fn transport_of(packet: &[u8]) -> Option<(u8, usize)> {
    let (protocol, transport) = if is_v4(packet) {
        (packet[V4_PROTOCOL], v4_header_len(packet))
    } else {
        (packet[V6_NEXT_HEADER], V6_HEADER_LEN)
    };
    [TCP, UDP].contains(&protocol).then_some((protocol, transport))
}

/// A packet that may be merged with its neighbours; what matters of it for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    protocol: u8,
    transport: usize,
    payload: usize,
    len: usize,
    sequence: u32,
    push: bool,
}

impl Segment {
    /// Looks at a whole IP packet. `None` if it has to stay alone: it is no plain segment with
    /// payload of an established TCP stream and no UDP datagram with payload, or its checksums are wrong.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let (protocol, transport) = transport_of(packet)?;
        if is_v4(packet) && !is_plain_v4(packet) {
            return None;
        }
        let bytes = &packet[transport..];
        let header_len = if protocol == TCP { plain_tcp(bytes)? } else { plain_udp(bytes)? };
        let segment = Self {
            protocol,
            transport,
            payload: transport + header_len,
            len: packet.len(),
            sequence: if protocol == TCP { sequence(bytes) } else { 0 },
            push: protocol == TCP && bytes[TCP_FLAGS] & PSH != 0,
        };
        pseudo(packet, protocol, transport).add(bytes).is_intact().then_some(segment)
    }

    /// Where in the packet its payload begins.
    #[must_use]
    pub fn payload(&self) -> usize {
        self.payload
    }

    /// Whether it is TCP; else it is UDP.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        self.protocol == TCP
    }

    fn payload_len(&self) -> usize {
        self.len - self.payload
    }
}

/// No options, no fragment, and a header that arrived as it was sent.
fn is_plain_v4(packet: &[u8]) -> bool {
    v4_header_len(packet) == V4_HEADER_LEN
        && u16::from_be_bytes(field(packet, V4_FRAGMENT)) & MORE_FRAGMENTS_OR_OFFSET == 0
        && Sum::default().add(&packet[..V4_HEADER_LEN]).is_intact()
}

/// The header's length, if there is payload and no flag that the host must see on its own.
fn plain_tcp(bytes: &[u8]) -> Option<usize> {
    let header_len = tcp_header_len(bytes.get(..TCP_HEADER_LEN)?);
    let plain = bytes[TCP_FLAGS] & !PSH == ACK;
    (plain && header_len >= TCP_HEADER_LEN && bytes.len() > header_len).then_some(header_len)
}

fn plain_udp(bytes: &[u8]) -> Option<usize> {
    let has_payload = bytes.len() > UDP_HEADER_LEN;
    let whole = has_payload && usize::from(u16::from_be_bytes(field(bytes, UDP_LEN))) == bytes.len();
    let has_checksum = whole && field(bytes, UDP_CHECKSUM..UDP_CHECKSUM + 2) != [0, 0];
    has_checksum.then_some(UDP_HEADER_LEN)
}

/// A super-packet that grows: the first packet, with the payloads of those after it behind it.
#[derive(Debug, Clone, Copy)]
pub struct Merged {
    first: Segment,
    len: usize,
    count: u16,
    next_sequence: u32,
    push: bool,
    complete: bool,
}

impl Merged {
    /// Begins with a packet.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "a packet has less than 64 KiB")]
    pub fn new(first: Segment) -> Self {
        let next_sequence = first.sequence.wrapping_add(first.payload_len() as u32);
        let Segment { len, push, .. } = first;
        Self { first, len, count: 1, next_sequence, push, complete: push }
    }

    /// Whether `packet`, parsed as `segment`, goes on where `merged`, the bytes so far, ends. If so,
    /// the caller puts its payload there.
    #[allow(clippy::cast_possible_truncation, reason = "a packet has less than 64 KiB")]
    pub fn take(&mut self, merged: &[u8], packet: &[u8], segment: &Segment) -> bool {
        let len = segment.payload_len();
        let size = self.first.payload_len();
        let takes = !self.complete
            && self.len + len <= MAX_LEN
            && len <= size
            && self.is_next(segment)
            && self.continues(merged, packet, segment);
        if takes {
            self.len += len;
            self.count += 1;
            self.next_sequence = self.next_sequence.wrapping_add(len as u32);
            self.push |= segment.push;
            // Only the last may be shorter, and PSH asks to be delivered now.
            self.complete = len < size || segment.push;
        }
        takes
    }

    fn is_next(&self, segment: &Segment) -> bool {
        match segment.protocol {
            UDP => self.count < MAX_DATAGRAMS,
            _ => segment.sequence == self.next_sequence,
        }
    }

    /// Whether the headers say the same but for what differs from one segment to the next.
    fn continues(&self, merged: &[u8], packet: &[u8], segment: &Segment) -> bool {
        if segment.transport != self.first.transport || segment.payload != self.first.payload {
            return false;
        }
        let same = |range: std::ops::Range<usize>| merged[range.clone()] == packet[range];
        let at = segment.transport;
        let network = if is_v4(packet) {
            same(0..2) && same(6..10) && same(12..20) && self.is_next_id(merged, packet)
        } else {
            same(0..4) && same(6..40)
        };
        let transport = if segment.protocol == TCP {
            // Ports; acknowledgement and header length; window; urgent pointer and options.
            same(at..at + 4)
                && same(at + 8..at + TCP_DATA_OFFSET + 1)
                && same(at + 14..at + TCP_CHECKSUM)
                && same(at + 18..segment.payload)
        } else {
            same(at..at + 4)
        };
        network && transport
    }

    /// Identifiers of packets that may not be fragmented mean nothing (RFC 6864 section 4.1).
    fn is_next_id(&self, merged: &[u8], packet: &[u8]) -> bool {
        let id = |packet| u16::from_be_bytes(field(packet, V4_ID));
        u16::from_be_bytes(field(packet, V4_FRAGMENT)) & V4_DONT_FRAGMENT != 0
            || id(packet) == id(merged).wrapping_add(self.count)
    }

    /// Makes the bytes one packet, and says in the header how the host may cut it again.
    ///
    /// # Panics
    /// If `packet` does not hold what was taken.
    #[must_use]
    pub fn finish(&self, packet: &mut [u8]) -> Header {
        if self.count == 1 {
            return Header::default();
        }
        assert_eq!(packet.len(), self.len, "what was taken is there");
        set_len(packet);
        let Segment { protocol, transport, payload, .. } = self.first;
        let partial = pseudo(packet, protocol, transport).fold();
        let bytes = &mut packet[transport..];
        let (at, kind) = if protocol == TCP {
            bytes[TCP_FLAGS] |= if self.push { PSH } else { 0 };
            (TCP_CHECKSUM, if is_v4(packet) { Kind::Tcp4 } else { Kind::Tcp6 })
        } else {
            put_len(bytes, UDP_LEN, bytes.len());
            (UDP_CHECKSUM, Kind::Udp)
        };
        packet[transport + at..transport + at + 2].copy_from_slice(&partial);
        let word = |len: usize| u16::try_from(len).expect("a packet has less than 64 KiB");
        Header {
            checksum: Some(Partial { start: word(transport), offset: word(at) }),
            segments: Some(Segments { kind, size: word(self.first.payload_len()) }),
            headers_len: word(payload),
        }
    }
}
