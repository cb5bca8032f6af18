//! Cuts a packet that the host left whole into those that go on the wire.

use super::checksum::Sum;
use super::transport::{
    CWR, FIN, PSH, RST, SYN, TCP, TCP_CHECKSUM, TCP_FLAGS, TCP_HEADER_LEN, TCP_SEQUENCE, UDP, UDP_CHECKSUM,
    UDP_HEADER_LEN, UDP_LEN, URG, V4_DONT_FRAGMENT, V4_FRAGMENT, V4_ID, V4_PROTOCOL, V6_NEXT_HEADER,
    addresses, is_v4, pseudo, put_len, sequence, set_len, tcp_header_len, v4_header_len,
};
use super::virtio::{Header, Kind, Partial, Segments};
use crate::drops::DropReason;
use crate::wire::field;
use crate::wire::ip::{self, V6_HEADER_LEN};

/// A packet out of the host and how it is cut; most are not, and are their only segment.
#[derive(Debug, Clone, Copy)]
pub struct Cut<'a> {
    packet: &'a [u8],
    work: Work,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    Nothing,
    Checksum { start: usize, field: usize },
    Segments(Plan),
}

/// How a super-packet is cut, in bytes.
#[derive(Debug, Clone, Copy)]
struct Plan {
    protocol: u8,
    /// Where the TCP or UDP header begins.
    transport: usize,
    /// Where the payload begins.
    payload: usize,
    /// Payload of each segment but the last.
    size: usize,
}

impl<'a> Cut<'a> {
    /// Checks a packet and what its header asks for.
    ///
    /// # Errors
    /// `inner_malformed`.
    pub fn new(packet: &'a [u8], header: Header) -> Result<Self, DropReason> {
        let packet = &packet[..ip::Packet::new_checked(packet)?.total_len()];
        let work = match (header.segments, header.checksum) {
            (None, None) => Some(Work::Nothing),
            (None, Some(partial)) => checksum_work(packet, partial),
            (Some(segments), Some(partial)) => Plan::new(packet, segments, partial).map(Work::Segments),
            // The kernel never leaves the cutting to us and keeps the checksum to itself.
            (Some(_), None) => None,
        };
        Ok(Self { packet, work: work.ok_or(DropReason::InnerMalformed)? })
    }

    /// The whole packet.
    #[must_use]
    pub fn packet(&self) -> &'a [u8] {
        self.packet
    }

    /// Into how many it is cut.
    #[must_use]
    pub fn count(&self) -> usize {
        match self.work {
            Work::Segments(plan) => (self.packet.len() - plan.payload).div_ceil(plan.size).max(1),
            _ => 1,
        }
    }

    /// Length of segment `at`; the first is the longest, and all but the last are as long.
    #[must_use]
    pub fn len(&self, at: usize) -> usize {
        match self.work {
            Work::Segments(plan) => {
                let left = self.packet.len() - plan.payload - at * plan.size;
                plan.payload + left.min(plan.size)
            }
            _ => self.packet.len(),
        }
    }

    /// The same packet cut so that no segment has more than `most` bytes; `None`: only TCP can be cut
    /// anywhere.
    #[must_use]
    pub fn shrink(&self, most: usize) -> Option<Self> {
        let plan = match self.work {
            Work::Segments(plan) => Some(plan).filter(|plan| plan.protocol == TCP),
            Work::Checksum { start, field } => Plan::of_tcp(self.packet)
                .filter(|plan| plan.transport == start && field == start + TCP_CHECKSUM),
            // What was spoilt on its way to this host is to stay so.
            Work::Nothing => Plan::of_tcp(self.packet).filter(|plan| plan.is_intact(self.packet)),
        }?;
        let size = most.checked_sub(plan.payload).filter(|size| *size > 0)?;
        Some(Self { work: Work::Segments(Plan { size, ..plan }), ..*self })
    }

    /// Writes segment `at` into `to`, which has its length. This is the only copy on the way out.
    ///
    /// # Panics
    /// If `at` is not below [`Self::count`], or `to` not of [`Self::len`].
    pub fn write(&self, at: usize, to: &mut [u8]) {
        match self.work {
            Work::Nothing => to.copy_from_slice(self.packet),
            Work::Checksum { start, field } => {
                to.copy_from_slice(self.packet);
                let mut checksum = Sum::default().add(&to[start..]).complement();
                if field - start == UDP_CHECKSUM {
                    checksum = never_none(checksum);
                }
                to[field..field + 2].copy_from_slice(&checksum);
            }
            Work::Segments(plan) => plan.write(self.packet, at, to),
        }
    }
}

fn checksum_work(packet: &[u8], partial: Partial) -> Option<Work> {
    let start = usize::from(partial.start);
    let field = start + usize::from(partial.offset);
    (field + 2 <= packet.len()).then_some(Work::Checksum { start, field })
}

impl Plan {
    fn new(packet: &[u8], segments: Segments, partial: Partial) -> Option<Self> {
        let transport = usize::from(partial.start);
        let (protocol, family, offset) = match segments.kind {
            Kind::Tcp4 => (TCP, is_v4(packet), TCP_CHECKSUM),
            Kind::Tcp6 => (TCP, !is_v4(packet), TCP_CHECKSUM),
            Kind::Udp => (UDP, true, UDP_CHECKSUM),
        };
        let after_ip = if is_v4(packet) {
            transport == v4_header_len(packet)
        } else {
            transport >= V6_HEADER_LEN // the kernel has skipped the extension headers
        };
        if !family || !after_ip || usize::from(partial.offset) != offset {
            return None;
        }
        let header_len = match protocol {
            UDP => UDP_HEADER_LEN,
            _ => tcp_header_len(packet.get(transport..transport + TCP_HEADER_LEN)?).max(TCP_HEADER_LEN),
        };
        let payload = transport + header_len;
        (payload <= packet.len()).then_some(Self { protocol, transport, payload, size: segments.size.into() })
    }

    /// For a whole TCP segment with nothing but data: no fragment, and no other extension of IPv6.
    fn of_tcp(packet: &[u8]) -> Option<Self> {
        let transport = if is_v4(packet) {
            let fragment = u16::from_be_bytes(field(packet, V4_FRAGMENT));
            let is_whole = fragment & !V4_DONT_FRAGMENT == 0;
            (is_whole && packet[V4_PROTOCOL] == TCP).then(|| v4_header_len(packet))?
        } else {
            (packet[V6_NEXT_HEADER] == TCP).then_some(V6_HEADER_LEN)?
        };
        let header = packet.get(transport..transport + TCP_HEADER_LEN)?;
        let payload = transport + tcp_header_len(header).max(TCP_HEADER_LEN);
        let is_data = header[TCP_FLAGS] & (SYN | RST | URG) == 0 && payload < packet.len();
        is_data.then_some(Self { protocol: TCP, transport, payload, size: packet.len() - payload })
    }

    fn is_intact(self, packet: &[u8]) -> bool {
        pseudo(packet, self.protocol, self.transport).add(&packet[self.transport..]).is_intact()
    }

    fn write(self, packet: &[u8], at: usize, to: &mut [u8]) {
        let begin = self.payload + at * self.size;
        let end = packet.len().min(begin + self.size);
        to[..self.payload].copy_from_slice(&packet[..self.payload]);
        let data = Sum::default().add_copied(&packet[begin..end], &mut to[self.payload..]);
        if is_v4(to) {
            let id = u16::from_be_bytes(field(packet, V4_ID)).wrapping_add(wrapped(at));
            to[V4_ID].copy_from_slice(&id.to_be_bytes());
        }
        set_len(to);
        let len = to.len() - self.transport;
        let sum = data.add_pseudo(addresses(to), self.protocol, len);
        let header = &mut to[self.transport..self.payload];
        if self.protocol == TCP {
            self.set_tcp(header, at, end == packet.len());
            checksum(header, TCP_CHECKSUM, sum);
        } else {
            put_len(header, UDP_LEN, len);
            checksum(header, UDP_CHECKSUM, sum);
            let field = &mut header[UDP_CHECKSUM..UDP_CHECKSUM + 2];
            field.copy_from_slice(&never_none([field[0], field[1]]));
        }
    }

    /// Each segment has its place in the stream; what ends the stream or asks for delivery is for
    /// the last to say, and that congestion was answered for the first (RFC 3168 section 6.1.2).
    #[allow(clippy::cast_possible_truncation, reason = "a packet has less than 64 KiB")]
    fn set_tcp(self, transport: &mut [u8], at: usize, last: bool) {
        let sequence = sequence(transport).wrapping_add((at * self.size) as u32);
        transport[TCP_SEQUENCE].copy_from_slice(&sequence.to_be_bytes());
        if !last {
            transport[TCP_FLAGS] &= !(FIN | PSH);
        }
        if at > 0 {
            transport[TCP_FLAGS] &= !CWR;
        }
    }
}

/// Writes the checksum of a header at `at`; `rest` is the sum of all that it is for besides.
fn checksum(header: &mut [u8], at: usize, rest: Sum) {
    header[at..at + 2].fill(0);
    let checksum = rest.add(header).complement();
    header[at..at + 2].copy_from_slice(&checksum);
}

/// In UDP zero would mean that there is no checksum (RFC 768); the other zero says the same number.
fn never_none(checksum: [u8; 2]) -> [u8; 2] {
    if checksum == [0; 2] { [0xff; 2] } else { checksum }
}

#[allow(clippy::cast_possible_truncation, reason = "identifiers wrap")]
fn wrapped(at: usize) -> u16 {
    at as u16
}
