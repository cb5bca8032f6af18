//! Geneve, RFC 8926 section 3.4.
//!
//! ```text
//!  0                   1                   2                   3
//! |Ver|  Opt Len  |O|C|    Rsvd.  |          Protocol Type        |
//! |        Virtual Network Identifier (VNI)       |    Reserved   |
//! |                    Variable-Length Options                    |
//! ```

use std::ops::Range;

use super::field;
use crate::drops::DropReason;

/// UDP port that IANA assigned to Geneve.
pub const PORT: u16 = 6081;
/// Bytes of a header without options, the only kind that Overmesh sends.
pub const HEADER_LEN: usize = 8;
/// Highest network number: a VNI has 24 bits.
pub const MAX_VNI: u32 = 0x00ff_ffff;

/// Protocol type (an `EtherType`) of an IPv4 packet.
pub const IPV4: u16 = 0x0800;
/// Protocol type of an IPv6 packet.
pub const IPV6: u16 = 0x86dd;

const VERSION_AND_LENGTH: usize = 0;
const FLAGS: usize = 1;
const PROTOCOL: Range<usize> = 2..4;
const VNI: Range<usize> = 4..8;

const VERSION_MASK: u8 = 0b1100_0000;
const OPTIONS_MASK: u8 = 0b0011_1111;
const CONTROL_BIT: u8 = 0b1000_0000;
const CRITICAL_BIT: u8 = 0b0100_0000;

/// A Geneve header with its payload, checked.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    bytes: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Checks the payload of a UDP datagram.
    ///
    /// Options are skipped, as section 3.4 allows an endpoint that knows none; if one of them is
    /// critical it demands that the packet be dropped.
    ///
    /// # Errors
    /// `geneve_malformed`, `geneve_version`, `geneve_critical_option`.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, DropReason> {
        if bytes.len() < HEADER_LEN {
            return Err(DropReason::GeneveMalformed);
        }
        if bytes[VERSION_AND_LENGTH] & VERSION_MASK != 0 {
            return Err(DropReason::GeneveVersion);
        }
        let datagram = Self { bytes };
        if bytes.len() < datagram.header_len() {
            return Err(DropReason::GeneveMalformed);
        }
        if bytes[FLAGS] & CRITICAL_BIT != 0 {
            return Err(DropReason::GeneveCriticalOption);
        }
        Ok(datagram)
    }

    /// Bytes before the payload, options included.
    #[must_use]
    pub fn header_len(&self) -> usize {
        HEADER_LEN + 4 * usize::from(self.bytes[VERSION_AND_LENGTH] & OPTIONS_MASK)
    }

    /// The O bit: the payload is for the tunnel endpoint itself, never to be forwarded.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.bytes[FLAGS] & CONTROL_BIT != 0
    }

    /// What the payload is, as an `EtherType`.
    #[must_use]
    pub fn protocol(&self) -> u16 {
        u16::from_be_bytes(field(self.bytes, PROTOCOL))
    }

    /// The virtual network identifier: Overmesh's network number.
    #[must_use]
    pub fn vni(&self) -> u32 {
        u32::from_be_bytes(field(self.bytes, VNI)) >> 8
    }

    /// What follows the header and its options.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_len()..]
    }
}

/// Writes the header of a data packet.
#[must_use]
pub fn emit(vni: u32, protocol: u16) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[PROTOCOL].copy_from_slice(&protocol.to_be_bytes());
    header[VNI].copy_from_slice(&(vni << 8).to_be_bytes());
    header
}

/// Writes the header of a control packet.
#[must_use]
pub fn emit_control(vni: u32, protocol: u16) -> [u8; HEADER_LEN] {
    let mut header = emit(vni, protocol);
    header[FLAGS] |= CONTROL_BIT;
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn header_is_laid_out_as_in_the_rfc() {
        assert_eq!(emit(0x12_3456, IPV6), [0, 0, 0x86, 0xdd, 0x12, 0x34, 0x56, 0]);
        assert_eq!(emit_control(1, 0x88b5), [0, 0x80, 0x88, 0xb5, 0, 0, 1, 0]);
    }

    #[test]
    fn options_are_skipped() {
        let mut bytes = emit(7, IPV4).to_vec();
        bytes[0] = 2;
        bytes.extend([0; 8]);
        bytes.extend(b"inner");
        assert_eq!(Datagram::new_checked(&bytes).unwrap().payload(), b"inner");
    }

    #[test]
    fn reserved_bits_are_ignored() {
        let mut bytes = emit(7, IPV4);
        bytes[1] |= 0b0011_1111;
        bytes[7] = 0xff;
        assert_eq!(Datagram::new_checked(&bytes).unwrap().vni(), 7);
    }

    #[test]
    fn refusals_have_names() {
        let refused = |at: usize, value: u8| {
            let mut bytes = emit(7, IPV4);
            bytes[at] = value;
            Datagram::new_checked(&bytes).unwrap_err()
        };
        assert_eq!(refused(0, 0x40), DropReason::GeneveVersion);
        assert_eq!(refused(0, 0x01), DropReason::GeneveMalformed);
        assert_eq!(refused(1, 0x40), DropReason::GeneveCriticalOption);
        assert_eq!(Datagram::new_checked(&[0; 7]).unwrap_err(), DropReason::GeneveMalformed);
    }

    proptest! {
        #[test]
        fn emitted_headers_parse_back(vni in 0..=MAX_VNI, protocol: u16, payload: Vec<u8>) {
            let bytes = [&emit(vni, protocol), payload.as_slice()].concat();
            let datagram = Datagram::new_checked(&bytes).unwrap();
            prop_assert_eq!(datagram.vni(), vni);
            prop_assert_eq!(datagram.protocol(), protocol);
            prop_assert_eq!(datagram.payload(), payload);
            prop_assert!(!datagram.is_control());
        }
    }
}
