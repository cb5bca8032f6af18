//! The fields of IP, TCP (RFC 9293 section 3.1) and UDP (RFC 768) that change from one segment to
//! the next.

use std::ops::Range;

use super::checksum::Sum;
use crate::wire::field;
use crate::wire::ip::V6_HEADER_LEN;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

pub(super) const V4_ID: Range<usize> = 4..6;
pub(super) const V4_FRAGMENT: Range<usize> = 6..8;
pub(super) const V4_DONT_FRAGMENT: u16 = 0x4000;
pub(super) const V4_PROTOCOL: usize = 9;
pub(super) const V4_CHECKSUM: Range<usize> = 10..12;
pub(super) const V6_NEXT_HEADER: usize = 6;
const V4_TOTAL_LEN: Range<usize> = 2..4;
const V4_ADDRESSES: Range<usize> = 12..20;
const V6_PAYLOAD_LEN: Range<usize> = 4..6;
const V6_ADDRESSES: Range<usize> = 8..40;

pub(super) const PORTS: Range<usize> = 0..4;
pub(super) const TCP_HEADER_LEN: usize = 20;
pub(super) const TCP_SEQUENCE: Range<usize> = 4..8;
pub(super) const TCP_DATA_OFFSET: usize = 12;
pub(super) const TCP_FLAGS: usize = 13;
pub(super) const TCP_CHECKSUM: usize = 16;
pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const URG: u8 = 0x20;
pub(super) const CWR: u8 = 0x80;

pub(super) const UDP_HEADER_LEN: usize = 8;
pub(super) const UDP_LEN: Range<usize> = 4..6;
pub(super) const UDP_CHECKSUM: usize = 6;

pub(super) fn is_v4(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4
}

/// Source and destination address, one after the other.
pub(super) fn addresses(packet: &[u8]) -> &[u8] {
    &packet[if is_v4(packet) { V4_ADDRESSES } else { V6_ADDRESSES }]
}

pub(super) fn v4_header_len(packet: &[u8]) -> usize {
    4 * usize::from(packet[0] & 0x0f)
}

pub(super) fn tcp_header_len(transport: &[u8]) -> usize {
    4 * usize::from(transport[TCP_DATA_OFFSET] >> 4)
}

pub(super) fn sequence(transport: &[u8]) -> u32 {
    u32::from_be_bytes(field(transport, TCP_SEQUENCE))
}

/// Writes the packet's length into its IP header, and makes an IPv4 header's checksum.
pub(super) fn set_len(packet: &mut [u8]) {
    if is_v4(packet) {
        put_len(packet, V4_TOTAL_LEN, packet.len());
        let header_len = v4_header_len(packet);
        packet[V4_CHECKSUM].fill(0);
        let checksum = Sum::default().add(&packet[..header_len]).complement();
        packet[V4_CHECKSUM].copy_from_slice(&checksum);
    } else {
        put_len(packet, V6_PAYLOAD_LEN, packet.len() - V6_HEADER_LEN);
    }
}

/// Writes a length into a 16-bit field, at most the largest that it holds.
pub(super) fn put_len(bytes: &mut [u8], range: Range<usize>, len: usize) {
    bytes[range].copy_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
}

/// The sum that a checksum of TCP or UDP begins with.
pub(super) fn pseudo(packet: &[u8], protocol: u8, transport_at: usize) -> Sum {
    Sum::default().add_pseudo(addresses(packet), protocol, packet.len() - transport_at)
}
