//! Sealed mode: the WireGuard protocol, without sockets and without a clock.
//!
//! [`peers::Peers`] is the way in. It takes what comes (`handle_datagram`, `handle_timeout`, `seal`)
//! and says what is to be done (`poll_output`, `poll_timeout`). Behind it:
//!
//! ```text
//! peers    whom a message is for; who may have a handshake ─ admission, cookie
//! peer     sessions, handshake and timers of one peer      ─ timers
//! session  seals and opens                                 ─ aead, replay
//! handshake  two messages, by snow                         ─ keys, tai64n
//! ```
//!
//! Keys are wiped when they are dropped, but for what `snow` holds while a handshake is under way.

pub mod admission;
pub mod aead;
pub mod cookie;
pub mod handshake;
pub mod keys;
pub mod peer;
pub mod peers;
pub mod replay;
pub mod session;
pub mod tai64n;
pub mod timers;

#[cfg(test)]
mod tests;
