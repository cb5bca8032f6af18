//! The echo that two fastpaths exchange, to time a path and to try its size.
//!
//! It travels as a Geneve control packet (O bit set), so that it can never be taken for inner
//! traffic, under the `EtherType` that IEEE 802 sets aside for local experiments. A datagram
//! carrying an echo of `n` bytes is exactly as long as one carrying an inner packet of `n` bytes.
//!
//! ```text
//!  0                   1                   2                   3
//! |                      Magic "OMEC"                             |
//! |      Kind     |                  Reserved                     |
//! |                           Token                               |
//! |                      (8 bytes, opaque)                        |
//! |                    Zeros, up to the size                      |
//! ```
//!
//! The reply to a request is as long as the request; that to a probe has no padding, so that it
//! arrives whatever the way back takes.

use std::ops::Range;

use super::{field, geneve};
use crate::drops::DropReason;

/// Geneve protocol type of an echo: local experimental `EtherType` 1 (IEEE 802).
pub const PROTOCOL: u16 = 0x88b5;
/// Bytes of an echo without padding; the smallest that can be asked for.
pub const MIN_SIZE: usize = 16;
/// Bytes of the largest echo: what IPv4 and UDP leave beside the Geneve header.
pub const MAX_SIZE: usize = 65_507 - geneve::HEADER_LEN;

const MAGIC: [u8; 4] = *b"OMEC";
const MAGIC_AT: Range<usize> = 0..4;
const KIND: usize = 4;
const TOKEN: Range<usize> = 8..16;

/// Which way an echo goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Please send this back.
    Request = 1,
    /// Sent back, token unchanged.
    Reply = 2,
    /// Please say that this came.
    Probe = 3,
}

/// An echo, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Request, reply or probe.
    pub kind: Kind,
    /// Chosen by who asks; the reply repeats it.
    pub token: u64,
}

impl Echo {
    /// Checks the payload of a Geneve control packet of type [`PROTOCOL`].
    ///
    /// # Errors
    /// `control_malformed`.
    pub fn new_checked(payload: &[u8]) -> Result<Self, DropReason> {
        if payload.len() < MIN_SIZE || field(payload, MAGIC_AT) != MAGIC {
            return Err(DropReason::ControlMalformed);
        }
        let kind = match payload[KIND] {
            1 => Kind::Request,
            2 => Kind::Reply,
            3 => Kind::Probe,
            _ => return Err(DropReason::ControlMalformed),
        };
        Ok(Self { kind, token: u64::from_be_bytes(field(payload, TOKEN)) })
    }
}

/// Writes a whole datagram with a request or a probe, Geneve header included.
///
/// `size` counts the bytes after the Geneve header and is brought into
/// [`MIN_SIZE`]`..=`[`MAX_SIZE`].
#[must_use]
pub fn emit(kind: Kind, vni: u32, token: u64, size: usize) -> Vec<u8> {
    let mut datagram = geneve::emit_control(vni, PROTOCOL).to_vec();
    datagram.extend(MAGIC);
    datagram.extend([kind as u8, 0, 0, 0]);
    datagram.extend(token.to_be_bytes());
    datagram.resize(geneve::HEADER_LEN + size.clamp(MIN_SIZE, MAX_SIZE), 0);
    datagram
}

/// Turns the checked payload of a request or probe into its reply, in place; returns the bytes of it that
/// are to be sent.
pub fn into_reply(payload: &mut [u8]) -> usize {
    let is_probe = payload[KIND] == Kind::Probe as u8;
    payload[KIND] = Kind::Reply as u8;
    if is_probe { MIN_SIZE } else { payload.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::geneve::Datagram;
    use proptest::prelude::*;

    #[test]
    fn foreign_payloads_are_malformed() {
        let request = &emit(Kind::Request, 1, 2, 0)[geneve::HEADER_LEN..];
        for (at, value) in [(0, b'X'), (KIND, 0), (KIND, 4)] {
            let mut payload = request.to_vec();
            payload[at] = value;
            assert_eq!(Echo::new_checked(&payload), Err(DropReason::ControlMalformed));
        }
        assert_eq!(Echo::new_checked(&request[..15]), Err(DropReason::ControlMalformed));
    }

    proptest! {
        #[test]
        fn a_reply_repeats_token_and_size(token: u64, size in 0..9000_usize) {
            let mut bytes = emit(Kind::Request, 3, token, size);
            prop_assert_eq!(bytes.len(), geneve::HEADER_LEN + size.max(MIN_SIZE));

            let datagram = Datagram::new_checked(&bytes).unwrap();
            prop_assert!(datagram.is_control());
            prop_assert_eq!(datagram.protocol(), PROTOCOL);
            let request = Echo { kind: Kind::Request, token };
            prop_assert_eq!(Echo::new_checked(datagram.payload()), Ok(request));

            let payload = &mut bytes[geneve::HEADER_LEN..];
            prop_assert_eq!(into_reply(payload), payload.len());
            prop_assert_eq!(Echo::new_checked(payload), Ok(Echo { kind: Kind::Reply, token }));
        }

        #[test]
        fn the_answer_to_a_probe_is_short(token: u64, size in 0..9000_usize) {
            let mut bytes = emit(Kind::Probe, 3, token, size);
            let payload = &mut bytes[geneve::HEADER_LEN..];
            let len = into_reply(payload);
            prop_assert_eq!(len, MIN_SIZE);
            prop_assert_eq!(Echo::new_checked(&payload[..len]), Ok(Echo { kind: Kind::Reply, token }));
        }
    }
}
