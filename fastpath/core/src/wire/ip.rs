//! The few fields of IPv4 (RFC 791) and IPv6 (RFC 8200) that a tunnel needs.

use std::net::IpAddr;
use std::ops::Range;

use super::{field, geneve};
use crate::drops::DropReason;

/// A packet cannot be larger, in bytes.
pub const MAX_LEN: usize = 65_535;

pub(crate) const V4_HEADER_LEN: usize = 20;
const V4_TOTAL_LEN: Range<usize> = 2..4;
const V4_SOURCE: Range<usize> = 12..16;
const V4_DESTINATION: Range<usize> = 16..20;

pub(crate) const V6_HEADER_LEN: usize = 40;
const V6_PAYLOAD_LEN: Range<usize> = 4..6;
const V6_SOURCE: Range<usize> = 8..24;
const V6_DESTINATION: Range<usize> = 24..40;

/// An IPv4 or IPv6 packet, checked.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    bytes: &'a [u8],
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

impl<'a> Packet<'a> {
    /// Checks that the fixed header is whole and that the length it states fits the buffer.
    ///
    /// Bytes beyond the stated length are cut off.
    ///
    /// # Errors
    /// `inner_malformed`.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, DropReason> {
        let (version, total_len) = match bytes.first().map(|byte| byte >> 4) {
            Some(4) => (Version::V4, v4_total_len(bytes)),
            Some(6) => (Version::V6, v6_total_len(bytes)),
            _ => return Err(DropReason::InnerMalformed),
        };
        let bytes = total_len.and_then(|len| bytes.get(..len)).ok_or(DropReason::InnerMalformed)?;
        Ok(Self { bytes, version })
    }

    /// Length of header and payload as the header states it, in bytes.
    #[must_use]
    pub fn total_len(&self) -> usize {
        self.bytes.len()
    }

    /// The `EtherType` that announces this kind of packet.
    #[must_use]
    pub fn protocol(&self) -> u16 {
        match self.version {
            Version::V4 => geneve::IPV4,
            Version::V6 => geneve::IPV6,
        }
    }

    /// Source address.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        match self.version {
            Version::V4 => field::<4>(self.bytes, V4_SOURCE).into(),
            Version::V6 => field::<16>(self.bytes, V6_SOURCE).into(),
        }
    }

    /// Destination address.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        match self.version {
            Version::V4 => field::<4>(self.bytes, V4_DESTINATION).into(),
            Version::V6 => field::<16>(self.bytes, V6_DESTINATION).into(),
        }
    }
}

fn v4_total_len(bytes: &[u8]) -> Option<usize> {
    let fixed = bytes.get(..V4_HEADER_LEN)?;
    let header_len = 4 * usize::from(fixed[0] & 0x0f);
    let total_len = usize::from(u16::from_be_bytes(field(fixed, V4_TOTAL_LEN)));
    (V4_HEADER_LEN <= header_len && header_len <= total_len).then_some(total_len)
}

fn v6_total_len(bytes: &[u8]) -> Option<usize> {
    let fixed = bytes.get(..V6_HEADER_LEN)?;
    Some(V6_HEADER_LEN + usize::from(u16::from_be_bytes(field(fixed, V6_PAYLOAD_LEN))))
}

/// Writes an IP packet with no transport header, for tests and fuzzing seeds. Its IPv4
/// header checksum is left zero.
///
/// # Panics
/// If the addresses are of two families or the payload exceeds 65,515 bytes.
#[must_use]
pub fn emit(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    const NO_NEXT_HEADER: u8 = 59;
    const HOP_LIMIT: u8 = 64;
    let length = |header: usize| {
        u16::try_from(header + payload.len()).expect("payload fits an IP packet").to_be_bytes()
    };
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0; V4_HEADER_LEN];
            header[0] = 0x45;
            header[V4_TOTAL_LEN].copy_from_slice(&length(V4_HEADER_LEN));
            header[8..10].copy_from_slice(&[HOP_LIMIT, NO_NEXT_HEADER]);
            header[V4_SOURCE].copy_from_slice(&source.octets());
            header[V4_DESTINATION].copy_from_slice(&destination.octets());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0; V6_HEADER_LEN];
            header[0] = 0x60;
            header[V6_PAYLOAD_LEN].copy_from_slice(&length(0));
            header[6..8].copy_from_slice(&[NO_NEXT_HEADER, HOP_LIMIT]);
            header[V6_SOURCE].copy_from_slice(&source.octets());
            header[V6_DESTINATION].copy_from_slice(&destination.octets());
            header
        }
        _ => panic!("{source} and {destination} are of two families"),
    };
    packet.extend(payload);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4() -> Vec<u8> {
        emit([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), b"payload")
    }

    #[test]
    fn a_cut_packet_is_malformed() {
        for len in 0..v4().len() {
            assert_eq!(Packet::new_checked(&v4()[..len]).unwrap_err(), DropReason::InnerMalformed);
        }
    }

    #[test]
    fn a_header_longer_than_the_packet_is_malformed() {
        let mut bytes = v4();
        bytes[0] = 0x4f;
        assert_eq!(Packet::new_checked(&bytes).unwrap_err(), DropReason::InnerMalformed);
        bytes[0] = 0x44;
        assert_eq!(Packet::new_checked(&bytes).unwrap_err(), DropReason::InnerMalformed);
    }

    #[test]
    fn trailing_bytes_do_not_belong_to_the_packet() {
        let bytes = [v4(), vec![0xff; 9]].concat();
        assert_eq!(Packet::new_checked(&bytes).unwrap().total_len(), v4().len());
    }

    #[test]
    fn other_versions_are_malformed() {
        for version in [0, 1, 5, 7, 15] {
            let mut bytes = v4();
            bytes[0] = version << 4 | 5;
            assert_eq!(Packet::new_checked(&bytes).unwrap_err(), DropReason::InnerMalformed);
        }
    }

    proptest! {
        #[test]
        fn emitted_packets_parse_back(
            (source, destination) in prop_oneof![
                any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
                any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
            ],
            payload: Vec<u8>,
        ) {
            let bytes = emit(source, destination, &payload);
            let packet = Packet::new_checked(&bytes).unwrap();
            prop_assert_eq!(packet.source(), source);
            prop_assert_eq!(packet.destination(), destination);
            prop_assert_eq!(packet.total_len(), bytes.len());
        }
    }
}
