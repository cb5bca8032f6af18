//! Sealed mode: the WireGuard protocol, without sockets and without a clock.
//!
//! [`Peers`] is the way in. It takes what comes (`handle_datagram`, `handle_timeout`, `wait`), lends out
//! sessions to seal with (`sealer`), and says what is to be done (`poll_output`, `poll_timeout`). Behind it:
//!
//! ```text
//! peers    whom a message is for; who may have a handshake ─ admission, cookie, shared
//! peer     sessions, handshake and timers of one peer      ─ timers
//! session  seals and opens                                 ─ aead, replay
//! handshake  two messages, by snow                         ─ keys, tai64n
//! ```
//!
//! Keys are wiped when they are dropped, but for what `snow` holds while a handshake is under way.

mod admission;
mod aead;
mod cookie;
#[cfg(feature = "testing")]
pub(crate) mod fuzz;
mod handshake;
mod keys;
mod peer;
mod peers;
mod replay;
mod session;
mod shared;
mod tai64n;
mod timers;
#[cfg(feature = "testing")]
mod world;

pub use aead::{Suite, accelerate};
pub use keys::{HostKeys, PeerKeys, PresharedKey, PrivateKey, PublicKey};
pub use peer::Sealer;
pub use peers::{Now, Output, Peers, Random, Received};
pub use session::message_len;

#[cfg(test)]
mod tests;
