//! The keys that one handshake yielded, and what was sealed and opened with them.

use std::time::Duration;

use super::handshake::TransportKeys;
use super::replay::Window;
use crate::drops::DropReason;
use crate::wire::wireguard::{self, Data, HEADER_LEN, TAG_LEN};

/// Who began sends a new handshake after so many messages,
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// nobody seals or opens any more after so many.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Who began sends a new handshake when the keys are this old,
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// nobody seals or opens any more when they are this old.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

/// Which end of its handshake a host was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sent the initiation.
    Initiator,
    /// Sent the response.
    Responder,
}

/// One session. The peer's state machine decides which one to use.
#[derive(Debug)]
pub struct Session {
    /// Names the session in what is received.
    pub local: u32,
    /// Names it in what is sent.
    pub remote: u32,
    /// Who renews it.
    pub role: Role,
    /// When its handshake ended.
    pub born: Duration,
    keys: TransportKeys,
    next_counter: u64,
    window: Window,
}

impl Session {
    /// A session that has carried nothing.
    #[must_use]
    pub fn new(local: u32, remote: u32, role: Role, keys: TransportKeys, born: Duration) -> Self {
        Self { local, remote, role, born, keys, next_counter: 0, window: Window::default() }
    }

    /// Whether it may still carry anything.
    #[must_use]
    pub fn is_alive(&self, now: Duration) -> bool {
        now < self.born + REJECT_AFTER_TIME && self.next_counter < REJECT_AFTER_MESSAGES
    }

    /// Whether it is time for its initiator to renew it, as what is sent tells.
    #[must_use]
    pub fn is_worn(&self, now: Duration) -> bool {
        self.next_counter >= REKEY_AFTER_MESSAGES
            || self.role == Role::Initiator && now >= self.born + REKEY_AFTER_TIME
    }

    /// Seals a message in place: 16 bytes of room for the header, the padded packet, 16 of room for
    /// the tag. The caller has asked [`Self::is_alive`].
    ///
    /// # Panics
    /// If `message` is shorter than header and tag.
    pub fn seal(&mut self, message: &mut [u8]) {
        let counter = self.next_counter;
        self.next_counter += 1;
        let (header, sealed) = message.split_at_mut(HEADER_LEN);
        header.copy_from_slice(&wireguard::emit_data(Data { receiver: self.remote, counter }));
        self.keys.seal.seal(counter, &[], sealed);
    }

    /// Opens a data message, checked, in place; the packet is then between header and tag.
    ///
    /// # Errors
    /// `session_expired`, `replayed`, `forged`. What is refused changes nothing.
    pub fn open(&mut self, data: Data, message: &mut [u8], now: Duration) -> Result<(), DropReason> {
        if now >= self.born + REJECT_AFTER_TIME || data.counter >= REJECT_AFTER_MESSAGES {
            return Err(DropReason::SessionExpired);
        }
        if !self.window.accepts(data.counter) {
            return Err(DropReason::Replayed);
        }
        let opened = self.keys.open.open(data.counter, &[], &mut message[HEADER_LEN..]);
        opened.map_err(|_| DropReason::Forged)?;
        self.window.insert(data.counter);
        Ok(())
    }

    /// Goes on as if so many messages had been sealed.
    #[cfg(feature = "testing")]
    pub(super) fn wear(&mut self, counter: u64) {
        self.next_counter = self.next_counter.max(counter);
    }
}

/// The length of a data message for a packet, given the MTU that its padding must not exceed.
#[must_use]
pub fn message_len(packet: usize, mtu: usize) -> usize {
    let padded = packet.next_multiple_of(wireguard::PADDING).min(mtu.max(packet));
    HEADER_LEN + padded + TAG_LEN
}
