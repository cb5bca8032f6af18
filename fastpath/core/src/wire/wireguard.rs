//! The four messages of WireGuard: <https://www.wireguard.com/papers/wireguard.pdf>, section 5.4.
//!
//! ```text
//! initiation    1 0 0 0 | sender                | noise 108            | mac1 16 | mac2 16
//! response      2 0 0 0 | sender   | receiver   | noise 48             | mac1 16 | mac2 16
//! cookie reply  3 0 0 0 | receiver | nonce 24   | sealed cookie 16 + 16
//! data          4 0 0 0 | receiver | counter 8  | sealed packet, tag 16
//! ```
//!
//! Integers are little-endian.

use std::ops::Range;

use super::field;
use crate::drops::DropReason;

/// UDP port that everyone uses for WireGuard.
pub const PORT: u16 = 51820;
/// Bytes of a handshake initiation.
pub const INITIATION_LEN: usize = 148;
/// Bytes of a handshake response.
pub const RESPONSE_LEN: usize = 92;
/// Bytes of a cookie reply.
pub const COOKIE_REPLY_LEN: usize = 64;
/// Bytes before the sealed packet in a data message.
pub const HEADER_LEN: usize = 16;
/// Bytes of the authentication tag at its end.
pub const TAG_LEN: usize = 16;
/// Sealed packets are padded to a multiple of this many bytes, which hides some of their size.
pub const PADDING: usize = 16;
/// Bytes of what Noise makes of an initiation.
pub const NOISE_INITIATION_LEN: usize = 108;
/// Bytes of what Noise makes of a response.
pub const NOISE_RESPONSE_LEN: usize = 48;
/// Bytes of each of the two message authentication codes at the end of a handshake message.
pub const MAC_LEN: usize = 16;

const INITIATION: u32 = 1;
const RESPONSE: u32 = 2;
const COOKIE_REPLY: u32 = 3;
const DATA: u32 = 4;

/// One byte of type and three reserved ones that must be zero, read as one number.
const KIND: Range<usize> = 0..4;
const SENDER: Range<usize> = 4..8;
const INITIATION_NOISE: Range<usize> = 8..116;
const RESPONSE_RECEIVER: Range<usize> = 8..12;
const RESPONSE_NOISE: Range<usize> = 12..60;
/// The receiver of a cookie reply and of a data message.
const RECEIVER: Range<usize> = 4..8;
const COOKIE_NONCE: Range<usize> = 8..32;
const COOKIE_SEALED: Range<usize> = 32..64;
const COUNTER: Range<usize> = 8..16;

/// A datagram, checked to be one of the four.
#[derive(Debug, Clone, Copy)]
pub enum Message<'a> {
    /// The first message of a handshake.
    Initiation(Initiation<'a>),
    /// The second and last one.
    Response(Response<'a>),
    /// A host under load asks for proof of the source address.
    CookieReply(CookieReply<'a>),
    /// A sealed packet, or an empty one that keeps a session alive.
    Data(Data),
}

impl<'a> Message<'a> {
    /// Checks type, reserved bytes and length.
    ///
    /// # Errors
    /// `sealed_malformed`.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, DropReason> {
        let kind = bytes.get(KIND).map(|_| u32::from_le_bytes(field(bytes, KIND)));
        let message = match kind {
            Some(INITIATION) => bytes.try_into().ok().map(|bytes| Self::Initiation(Initiation { bytes })),
            Some(RESPONSE) => bytes.try_into().ok().map(|bytes| Self::Response(Response { bytes })),
            Some(COOKIE_REPLY) => bytes.try_into().ok().map(|bytes| Self::CookieReply(CookieReply { bytes })),
            Some(DATA) if bytes.len() >= HEADER_LEN + TAG_LEN => Some(Self::Data(Data::new(bytes))),
            _ => None,
        };
        message.ok_or(DropReason::SealedMalformed)
    }
}

/// A handshake initiation.
#[derive(Debug, Clone, Copy)]
pub struct Initiation<'a> {
    bytes: &'a [u8; INITIATION_LEN],
}

impl<'a> Initiation<'a> {
    /// The whole message.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The index that the answer is to name.
    #[must_use]
    pub fn sender(&self) -> u32 {
        u32::from_le_bytes(field(self.bytes, SENDER))
    }

    /// What Noise reads.
    #[must_use]
    pub fn noise(&self) -> &'a [u8] {
        &self.bytes[INITIATION_NOISE]
    }
}

/// A handshake response.
#[derive(Debug, Clone, Copy)]
pub struct Response<'a> {
    bytes: &'a [u8; RESPONSE_LEN],
}

impl<'a> Response<'a> {
    /// The whole message.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The index that data to the responder is to name.
    #[must_use]
    pub fn sender(&self) -> u32 {
        u32::from_le_bytes(field(self.bytes, SENDER))
    }

    /// The index of the initiation that this answers.
    #[must_use]
    pub fn receiver(&self) -> u32 {
        u32::from_le_bytes(field(self.bytes, RESPONSE_RECEIVER))
    }

    /// What Noise reads.
    #[must_use]
    pub fn noise(&self) -> &'a [u8] {
        &self.bytes[RESPONSE_NOISE]
    }
}

/// A cookie reply.
#[derive(Debug, Clone, Copy)]
pub struct CookieReply<'a> {
    bytes: &'a [u8; COOKIE_REPLY_LEN],
}

impl CookieReply<'_> {
    /// The index of the handshake message that this answers.
    #[must_use]
    pub fn receiver(&self) -> u32 {
        u32::from_le_bytes(field(self.bytes, RECEIVER))
    }

    /// Random; never used twice with one key.
    #[must_use]
    pub fn nonce(&self) -> [u8; 24] {
        field(self.bytes, COOKIE_NONCE)
    }

    /// The cookie and its tag.
    #[must_use]
    pub fn sealed(&self) -> [u8; MAC_LEN + TAG_LEN] {
        field(self.bytes, COOKIE_SEALED)
    }
}

/// The header of a data message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    /// The index of the session it is for.
    pub receiver: u32,
    /// The nonce it is sealed with.
    pub counter: u64,
}

impl Data {
    fn new(bytes: &[u8]) -> Self {
        Self {
            receiver: u32::from_le_bytes(field(bytes, RECEIVER)),
            counter: u64::from_le_bytes(field(bytes, COUNTER)),
        }
    }
}

/// Writes an initiation without its codes, which are the last 32 bytes.
#[must_use]
pub fn emit_initiation(sender: u32, noise: &[u8; NOISE_INITIATION_LEN]) -> [u8; INITIATION_LEN] {
    let mut message = [0; INITIATION_LEN];
    message[KIND].copy_from_slice(&INITIATION.to_le_bytes());
    message[SENDER].copy_from_slice(&sender.to_le_bytes());
    message[INITIATION_NOISE].copy_from_slice(noise);
    message
}

/// Writes a response without its codes, which are the last 32 bytes.
#[must_use]
pub fn emit_response(sender: u32, receiver: u32, noise: &[u8; NOISE_RESPONSE_LEN]) -> [u8; RESPONSE_LEN] {
    let mut message = [0; RESPONSE_LEN];
    message[KIND].copy_from_slice(&RESPONSE.to_le_bytes());
    message[SENDER].copy_from_slice(&sender.to_le_bytes());
    message[RESPONSE_RECEIVER].copy_from_slice(&receiver.to_le_bytes());
    message[RESPONSE_NOISE].copy_from_slice(noise);
    message
}

/// The index that the sender of a handshake message, checked, gave itself.
#[must_use]
pub(crate) fn sender_of(handshake: &[u8]) -> u32 {
    u32::from_le_bytes(field(handshake, SENDER))
}

/// Writes a cookie reply.
#[must_use]
pub fn emit_cookie_reply(
    receiver: u32,
    nonce: &[u8; 24],
    sealed: &[u8; MAC_LEN + TAG_LEN],
) -> [u8; COOKIE_REPLY_LEN] {
    let mut message = [0; COOKIE_REPLY_LEN];
    message[KIND].copy_from_slice(&COOKIE_REPLY.to_le_bytes());
    message[RECEIVER].copy_from_slice(&receiver.to_le_bytes());
    message[COOKIE_NONCE].copy_from_slice(nonce);
    message[COOKIE_SEALED].copy_from_slice(sealed);
    message
}

/// Writes the header of a data message.
#[must_use]
pub fn emit_data(data: Data) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[KIND].copy_from_slice(&DATA.to_le_bytes());
    header[RECEIVER].copy_from_slice(&data.receiver.to_le_bytes());
    header[COUNTER].copy_from_slice(&data.counter.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_laid_out_as_in_the_paper() {
        let initiation = emit_initiation(0x0403_0201, &[7; NOISE_INITIATION_LEN]);
        assert_eq!(initiation[..9], [1, 0, 0, 0, 1, 2, 3, 4, 7]);
        assert_eq!(initiation[115..117], [7, 0]);
        let response = emit_response(1, 2, &[7; NOISE_RESPONSE_LEN]);
        assert_eq!(response[..13], [2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 7]);
        let reply = emit_cookie_reply(1, &[8; 24], &[9; 32]);
        assert_eq!((reply[0], reply[4], reply[8], reply[32], reply[63]), (3, 1, 8, 9, 9));
        let header = emit_data(Data { receiver: 1, counter: 0x0807_0605_0403_0201 });
        assert_eq!(header, [4, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn other_lengths_kinds_and_reserved_bits_are_malformed() {
        let messages = [
            emit_initiation(1, &[0; NOISE_INITIATION_LEN]).to_vec(),
            emit_response(1, 2, &[0; NOISE_RESPONSE_LEN]).to_vec(),
            emit_cookie_reply(1, &[0; 24], &[0; 32]).to_vec(),
        ];
        for message in messages {
            assert!(Message::new_checked(&message).is_ok());
            let long = [message.as_slice(), &[0]].concat();
            let with = |at: usize, value| {
                let mut bytes = message.clone();
                bytes[at] = value;
                bytes
            };
            for bad in [&message[..message.len() - 1], &long, &with(0, 5), &with(0, 0), &with(3, 1)] {
                assert_eq!(Message::new_checked(bad).unwrap_err(), DropReason::SealedMalformed);
            }
        }
    }

    #[test]
    fn data_has_at_least_a_tag() {
        let header = emit_data(Data { receiver: 1, counter: 2 });
        let with = |len: usize| [header.as_slice(), &vec![0; len]].concat();
        assert!(Message::new_checked(&with(TAG_LEN)).is_ok());
        for len in 0..TAG_LEN {
            assert_eq!(Message::new_checked(&with(len)).unwrap_err(), DropReason::SealedMalformed);
        }
    }

    proptest! {
        #[test]
        fn emitted_messages_parse_back(
            sender: u32, receiver: u32, counter: u64,
            noise in prop::array::uniform::<_, 108>(any::<u8>()),
            sealed: [u8; 32],
        ) {
            let bytes = emit_initiation(sender, &noise);
            let Message::Initiation(initiation) = Message::new_checked(&bytes).unwrap() else {
                panic!("not an initiation");
            };
            prop_assert_eq!((initiation.sender(), initiation.noise()), (sender, noise.as_slice()));

            let noise: [u8; 48] = field(&noise, 0..48);
            let bytes = emit_response(sender, receiver, &noise);
            let Message::Response(response) = Message::new_checked(&bytes).unwrap() else {
                panic!("not a response");
            };
            prop_assert_eq!((response.sender(), response.receiver()), (sender, receiver));
            prop_assert_eq!(response.noise(), noise);

            let nonce: [u8; 24] = field(&noise, 0..24);
            let reply = emit_cookie_reply(receiver, &nonce, &sealed);
            let Message::CookieReply(reply) = Message::new_checked(&reply).unwrap() else {
                panic!("not a cookie reply");
            };
            prop_assert_eq!((reply.receiver(), reply.nonce(), reply.sealed()), (receiver, nonce, sealed));

            let data = Data { receiver, counter };
            let bytes = [&emit_data(data), sealed.as_slice()].concat();
            let Message::Data(parsed) = Message::new_checked(&bytes).unwrap() else {
                panic!("not data");
            };
            prop_assert_eq!(parsed, data);
        }
    }
}
