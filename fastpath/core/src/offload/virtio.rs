//! The header before each packet of a TUN device with `IFF_VNET_HDR`: `struct virtio_net_hdr` of
//! `linux/virtio_net.h`, VIRTIO 1.2 section 5.1.6. Fields are in the host's byte order.
//!
//! ```text
//! |     flags     |   gso_type    |            hdr_len            |
//! |           gso_size            |          csum_start           |
//! |          csum_offset          |
//! ```

use std::ops::Range;

use crate::drops::DropReason;
use crate::wire::field;

/// Bytes of the header.
pub const HEADER_LEN: usize = 10;

const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
const HDR_LEN: Range<usize> = 2..4;
const GSO_SIZE: Range<usize> = 4..6;
const CSUM_START: Range<usize> = 6..8;
const CSUM_OFFSET: Range<usize> = 8..10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
/// ECN is no kind of its own: it says that the first segment bears CWR, which its flags say too.
const GSO_ECN: u8 = 0x80;

/// What is still to be done to a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// A checksum to complete.
    pub checksum: Option<Partial>,
    /// How to segment it.
    pub segments: Option<Segments>,
    /// Bytes of all headers, a hint to whoever segments.
    pub headers_len: u16,
}

/// A checksum field that holds the sum of the pseudo-header only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    /// Where the bytes begin that it covers, which go up to the packet's end.
    pub start: u16,
    /// Where the field is, from there.
    pub offset: u16,
}

/// How a super-packet is to be segmented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// Of which protocols it is.
    pub kind: Kind,
    /// Payload bytes of each segment but the last, which may have fewer.
    pub size: u16,
}

/// The super-packets that a TUN device gives and takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4.
    Tcp4 = 1,
    /// TCP over IPv6.
    Tcp6 = 4,
    /// UDP over either (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp = 5,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// `inner_malformed`: a kind of super-packet that was not asked for, or one without a size.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, DropReason> {
        let word = |range| u16::from_ne_bytes(field(bytes, range));
        let partial = Partial { start: word(CSUM_START), offset: word(CSUM_OFFSET) };
        let segments = match (bytes[GSO_TYPE] & !GSO_ECN, word(GSO_SIZE)) {
            (GSO_NONE, _) => None,
            (_, 0) => return Err(DropReason::InnerMalformed),
            (1, size) => Some(Segments { kind: Kind::Tcp4, size }),
            (4, size) => Some(Segments { kind: Kind::Tcp6, size }),
            (5, size) => Some(Segments { kind: Kind::Udp, size }),
            _ => return Err(DropReason::InnerMalformed),
        };
        let checksum = (bytes[FLAGS] & NEEDS_CSUM != 0).then_some(partial);
        Ok(Self { checksum, segments, headers_len: word(HDR_LEN) })
    }

    /// Writes the header.
    #[must_use]
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut put = |range: Range<usize>, word: u16| bytes[range].copy_from_slice(&word.to_ne_bytes());
        put(HDR_LEN, self.headers_len);
        if let Some(Partial { start, offset }) = self.checksum {
            put(CSUM_START, start);
            put(CSUM_OFFSET, offset);
        }
        if let Some(Segments { size, .. }) = self.segments {
            put(GSO_SIZE, size);
        }
        bytes[FLAGS] = if self.checksum.is_some() { NEEDS_CSUM } else { 0 };
        bytes[GSO_TYPE] = self.segments.map_or(GSO_NONE, |segments| segments.kind as u8);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emitted_headers_parse_back() {
        let partial = Partial { start: 20, offset: 16 };
        for kind in [Kind::Tcp4, Kind::Tcp6, Kind::Udp] {
            let segments = Some(Segments { kind, size: 1368 });
            let header = Header { checksum: Some(partial), segments, headers_len: 52 };
            assert_eq!(Header::parse(&header.emit()), Ok(header));
        }
        assert_eq!(Header::parse(&[0; HEADER_LEN]), Ok(Header::default()));
    }

    #[test]
    fn what_was_not_asked_for_is_malformed() {
        let mut bytes = [0; HEADER_LEN];
        bytes[GSO_SIZE].copy_from_slice(&1000_u16.to_ne_bytes());
        for (kind, accepted) in [(1, true), (0x81, true), (3, false), (2, false), (0x7f, false)] {
            bytes[GSO_TYPE] = kind;
            assert_eq!(Header::parse(&bytes).is_ok(), accepted, "{kind}");
        }
        bytes[GSO_SIZE].fill(0);
        bytes[GSO_TYPE] = 1;
        assert_eq!(Header::parse(&bytes), Err(DropReason::InnerMalformed));
    }
}
